"""short_conv against torch's own conv1d in float64, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import m2ops
from m2ops.testing import assert_matches


@pytest.fixture(params=m2ops.available_isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with m2ops.use_isa(request.param):
        yield request.param


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    offset = None if bias is None else bias.double()
    width = weight.shape[1]
    return F.conv1d(x.double(), weight.double()[:, None], offset, padding=width - 1, groups=x.shape[1])[
        ..., : x.shape[2]
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("dim", "seqlen", "width"), [(1, 1, 2), (3, 2, 3), (17, 50, 3), (40, 33, 7), (16, 100, 4)])
@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_short_conv_matches_conv1d(layout: str, dim: int, seqlen: int, width: int, dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(2, dim, seqlen).to(dtype)
    weight, bias = torch.randn(dim, width, dtype=wide), torch.randn(dim, dtype=wide)
    for offset in (bias, None):
        given = x if layout == "bdl" else x.transpose(1, 2).contiguous()
        out = m2ops.short_conv(given, weight, offset, layout=layout)
        assert_matches(out if layout == "bdl" else out.transpose(1, 2), conv1d(x, weight, offset))


@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_short_conv_gradcheck(layout: str) -> None:
    shape = (2, 3, 7) if layout == "bdl" else (2, 7, 3)
    x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (3, 3), (3,)))
    assert torch.autograd.gradcheck(lambda *a: m2ops.short_conv(*a, layout=layout), (x, w, b))


@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_short_conv_gradients_match_conv1d(layout: str) -> None:
    x, w, b = torch.randn(3, 37, 50), torch.randn(37, 3), torch.randn(37)
    dout = torch.randn(3, 37, 50)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    given = leaves[0] if layout == "bdl" else leaves[0].transpose(1, 2)
    out = m2ops.short_conv(given, leaves[1], leaves[2], layout=layout)
    (out if layout == "bdl" else out.transpose(1, 2)).backward(dout)
    wide = [t.double().requires_grad_() for t in (x, w, b)]
    conv1d(*wide).backward(dout.double())
    for leaf, exact in zip(leaves, wide, strict=True):
        assert_matches(leaf.grad, exact.grad)


def test_short_conv_mask_stops_what_lies_under_it() -> None:
    x, w = torch.randn(1, 4, 12), torch.randn(4, 3)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, :5] = False
    out = m2ops.short_conv(x, w, mask=mask)
    assert torch.equal(out[..., :5], torch.zeros(1, 4, 5))
    assert_matches(out[..., 5:], conv1d(x[..., 5:], w, None))


def test_short_conv_passes_opcheck() -> None:
    x, w, b = (torch.randn(s, requires_grad=True) for s in ((2, 5, 9), (5, 3), (5,)))
    torch.library.opcheck(torch.ops.m2ops.short_conv.default, (x, w, b, False))
    torch.library.opcheck(torch.ops.m2ops.short_conv.default, (x.detach().transpose(1, 2), w, None, True))


@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_short_conv_sums_gradients_over_long_sequences(layout: str) -> None:
    x, w, b, dout = torch.rand(2, 17, 20000), torch.randn(17, 3), torch.randn(17), torch.rand(2, 17, 20000)
    x, dout = (t if layout == "bdl" else t.transpose(1, 2).contiguous() for t in (x, dout))
    leaves = [t.requires_grad_() for t in (w, b)]
    m2ops.short_conv(x, *leaves, layout=layout).backward(dout)
    wide = [t.detach().double().requires_grad_() for t in (w, b)]
    m2ops.short_conv_ref(x.double(), *wide, layout=layout).backward(dout.double())
    for leaf, exact in zip(leaves, wide, strict=True):
        assert_matches(leaf.grad, exact.grad)


def test_short_conv_refuses_second_gradients() -> None:
    x, w = (torch.randn(s, requires_grad=True) for s in ((1, 2, 9), (2, 3)))
    gradient = torch.autograd.grad(m2ops.short_conv(x, w).square().sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        gradient.square().sum().backward()


def test_short_conv_takes_taps_of_another_precision() -> None:
    x, w, b = torch.randn(2, 4, 12), torch.randn(4, 3), torch.randn(4)
    assert_matches(m2ops.short_conv(x, w.double(), b.double()), conv1d(x, w, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_short_conv_rounds_to_16_bits_as_torch_does(layout: str, dtype: torch.dtype) -> None:
    """Every pattern of 16 bits times a factor, to nearest even, infinities and NaN too; of one tap, no sums."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    weight = torch.tensor([[0.0, 1.0 + 2.0**-9]])
    x = torch.stack([torch.zeros_like(x), x], dim=1).flatten()  # a zero before each: nothing comes from the other tap
    want = (x.float() * weight[0, 1]).to(dtype)
    channels = 16
    given = x.expand(1, channels, -1) if layout == "bdl" else x[None, :, None].expand(1, -1, channels)
    out = m2ops.short_conv(given.contiguous(), weight.expand(channels, 2), None, layout=layout)
    for channel in out[0] if layout == "bdl" else out[0].T:
        torch.testing.assert_close(channel[1::2].float(), want[1::2].float(), rtol=0, atol=0, equal_nan=True)
