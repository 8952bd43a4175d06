"""monarch_mixer against its equations written out in float64 with explicit sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import m2ops
from m2ops.testing import assert_matches

DIM = 5


@pytest.fixture(params=m2ops.available_isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with m2ops.use_isa(request.param):
        yield request.param


def inputs(seqlen: int, dtype: torch.dtype, residual: bool = True) -> dict[str, Any]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x: dict[str, Any] = dict(
        p=torch.randn(2, seqlen, 3 * DIM).to(dtype), u=torch.randn(2, seqlen, DIM).to(dtype),
        short_weight=torch.randn(3 * DIM, 3, dtype=wide), short_bias=torch.randn(3 * DIM, dtype=wide),
    )  # fmt: skip
    for suffix in ("", "2") if residual else ("",):
        x["k" + suffix] = torch.randn(DIM, seqlen, dtype=wide) / seqlen**0.5
        x[f"k{suffix}_rev"] = torch.randn(DIM, seqlen, dtype=wide) / seqlen**0.5
        x["skip" + suffix] = torch.randn(DIM, dtype=wide)
    return x


def long_conv(g: Tensor, k: Tensor, k_rev: Tensor, skip: Tensor) -> Tensor:
    out = torch.zeros_like(g)
    for t in range(g.shape[1]):
        for s in range(g.shape[1]):
            tap = k[:, t - s] if s <= t else k_rev[:, s - t - 1]
            out[:, t] += tap * g[:, s]
    return out + skip * g


def exact(x: dict[str, Any]) -> Tensor:
    v = {n: t.double() for n, t in x.items()}
    s = torch.zeros_like(v["p"]) + v["short_bias"]
    for t in range(s.shape[1]):
        for j in range(3):
            if t - 2 + j >= 0:
                s[:, t] += v["short_weight"][:, j] * v["p"][:, t - 2 + j]
    x1, x2, value = s.chunk(3, dim=-1)
    out = x2 * long_conv(x1 * value, v["k"], v["k_rev"], v["skip"])
    return out + long_conv(v["u"], v["k2"], v["k2_rev"], v["skip2"]) if "k2" in v else out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("seqlen", [1, 2, 33])
def test_monarch_mixer_matches_its_equations(seqlen: int, residual: bool, dtype: torch.dtype) -> None:
    x = inputs(seqlen, dtype, residual)
    bound = 3e-6 if dtype == torch.float32 else 1e-12  # a product of three float32 results
    assert_matches(m2ops.monarch_mixer(**x), exact(x), bound=bound)
    assert_matches(m2ops.monarch_mixer_ref(**x), exact(x), bound=bound)


def test_monarch_mixer_bfloat16() -> None:
    x = inputs(40, torch.bfloat16)
    assert_matches(m2ops.monarch_mixer(**x), exact(x), bound=1e-2)  # x1, x2, v and the sum are rounded to bfloat16


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


def test_monarch_mixer_gradcheck() -> None:
    x = inputs(4, torch.float64)
    leaves = [t.requires_grad_() for t in x.values()]
    assert torch.autograd.gradcheck(lambda *a: m2ops.monarch_mixer(**dict(zip(x, a, strict=True))), leaves)


# opcheck itself reads .grad of the intermediate tensors of a composite operator.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
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
