"""Long filters: generation against a float64 transcription of the definition, precision, cache."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import tiny_config, tiny_inputs
from torch import Tensor

from m2bert.errors import M2BertError
from m2bert.model.filters import (
    LongConv,
    cache_budget_bytes,
    decay_window,
    multiscale_window,
    positional_features,
)
from m2bert.model.modeling import M2BertModel


def filter_by_definition(conv: LongConv, seqlen: int, direction: str) -> Tensor:
    """The filter in float64, written as the definition reads: sine MLP of features, times exp(-t |delta|)."""
    network = getattr(conv, direction)
    positions, dim = conv.features.shape[0], conv.skip.shape[0]
    hidden = conv.features.detach().double()[:seqlen]
    for layer in network.layers:
        hidden = hidden @ layer.weight.detach().double().T + layer.bias.detach().double()
        hidden = torch.sin(conv.frequency.detach().double() * hidden)
    hidden = hidden @ network.out.weight.detach().double().T
    delta = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, dim, dtype=torch.float64)
    time = torch.linspace(0, 1, positions, dtype=torch.float64)[:seqlen, None]
    return (hidden * torch.exp(-time * delta.abs())).T


def model_and_conv(**overrides: object) -> tuple[M2BertModel, LongConv]:
    model = M2BertModel(tiny_config(kernels="reference", **overrides)).eval()
    conv = model.encoder.blocks[0].sequence_mixer.long_conv
    return model, conv


@pytest.mark.parametrize("seqlen", [1, 40, 96])
@pytest.mark.parametrize("direction", ["filter", "filter_rev"])
def test_filters_follow_the_definition(seqlen: int, direction: str) -> None:
    _, conv = model_and_conv()
    torch.nn.init.normal_(conv.filter.layers[0].bias)
    window = decay_window(32, 96, seqlen, torch.device("cpu"))
    k = dict(zip(("filter", "filter_rev"), conv(window), strict=True))[direction]
    expected = filter_by_definition(conv, seqlen, direction)
    assert k.dtype == torch.float32
    assert expected.norm() > 0
    assert (k - expected).norm() / expected.norm() < 1e-4  # float32, magnified by sines of large arguments


def test_filters_fast_decay_window_reaches_its_target() -> None:
    window = decay_window(768, 2048, 2048, torch.device("cpu"))
    torch.testing.assert_close(window[:, 0], torch.ones(768))
    assert window[0, -1].item() == pytest.approx(0.01 ** (1 / 1.5), rel=1e-5)
    assert window[-1, -1].item() == pytest.approx(0.01 ** (1 / 0.3), rel=1e-4)


def test_filters_multiscale_windows_sum_to_one_and_span_the_scales() -> None:
    window = multiscale_window(64, 8192, 8192, torch.device("cpu")).double()
    torch.testing.assert_close(window.sum(dim=1), torch.ones(64, dtype=torch.float64), rtol=1e-4, atol=0)
    memory = -1 / torch.log(window[:, 1] / window[:, 0])
    assert memory[0].item() == pytest.approx(1.0, rel=1e-3)
    assert memory[-1].item() == pytest.approx(8192 / 3, rel=0.05)  # a ratio near 1, read back in float32
    steps = memory[:40].log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(39), rtol=0.02, atol=0)
    torch.testing.assert_close(multiscale_window(64, 8192, 100, torch.device("cpu")).double(), window[:, :100])


def test_filters_use_the_window_of_the_configuration() -> None:
    filters = []
    for name in ("exponential", "multiscale"):
        model, _ = model_and_conv(filter_window=name)
        filters.append(model.filter_bank.window(96, torch.device("cpu")))
    assert filters[0][0, 0] == 1 and filters[1][0, 0] != 1
    torch.testing.assert_close(filters[1], multiscale_window(32, 96, 96, torch.device("cpu")))


def test_filters_positional_features_are_time_cosines_sines() -> None:
    z = positional_features(512, 5).double()
    w = 2 * math.pi * torch.arange(512, dtype=torch.float64) / 512
    torch.testing.assert_close(z[:, 0], torch.linspace(0, 1, 512, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(z[:, 2], torch.cos(w), rtol=0, atol=1e-6)
    torch.testing.assert_close(z[:, 4], -torch.sin(w), rtol=0, atol=1e-6)
    torch.testing.assert_close(z[:, 3], -torch.sin(1e-4 * w), rtol=0, atol=1e-6)
    assert positional_features(512, 3).shape == (512, 3)


def test_filters_stay_float32_when_the_model_is_cast_and_under_autocast() -> None:
    model, conv = model_and_conv()
    window = decay_window(32, 96, 96, torch.device("cpu"))
    before = conv(window)[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(conv(window)[0], before, rtol=0, atol=0)
    model.bfloat16()
    assert model.embeddings.norm.weight.dtype == torch.bfloat16
    assert {p.dtype for p in conv.parameters()} == {torch.float32}
    torch.testing.assert_close(conv(window)[0], before, rtol=0, atol=0)
    assert model.double().encoder.blocks[0].sequence_mixer.long_conv.skip.dtype == torch.float64


def cached_bytes(model: M2BertModel) -> int:
    return model.filter_bank.nbytes


@torch.no_grad()
def test_filter_bank_keeps_one_spectrum_per_transform_length() -> None:
    model, _ = model_and_conv()
    model(tiny_inputs(seqlen=33))
    one = cached_bytes(model)
    assert one > 0
    model(tiny_inputs(seqlen=60))  # 33 to 64 positions share a transform length of the reference
    assert cached_bytes(model) == one
    model(tiny_inputs(seqlen=10))
    assert one < cached_bytes(model) < 2 * one


@torch.no_grad()
def test_filter_bank_notices_changed_parameters() -> None:
    model, conv = model_and_conv()
    ids = tiny_inputs()
    before = model(ids).last_hidden_state
    conv.features.mul_(0.5)
    after = model(ids).last_hidden_state
    fresh = copy.deepcopy(model)(ids).last_hidden_state
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, fresh, rtol=0, atol=0)
    conv.filter.out.weight.data = torch.zeros_like(conv.filter.out.weight)
    assert (model(ids).last_hidden_state - after).abs().max() > 1e-3


@pytest.mark.parametrize(("megabytes", "made"), [("1024", 8), ("0", 24)])
@torch.no_grad()
def test_filter_bank_makes_each_filter_once_per_transform_length(
    megabytes: str, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six texts of two transform lengths, four convolutions; with no room for spectra, once per text."""
    model, _ = model_and_conv()
    monkeypatch.setenv("M2OPS_SPECTRUM_CACHE_MB", megabytes)
    calls, generate = [], LongConv.blocks
    monkeypatch.setattr(LongConv, "blocks", lambda conv, *args: calls.append(conv.index) or generate(conv, *args))
    with model.cached_filters():
        for seqlen in (5, 40, 33, 7, 60, 40):
            model(tiny_inputs(seqlen=seqlen))
    assert len(calls) == made and set(calls) == {0, 1, 2, 3}


@pytest.mark.parametrize("kernels", ["m2ops", "reference"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_filter_bank_makes_spectra_by_blocks_of_channels(
    monkeypatch: pytest.MonkeyPatch, bidirectional: bool, kernels: str
) -> None:
    model, conv = model_and_conv(bidirectional=bidirectional, hidden_size=80)
    model.config.kernels = kernels
    with torch.no_grad():
        whole, _ = model.filter_bank.filters(conv, 40)
        model.filter_bank.clear()
        monkeypatch.setattr("m2bert.model.filters.BLOCK_VALUES", 1)
        seen = []
        monkeypatch.setattr(
            conv, "blocks", lambda window, size: seen.append(size) or LongConv.blocks(conv, window, size)
        )
        parts, _ = model.filter_bank.filters(conv, 40)
    assert seen == [16] and parts.data.shape == whole.data.shape and whole.data.abs().max() > 0.0
    assert parts.max_seqlen == whole.max_seqlen and parts.reference == whole.reference
    assert torch.linalg.vector_norm(parts.data - whole.data) <= 1e-6 * torch.linalg.vector_norm(whole.data)


def test_filter_bank_gives_way_to_training() -> None:
    model, conv = model_and_conv()
    with torch.no_grad():
        model(tiny_inputs())
    assert cached_bytes(model) > 0
    model.train()(tiny_inputs()).last_hidden_state.sum().backward()
    assert conv.frequency.grad is not None and conv.frequency.grad.abs().max() > 0


def test_filter_bank_notices_steps_of_a_fused_optimizer() -> None:
    model, _ = model_and_conv()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)  # leaves the version of parameters as it was
    with torch.no_grad():
        before = model(tiny_inputs()).last_hidden_state
    model.train()(tiny_inputs()).last_hidden_state.square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = model.eval()(tiny_inputs()).last_hidden_state
        fresh = copy.deepcopy(model)(tiny_inputs()).last_hidden_state
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, fresh, rtol=0, atol=0)


def test_filter_bank_works_in_inference_mode_then_in_training() -> None:
    model, conv = model_and_conv()
    with torch.inference_mode():
        first = model(tiny_inputs()).last_hidden_state.clone()
    model(tiny_inputs()).last_hidden_state.square().sum().backward()
    assert conv.frequency.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(model(tiny_inputs()).last_hidden_state, first, rtol=0, atol=1e-6)


@torch.no_grad()
def test_cached_filters_frees_its_spectra_at_the_end() -> None:
    model, _ = model_and_conv()
    plain = model(tiny_inputs()).last_hidden_state
    with model.cached_filters():
        for _ in range(2):
            torch.testing.assert_close(model(tiny_inputs()).last_hidden_state, plain, rtol=0, atol=1e-6)
        assert cached_bytes(model) > 0
    assert cached_bytes(model) == 0


@torch.no_grad()
def test_cached_filters_looks_for_changes_when_it_begins() -> None:
    model, conv = model_and_conv()
    before = model(tiny_inputs()).last_hidden_state
    conv.filter.out.weight.mul_(2)
    with model.cached_filters():
        after = model(tiny_inputs()).last_hidden_state
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, copy.deepcopy(model)(tiny_inputs()).last_hidden_state, rtol=0, atol=0)


@torch.no_grad()
def test_filter_bank_follows_a_change_of_kernels() -> None:
    model, _ = model_and_conv()
    reference = model(tiny_inputs()).last_hidden_state
    model.config.kernels = "m2ops"
    torch.testing.assert_close(model(tiny_inputs()).last_hidden_state, reference, rtol=0, atol=5e-5)


@torch.no_grad()
def test_filter_bank_respects_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = model_and_conv()
    expected = model(tiny_inputs()).last_hidden_state
    one = cached_bytes(model) // 4  # two layers of two convolutions
    model.filter_bank.clear()
    monkeypatch.setenv("M2OPS_SPECTRUM_CACHE_MB", str(2.5 * one / 2**20))
    for _ in range(2):
        torch.testing.assert_close(model(tiny_inputs()).last_hidden_state, expected, rtol=0, atol=0)
        assert cached_bytes(model) == 2 * one
    model(tiny_inputs(seqlen=5))  # a shorter transform takes the place of what is there
    assert 0 < cached_bytes(model) <= 2.5 * one
    monkeypatch.setenv("M2OPS_SPECTRUM_CACHE_MB", "0")
    model.filter_bank.clear()
    torch.testing.assert_close(model(tiny_inputs()).last_hidden_state, expected, rtol=0, atol=0)
    assert cached_bytes(model) == 0


def test_filter_bank_serves_several_threads() -> None:
    model, _ = model_and_conv()
    lengths = [5, 20, 40, 70] * 6

    def run(seqlen: int) -> Tensor:
        with torch.no_grad():
            return model(tiny_inputs(seqlen=seqlen)).last_hidden_state

    expected = {seqlen: run(seqlen) for seqlen in set(lengths)}
    model.filter_bank.clear()
    with ThreadPoolExecutor(4) as pool:
        for seqlen, got in zip(lengths, pool.map(run, lengths), strict=True):
            torch.testing.assert_close(got, expected[seqlen], rtol=0, atol=0)


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_filter_bank_refuses_a_bad_budget(monkeypatch: pytest.MonkeyPatch, text: str, device: str) -> None:
    monkeypatch.setenv("M2OPS_SPECTRUM_CACHE_MB", text)
    with pytest.raises(M2BertError, match="M2OPS_SPECTRUM_CACHE_MB: must be a number of megabytes"):
        cache_budget_bytes(torch.device(device))


@torch.no_grad()
@pytest.mark.parametrize("seqlen", [5, 40])
def test_filter_bank_notices_values_that_are_written_without_a_mark(seqlen: int) -> None:
    """Weight averaging writes through .data, which changes neither address nor version."""
    model, conv = model_and_conv()
    ids = tiny_inputs(seqlen=seqlen)
    before = model(ids).last_hidden_state
    for parameter in model.parameters():
        parameter.data.mul_(1.05)
    after = model(ids).last_hidden_state
    torch.testing.assert_close(after, copy.deepcopy(model)(ids).last_hidden_state, rtol=0, atol=0)
    assert (after - before).abs().max() > 1e-3
    conv.features.data[seqlen - 1] += 1.0  # the last row in use
    assert (model(ids).last_hidden_state - after).abs().max() > 1e-4


@torch.no_grad()
def test_filter_bank_makes_filters_again_only_where_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, conv = model_and_conv()
    made, generate = [], LongConv.blocks
    monkeypatch.setattr(LongConv, "blocks", lambda conv, *args: made.append(conv.index) or generate(conv, *args))
    for seqlen in (5, 40, 70, 5):  # longer ones do not drive out the shorter
        model(tiny_inputs(seqlen=seqlen))
    assert sorted(made) == sorted([0, 1, 2, 3] * 3)
    made.clear()
    conv.frequency.data.mul_(1.5)
    for seqlen in (5, 40, 5):
        model(tiny_inputs(seqlen=seqlen))
    assert made == [conv.index] * 2


@torch.no_grad()
def test_filters_of_one_call_outlive_it_where_they_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2bert.model.filters.POSITIONS_OF_QUERIES", 32)
    model, conv = model_and_conv()
    expected = {seqlen: model.filter_bank.filters(conv, seqlen)[0].data for seqlen in (20, 60)}
    model.filter_bank.clear()
    call = model.filter_bank.for_one_call()
    for seqlen in (20, 60, 20):
        torch.testing.assert_close(call.filters(conv, seqlen)[0].data, expected[seqlen], rtol=0, atol=0)
    short, long = (expected[seqlen].numel() * expected[seqlen].element_size() for seqlen in (20, 60))
    assert cached_bytes(model) == short and call.nbytes == short + long
    made, generate = [], LongConv.blocks
    monkeypatch.setattr(LongConv, "blocks", lambda conv, *args: made.append(conv.index) or generate(conv, *args))
    again = model.filter_bank.for_one_call()
    again.filters(conv, 20)
    assert made == []
    again.filters(conv, 60)
    assert made == [conv.index]


@torch.no_grad()
def test_pins_may_overlap() -> None:
    model, conv = model_and_conv()
    ids, bank = tiny_inputs(), model.filter_bank
    first, second = model.cached_filters(), model.cached_filters()
    first.__enter__()
    model(ids)
    conv.features.data.mul_(0.5)
    second.__enter__()  # whoever begins later looks for changes too
    expected = copy.deepcopy(model)(ids).last_hidden_state
    torch.testing.assert_close(model(ids).last_hidden_state, expected, rtol=0, atol=0)
    first.__exit__(None, None, None)
    assert bank.pinned and bank.nbytes > 0
    second.__exit__(None, None, None)
    assert not bank.pinned and bank.nbytes == 0


@torch.no_grad()
def test_filters_are_float32_whatever_the_default_is() -> None:
    """Of 96 positions bfloat16 tells less than half apart: filters made in it are off by per cents."""
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            for make in (decay_window, multiscale_window):
                made.append(make(32, 96, 96, torch.device("cpu")))
            made.append(positional_features(96, 7))
        finally:
            torch.set_default_dtype(torch.float32)
    for exact, other in zip(made[:3], made[3:], strict=True):
        assert other.dtype == torch.float32 and torch.equal(other, exact)
