"""fft_conv and short_conv against compositions of torch.fft (MKL), scipy and conv1d, in the shapes of M2-BERT."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

import m2ops
from m2ops._library import binding

DIM = 768
# Batch chosen so that every length does about the same work.
SHAPES = {
    256: 64, 512: 32, 768: 16, 1024: 16, 2048: 8, 3000: 4, 4096: 4, 5000: 4, 8192: 2, 16384: 1, 20000: 1, 32768: 1,
}  # fmt: skip
Versus = Callable[..., None]


def composite(u: Tensor, k_f: Tensor, skip: Tensor, pre: Tensor, post: Tensor, size: int) -> Tensor:
    """What users write: zero-padded rfft, product, irfft, gates and skip."""
    g = u * pre
    y = torch.fft.irfft(torch.fft.rfft(g, n=size) * k_f, n=size)[..., : u.shape[-1]]
    return (y + skip[:, None] * g) * post


def scipy_composite(u: Tensor, k_f: Tensor, skip: Tensor, pre: Tensor, post: Tensor, size: int) -> Tensor:
    g = u.numpy() * pre.numpy()
    spectrum = scipy.fft.rfft(g, n=size, workers=torch.get_num_threads()) * k_f.numpy()
    y = scipy.fft.irfft(spectrum, n=size, workers=torch.get_num_threads())[..., : u.shape[-1]]
    return torch.from_numpy((y + skip.numpy()[:, None] * g) * post.numpy())


def inputs(batch: int, seqlen: int) -> tuple[Tensor, ...]:
    u, pre, post = (torch.randn(batch, DIM, seqlen) for _ in range(3))
    k, k_rev = (torch.randn(DIM, seqlen) / seqlen**0.5 for _ in range(2))
    return u, pre, post, k, k_rev, torch.randn(DIM)


@pytest.mark.parametrize("seqlen", SHAPES)
def test_fft_conv(versus: Versus, seqlen: int) -> None:
    batch = SHAPES[seqlen]
    u, pre, post, k, k_rev, skip = inputs(batch, seqlen)
    spectrum = m2ops.filter_spectrum(k, k_rev, seqlen)
    k_f = m2ops.filter_spectrum_ref(k, k_rev, seqlen).data
    wide = [t.double() for t in (u, k, k_rev, skip, pre, post)]
    plan = binding.fft_plan(m2ops.fft_size(seqlen))
    rows = batch * DIM
    versus(
        "fft_conv float32, gated, bidirectional, spectrum given",
        f"batch {batch} x {DIM} x {seqlen}",
        lambda: m2ops.fft_conv(u, spectrum, None, skip, pre, post),
        {
            "torch.fft": lambda: composite(u, k_f, skip, pre, post, 2 * seqlen),
            "scipy": lambda: scipy_composite(u, k_f, skip, pre, post, 2 * seqlen),
        },
        exact=m2ops.fft_conv_ref(*wide),
        flops=rows * plan.flops,
        nbytes=4 * 4 * rows * seqlen + spectrum.nbytes,
    )


@pytest.mark.parametrize("seqlen", [128, 256])
def test_fft_conv_bfloat16(versus: Versus, seqlen: int) -> None:
    """Short rows in 16 bits; the peer works in float32, as torch.fft has no bfloat16."""
    u, pre, post, k, k_rev, skip = inputs(64, seqlen)
    spectrum = m2ops.filter_spectrum(k, k_rev, seqlen)
    k_f = m2ops.filter_spectrum_ref(k, k_rev, seqlen).data
    narrow = [t.bfloat16() for t in (u, pre, post)]
    versus(
        "fft_conv bfloat16, gated, bidirectional, spectrum given, against float32",
        f"batch 64 x {DIM} x {seqlen}",
        lambda: m2ops.fft_conv(narrow[0], spectrum, None, skip, *narrow[1:]),
        {"torch.fft": lambda: composite(u, k_f, skip, pre, post, 2 * seqlen)},
        exact=m2ops.fft_conv_ref(*(t.double() for t in (narrow[0], k, k_rev, skip, *narrow[1:]))),
        flops=64 * DIM * binding.fft_plan(m2ops.fft_size(seqlen)).flops,
        nbytes=4 * narrow[0].nbytes + spectrum.nbytes,
    )


@pytest.mark.parametrize("seqlen", [256, 1024, 4096, 16384])
def test_fft_conv_training(versus: Versus, seqlen: int) -> None:
    batch = SHAPES[seqlen]
    u, pre, post, k, k_rev, skip = (t.requires_grad_() for t in inputs(batch, seqlen))
    dout = torch.randn(batch, DIM, seqlen)
    leaves = (u, k, k_rev, skip, pre, post)

    def theirs() -> Tensor:
        size = 2 * seqlen
        kernel = F.pad(k, (0, seqlen)) + F.pad(k_rev.flip(-1), (seqlen, 0))
        out = composite(u, torch.fft.rfft(kernel, n=size), skip, pre, post, size)
        return torch.autograd.grad(out, leaves, dout)[0]

    versus(
        "fft_conv float32, forward and backward, filter in time",
        f"batch {batch} x {DIM} x {seqlen}",
        lambda: torch.autograd.grad(m2ops.fft_conv(u, k, k_rev, skip, pre, post), leaves, dout)[0],
        {"torch.fft": theirs},
        exact=theirs_exact(leaves, dout),
        bound=3e-6,
        rounds=5,
    )


def theirs_exact(leaves: tuple[Tensor, ...], dout: Tensor) -> Tensor:
    wide = [t.detach().double() for t in leaves]
    wide[0].requires_grad_()
    out = m2ops.fft_conv_ref(*wide)
    return torch.autograd.grad(out, wide[0], dout.double())[0]


def test_short_conv(versus: Versus) -> None:
    x, weight, bias = torch.randn(4, 4096, 3 * DIM), torch.randn(3 * DIM, 3), torch.randn(3 * DIM)

    def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=2, groups=3 * DIM)
        return out[..., : x.shape[1]].transpose(1, 2)

    versus(
        "short_conv float32",
        "batch 4 x 4096 x 2304, width 3",
        lambda: m2ops.short_conv(x, weight, bias, layout="bld"),
        {"conv1d": lambda: conv1d(x, weight, bias)},
        exact=conv1d(x.double(), weight.double(), bias.double()),
        nbytes=2 * 4 * x.numel(),
    )
