"""Lengthening a model: rows by numpy's interpolation, filters that stretch or repeat, a warm start from the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_inputs
from training_data import small_tokenizer, write_corpus
from typer.testing import CliRunner

from m2bert.errors import M2BertError
from m2bert.model.checkpoints import load_whole
from m2bert.model.extend import extend, extend_checkpoint, interpolate_rows, tile_rows
from m2bert.model.filters import decay_window, multiscale_window
from m2bert.model.modeling import M2BertForMaskedLM, M2BertModel
from m2bert.train.validation import validate_checkpoint

OLD, NEW = 33, 129  # 4 (OLD - 1) = NEW - 1: every fourth new position is an old one


def trained_like(**overrides: Any) -> M2BertModel:
    """A model whose tables are noise, as if trained: smooth ones would hide an error of a row."""
    torch.manual_seed(3)
    model = M2BertModel(tiny_config(max_position_embeddings=OLD, **overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".features", "position_embeddings.weight")):
                parameter.normal_()
    return model


@pytest.mark.parametrize(("old", "new"), [(33, 129), (64, 100), (96, 97), (2, 7), (1, 5)])
def test_interpolated_rows_are_those_of_numpy(old: int, new: int) -> None:
    table = torch.randn(old, 3)
    places = np.arange(new) * (old - 1) / (new - 1)
    expected = np.stack([np.interp(places, np.arange(old), column) for column in table.double().numpy().T], axis=1)
    got = interpolate_rows(table, new)
    assert got.dtype == torch.float32 and got.shape == (new, 3)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)  # places of rows are float32
    assert np.abs(expected).max() > 0.1


def test_long_tables_are_placed_within_a_thousandth_of_a_row() -> None:
    ramp = torch.arange(8192, dtype=torch.float32)[:, None]  # shows where each row was taken from
    got = interpolate_rows(ramp, 32768)[:, 0].double()
    torch.testing.assert_close(got, torch.arange(32768, dtype=torch.float64) * 8191 / 32767, rtol=0, atol=1e-3)


def test_tiled_rows_repeat() -> None:
    table = torch.randn(10, 3)
    got = tile_rows(table, 25)
    assert torch.equal(got, table[torch.arange(25) % 10])


def test_interpolation_stretches_filters_and_positions() -> None:
    model = trained_like()
    longer = extend(model, NEW)
    assert longer.config.max_position_embeddings == NEW and model.config.max_position_embeddings == OLD
    old_rows, new_rows = (m.embeddings.position_embeddings.weight for m in (model, longer))
    torch.testing.assert_close(new_rows[::4], old_rows)
    for old_block, new_block in zip(model.encoder.blocks, longer.encoder.blocks, strict=True):
        for name in ("long_conv", "residual_long_conv"):
            old_conv, new_conv = (getattr(block.sequence_mixer, name) for block in (old_block, new_block))
            old = old_conv(decay_window(32, OLD, OLD, torch.device("cpu")))
            new = new_conv(decay_window(32, NEW, NEW, torch.device("cpu")))
            for before, after in zip(old, new, strict=True):
                torch.testing.assert_close(after[:, ::4], before, rtol=1e-4, atol=1e-5)
                assert (after[:, :OLD] - before).abs().max() > 0.01  # not where they were


def test_tiling_repeats_filters_under_the_longer_window() -> None:
    model = trained_like(filter_window="multiscale")
    longer = extend(model, 2 * OLD, "tile")
    conv, long_conv = (m.encoder.blocks[0].sequence_mixer.long_conv for m in (model, longer))
    bare = conv(torch.ones(32, OLD))[0]
    torch.testing.assert_close(long_conv(torch.ones(32, 2 * OLD))[0], bare.repeat(1, 2))
    window = multiscale_window(32, 2 * OLD, 2 * OLD, torch.device("cpu"))
    torch.testing.assert_close(long_conv(window)[0][:, :OLD], bare * window[:, :OLD])
    rows = longer.embeddings.position_embeddings.weight
    assert torch.equal(rows[OLD:], rows[:OLD])


def test_what_has_no_position_stays() -> None:
    model = trained_like()
    longer = extend(model, 50)
    state = longer.state_dict()
    tables = [name for name, x in model.state_dict().items() if state[name].shape != x.shape]
    assert len(tables) == 1 + 2 * 2  # positions, and two convolutions in each of two layers
    for name, x in model.state_dict().items():
        if name not in tables:
            assert torch.equal(state[name], x), name
    inputs = tiny_inputs(seqlen=50)
    assert longer(inputs).last_hidden_state.isfinite().all()
    with pytest.raises(M2BertError, match="1 to 33 tokens"):
        model.states(inputs)


def test_short_memories_of_multiscale_windows_hardly_change() -> None:
    before, after = (multiscale_window(64, n, 64, torch.device("cpu")) for n in (512, 2048))
    changed = (after - before).norm(dim=1) / before.norm(dim=1)
    assert changed[0] < 1e-6 and changed[8] < 0.2 < changed[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained tiny masked LM with 32 positions, and what it was made from."""
    from m2bert.train.pretrain import PretrainConfig, pretrain

    world = tmp_path_factory.mktemp("world")
    write_corpus(world / "text")
    small_tokenizer().save_pretrained(world / "tokenizer")
    model = {
        "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "filter_order": 8,
        "max_position_embeddings": 32,
    }  # fmt: skip
    pretrain(PretrainConfig(**settings(world, "short"), model=model, lengths={32: 1.0}, learning_rate=1e-2))
    return world


def settings(world: Path, name: str) -> dict[str, Any]:
    return {
        "data": [str(world / "text")], "tokenizer": str(world / "tokenizer"), "output": str(world / name),
        "cache": str(world / "cache"), "batch_tokens": 512, "max_steps": 60, "logging_steps": 1, "save_seconds": 0.0,
        "bf16": False, "threads": 1,
    }  # fmt: skip


def test_a_longer_run_starts_warm(run: Path) -> None:
    from m2bert.cli import build_app
    from m2bert.train.pretrain import PretrainConfig, pretrain

    flags = ["extend", str(run / "short"), "--to", "128", "--output", str(run / "long"), "--method", "tile"]
    done = CliRunner().invoke(build_app(), flags)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert (made["positions_before"], made["positions"], made["method"]) == (32, 128, "tile")
    model, tokenizer = load_whole(str(run / "long"), "test")
    assert isinstance(model, M2BertForMaskedLM) and tokenizer.model_max_length == 128
    assert model.num_parameters() == made["parameters"]
    config = PretrainConfig(**settings(run, "longer"), init=str(run / "long"), lengths={128: 1.0}, learning_rate=1e-6)
    pretrain(config)
    rows = {
        name: [json.loads(line)["loss"] for line in (run / name / "log.jsonl").read_text().splitlines()]
        for name in ("short", "longer")
    }
    assert rows["longer"][0] < rows["short"][0] - 0.5  # a fresh model costs 5.3 nats
    cache = run / "tokens"
    validate = ["validate", str(run / "longer"), "--data", str(run / "text"), "--cache", str(cache)]
    checked = CliRunner().invoke(build_app(), validate)
    assert any(cache.iterdir()) and CliRunner().invoke(build_app(), validate).stdout == checked.stdout
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["validation_loss"] == pytest.approx(rows["longer"][-1], abs=0.5)
    with pytest.raises(M2BertError, match="length must lie in"):
        validate_checkpoint(str(run / "longer"), [str(run / "text")], length=129)
    short = PretrainConfig(**settings(run, "refused"), init=str(run / "short"), lengths={128: 1.0})
    with pytest.raises(M2BertError, match="lengthen the checkpoint with m2bert extend"):
        pretrain(short)


def test_bad_requests(run: Path, tmp_path: Path) -> None:
    model = trained_like()
    with pytest.raises(M2BertError, match="must exceed the model's 33, got 33"):
        extend(model, 33)
    with pytest.raises(M2BertError, match="method must be one of interpolate, tile"):
        extend(model, 66, "double")
    for output in (run / "short", run / "short" / "model"):
        with pytest.raises(M2BertError, match="folder of its own"):
            extend_checkpoint(str(run / "short"), 64, str(output))
    with pytest.raises(M2BertError, match="extend: a model must be a folder"):
        extend_checkpoint("nowhere", 64, str(tmp_path / "out"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"architectures": ["Other"], "model_type": "m2_bert"}')
    with pytest.raises(M2BertError, match="must name one of M2BertModel"):
        extend_checkpoint(str(tmp_path / "odd"), 64, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
