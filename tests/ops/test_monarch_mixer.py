"""monarch_mixer against its equations written out in float64 with explicit sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import m2ops
from m2ops import _monarch_mixer
from m2ops.testing import assert_matches

DIM = 5
WIDE = 21  # a whole block of channels and a part of one


@pytest.fixture(params=m2ops.available_isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with m2ops.use_isa(request.param):
        yield request.param


def inputs(
    seqlen: int, dtype: torch.dtype, residual: bool = True, dim: int = DIM, batch: int = 2, width: int = 3
) -> dict[str, Any]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x: dict[str, Any] = dict(
        p=torch.randn(batch, seqlen, 3 * dim).to(dtype), u=torch.randn(batch, seqlen, dim).to(dtype),
        short_weight=torch.randn(3 * dim, width, dtype=wide), short_bias=torch.randn(3 * dim, dtype=wide),
    )  # fmt: skip
    for suffix in ("", "2") if residual else ("",):
        x["k" + suffix] = torch.randn(dim, seqlen, dtype=wide) / seqlen**0.5
        x[f"k{suffix}_rev"] = torch.randn(dim, seqlen, dtype=wide) / seqlen**0.5
        x["skip" + suffix] = torch.randn(dim, dtype=wide)
    return x


def ragged(batch: int, seqlen: int) -> Tensor:
    """A mask with padding behind, a batch row without any real token, and holes."""
    mask = torch.ones(batch, seqlen, dtype=torch.bool)
    mask[0, seqlen * 2 // 3 :] = False
    mask[1] = False
    mask[2] = torch.rand(seqlen) > 0.3
    return mask


def double(x: dict[str, Any]) -> dict[str, Any]:
    return {n: t.detach().double() if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in x.items()}


def long_conv(g: Tensor, k: Tensor, k_rev: Tensor, skip: Tensor) -> Tensor:
    out = torch.zeros_like(g)
    for t in range(g.shape[1]):
        for s in range(g.shape[1]):
            tap = k[:, t - s] if s <= t else k_rev[:, s - t - 1]
            out[:, t] += tap * g[:, s]
    return out + skip * g


def exact(x: dict[str, Any], mask: Tensor | None = None) -> Tensor:
    v = double(x)
    real = torch.ones(v["u"].shape[:2]).double() if mask is None else mask.double()
    v["p"], v["u"] = v["p"] * real[..., None], v["u"] * real[..., None]
    s = torch.zeros_like(v["p"]) + v["short_bias"]
    width = v["short_weight"].shape[1]
    for t in range(s.shape[1]):
        for j in range(width):
            if t - width + 1 + j >= 0:
                s[:, t] += v["short_weight"][:, j] * v["p"][:, t - width + 1 + j]
    x1, x2, value = s.chunk(3, dim=-1)
    out = x2 * long_conv(x1 * value * real[..., None], v["k"], v["k_rev"], v["skip"])
    if "k2" in v:
        out = out + long_conv(v["u"], v["k2"], v["k2_rev"], v["skip2"])
    return out * real[..., None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("seqlen", [1, 2, 33])
def test_monarch_mixer_matches_its_equations(seqlen: int, residual: bool, dtype: torch.dtype) -> None:
    x = inputs(seqlen, dtype, residual)
    bound = 3e-6 if dtype == torch.float32 else 1e-12  # a product of three float32 results
    assert_matches(m2ops.monarch_mixer(**x), exact(x), bound=bound)
    assert_matches(m2ops.monarch_mixer_ref(**x), exact(x), bound=bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_monarch_mixer_in_16_bits(dtype: torch.dtype) -> None:
    x = inputs(40, dtype, dim=WIDE)
    assert_matches(m2ops.monarch_mixer(**x), exact(x))  # one rounding: of the output


def test_monarch_mixer_takes_spectra() -> None:
    x = inputs(20, torch.float32)
    want = exact(x)
    x["k"], x["k_rev"] = m2ops.filter_spectrum(x["k"], x["k_rev"], 20), None
    x["k2"], x["k2_rev"] = m2ops.filter_spectrum(x["k2"], x["k2_rev"], 20), None
    assert_matches(m2ops.monarch_mixer(**x), want, bound=3e-6)


def test_monarch_mixer_mask_equals_a_shorter_sequence() -> None:
    x = inputs(30, torch.float32)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[0, 18:] = False
    short = {n: (t[:1, :18] if n in ("p", "u") else t) for n, t in x.items()}
    for function in (m2ops.monarch_mixer, m2ops.monarch_mixer_ref):
        out = function(**x, mask=mask)
        assert torch.equal(out[0, 18:], torch.zeros(12, DIM))
        assert_matches(out[:1, :18], exact(short), bound=3e-6)
        assert_matches(out[1:], exact(x)[1:], bound=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("seqlen", [1, 2, 3, 63, 129, 1000])
def test_monarch_mixer_at_awkward_lengths_under_a_ragged_mask(seqlen: int, dtype: torch.dtype) -> None:
    x = inputs(seqlen, dtype, dim=WIDE, batch=3)
    mask = ragged(3, seqlen)
    out = m2ops.monarch_mixer(**x, mask=mask)
    bound = {torch.float32: 3e-6, torch.float64: 1e-12}.get(dtype)
    assert_matches(out, m2ops.monarch_mixer_ref(**double(x), mask=mask), bound=bound)
    assert torch.equal(out[~mask], torch.zeros_like(out[~mask]))


def test_monarch_mixer_beyond_4096_positions() -> None:
    x = inputs(4097, torch.float32, dim=17, batch=1)
    assert_matches(m2ops.monarch_mixer(**x), m2ops.monarch_mixer_ref(**double(x)), bound=3e-6)


@pytest.mark.parametrize("width", range(2, 8))
def test_monarch_mixer_widths(width: int) -> None:
    for seqlen in (width - 1, 30):
        x = inputs(seqlen, torch.float32, dim=WIDE, batch=3, width=width)
        mask = ragged(3, seqlen)
        assert_matches(m2ops.monarch_mixer(**x), exact(x), bound=3e-6)
        assert_matches(m2ops.monarch_mixer(**x, mask=mask), exact(x, mask), bound=3e-6)


@pytest.mark.parametrize("missing", [("short_bias",), ("k_rev",), ("skip",), ("k2_rev", "skip2"), ("skip", "k2_rev")])
def test_monarch_mixer_optional_arguments(missing: tuple[str, ...]) -> None:
    x = inputs(20, torch.float32, dim=WIDE)
    want = exact({n: torch.zeros_like(t) if n in missing else t for n, t in x.items()})
    assert_matches(m2ops.monarch_mixer(**{n: None if n in missing else t for n, t in x.items()}), want, bound=3e-6)


def test_monarch_mixer_strided_inputs() -> None:
    x = inputs(50, torch.float32, dim=WIDE, batch=3)
    want = exact(x)
    wide = torch.full((3, 50, 4 * WIDE + 7), float("nan"))
    wide[..., 3 : 3 + 3 * WIDE] = x["p"]
    wide[..., 3 + 3 * WIDE : 3 + 4 * WIDE] = x["u"]
    x["p"], x["u"] = wide[..., 3 : 3 + 3 * WIDE], wide[..., 3 + 3 * WIDE : 3 + 4 * WIDE]
    assert_matches(m2ops.monarch_mixer(**x), want, bound=3e-6)
    x["u"] = x["u"].transpose(1, 2).contiguous().transpose(1, 2)
    assert_matches(m2ops.monarch_mixer(**x), want, bound=3e-6)
    mask = ragged(50, 3).t()
    assert_matches(m2ops.monarch_mixer(**x, mask=mask), exact(x, mask), bound=3e-6)


def test_monarch_mixer_spectra_may_serve_different_lengths() -> None:
    x = inputs(40, torch.float32, dim=WIDE)
    want = exact(x)
    x["k"], x["k_rev"] = m2ops.filter_spectrum(x["k"], x["k_rev"], 700), None
    x["k2"], x["k2_rev"] = m2ops.filter_spectrum(x["k2"], x["k2_rev"], 300), None
    assert_matches(m2ops.monarch_mixer(**x), want, bound=3e-6)


@pytest.mark.parametrize("batch, seqlen", [(0, 5), (2, 0)])
def test_monarch_mixer_of_nothing_keeps_the_way_back(batch: int, seqlen: int) -> None:
    x = inputs(5, torch.float32)
    x["p"], x["u"] = torch.randn(batch, seqlen, 3 * DIM), torch.randn(batch, seqlen, DIM)
    leaves = [x[n].requires_grad_() for n in ("p", "u", "short_weight", "k")]
    out = m2ops.monarch_mixer(**x)
    assert out.shape == (batch, seqlen, DIM)
    grads = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
    assert all(g is None or torch.equal(g, torch.zeros_like(t)) for g, t in zip(grads, leaves, strict=True))


def test_monarch_mixer_mask_stops_what_is_not_finite() -> None:
    x = inputs(30, torch.float32, dim=WIDE, batch=3)
    mask = ragged(3, 30)
    want = exact(x, mask)
    for name in ("p", "u"):
        x[name][~mask] = float("nan")
        x[name].requires_grad_()
    out = m2ops.monarch_mixer(**x, mask=mask)
    assert_matches(out, want, bound=3e-6)
    for grad in torch.autograd.grad(out.square().sum(), [x["p"], x["u"]]):
        assert torch.isfinite(grad).all() and torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))


def test_monarch_mixer_does_not_depend_on_the_number_of_threads() -> None:
    x = inputs(300, torch.float32, dim=100, batch=3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
        out = m2ops.monarch_mixer(**leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_monarch_mixer_gradcheck(residual: bool, masked: bool) -> None:
    x = inputs(4, torch.float64, residual, dim=2 if residual else 3, batch=3)
    mask = ragged(3, 4) if masked else None
    leaves = [t.requires_grad_() for t in x.values()]
    assert torch.autograd.gradcheck(
        lambda *a: m2ops.monarch_mixer(**dict(zip(x, a, strict=True)), mask=mask), leaves, fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("seqlen, width", [(1, 3), (2, 7), (33, 2), (300, 3)])
def test_monarch_mixer_gradients_match_the_reference(seqlen: int, width: int, dtype: torch.dtype) -> None:
    x = inputs(seqlen, dtype, dim=WIDE, batch=3, width=width)
    dout = torch.randn(3, seqlen, WIDE).to(dtype)
    for mask in (None, ragged(3, seqlen)):
        leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
        ours = torch.autograd.grad(m2ops.monarch_mixer(**leaves, mask=mask), list(leaves.values()), dout)
        wide = {n: t.requires_grad_() for n, t in double(x).items()}
        want = torch.autograd.grad(m2ops.monarch_mixer_ref(**wide, mask=mask), list(wide.values()), dout.double())
        for name, got, grad in zip(x, ours, want, strict=True):
            assert got.dtype == x[name].dtype
            bound = {torch.float32: 5e-6, torch.float64: 1e-12}.get(got.dtype)
            assert_matches(got, grad, bound=bound)


def test_monarch_mixer_gradients_of_what_is_missing() -> None:
    x = inputs(20, torch.float32, residual=False)
    x |= {"skip": None, "short_bias": None, "k_rev": None}
    leaves = {n: None if t is None else t.requires_grad_() for n, t in x.items()}
    grads = torch.autograd.grad(
        m2ops.monarch_mixer(**leaves).sum(), [t for t in leaves.values() if t is not None], allow_unused=True
    )
    assert [g is None for g in grads] == [False, True, False, False]  # p, u, short_weight, k


def test_monarch_mixer_composition_for_other_devices_matches_the_kernel() -> None:
    x = inputs(70, torch.float32, dim=WIDE, batch=3)
    mask = ragged(3, 70)
    spectra = [m2ops.filter_spectrum(x["k" + s], x[f"k{s}_rev"], 70).data for s in ("", "2")]
    args = (x["p"], x["u"], x["short_weight"], x["short_bias"], spectra[0], x["skip"], spectra[1], x["skip2"], mask)
    assert_matches(_monarch_mixer._monarch_mixer(*args), m2ops.monarch_mixer_ref(**double(x), mask=mask), bound=3e-6)
    dout = torch.randn(3, 70, WIDE)
    for residual in (True, False):
        given = args if residual else (*args[:6], None, None, mask)
        ours = torch.ops.m2ops.monarch_mixer_bwd(dout, *given)
        composed = _monarch_mixer._monarch_mixer_bwd(dout, *given)
        for got, want in zip(ours, composed, strict=True):
            assert_matches(got, want.double(), bound=5e-6)


def test_monarch_mixer_refuses_second_gradients() -> None:
    x = inputs(4, torch.float64)
    leaf = x["p"].requires_grad_()
    (grad,) = torch.autograd.grad(m2ops.monarch_mixer(**x).sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="monarch_mixer: its gradient cannot be differentiated again"):
        grad.sum().backward()


def test_monarch_mixer_passes_opcheck() -> None:
    x = inputs(6, torch.float32)
    spectra = [m2ops.filter_spectrum(x["k" + s], x[f"k{s}_rev"], 6).data.requires_grad_() for s in ("", "2")]
    short = (x["short_weight"], x["short_bias"])
    args = (x["p"].requires_grad_(), x["u"], *short, spectra[0], x["skip"], spectra[1], x["skip2"], None)
    torch.library.opcheck(torch.ops.m2ops.monarch_mixer.default, args)


def test_ops_under_autocast_keep_filters_in_float32() -> None:
    x = inputs(16, torch.float32)
    want = exact(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = m2ops.monarch_mixer(**x)
        product = m2ops.blockdiag_matmul(x["u"][..., :4], torch.randn(2, 3, 2))
    assert out.dtype == torch.bfloat16 and product.dtype == torch.bfloat16
    assert_matches(out, want, bound=2e-2)


def test_ops_under_autocast_take_mixed_precision() -> None:
    x = inputs(16, torch.float32)
    want = exact(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = m2ops.monarch_mixer(**{**x, "p": x["p"].bfloat16()})  # a linear layer's output beside its input
        gated = m2ops.fft_conv(x["u"], x["k"], pregate=x["u"].bfloat16(), layout="bld")
    assert out.dtype == torch.bfloat16 and gated.dtype == torch.bfloat16
    assert_matches(out, want, bound=2e-2)


def test_monarch_mixer_takes_filters_of_another_precision() -> None:
    x = inputs(16, torch.float32)
    wide = {n: t if n in ("p", "u") else t.double() for n, t in x.items()}
    assert_matches(m2ops.monarch_mixer(**wide), exact(x), bound=3e-6)


def test_monarch_mixer_compiles_without_graph_breaks() -> None:
    x = inputs(12, torch.float32)
    compiled = torch.compile(m2ops.monarch_mixer, fullgraph=True, backend="aot_eager")
    assert_matches(compiled(**x), exact(x), bound=3e-6)


def test_monarch_mixer_compiles_for_any_length() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(m2ops.monarch_mixer, fullgraph=True, backend="aot_eager", dynamic=True)
    for seqlen in (12, 20):
        x = inputs(seqlen, torch.float32)
        assert_matches(compiled(**x), exact(x), bound=3e-6)
