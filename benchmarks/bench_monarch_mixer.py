"""monarch_mixer against the composition of our own operators and against plain torch, in the shapes of M2-BERT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import m2ops
from m2ops._library import binding

DIM = 768
# Batch chosen so that every length does about the same work.
SHAPES = {128: 64, 512: 16, 4096: 4, 32768: 1}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: None}  # a product of three float32 results
Versus = Callable[..., None]
Inputs = dict[str, Any]


def composition(p: Tensor, u: Tensor, short_weight: Tensor, short_bias: Tensor, **x: Any) -> Tensor:
    """The same result from short_conv and fft_conv, each of which reads and writes memory."""
    x1, x2, v = m2ops.short_conv(p, short_weight, short_bias, layout="bld").chunk(3, dim=-1)
    out = m2ops.fft_conv(v, x["k"], x["k_rev"], x["skip"], pregate=x1, postgate=x2, layout="bld")
    return out + m2ops.fft_conv(u, x["k2"], x["k2_rev"], x["skip2"], layout="bld")


def inputs(batch: int, seqlen: int, dtype: torch.dtype) -> Inputs:
    x = dict(
        p=torch.randn(batch, seqlen, 3 * DIM).to(dtype), u=torch.randn(batch, seqlen, DIM).to(dtype),
        short_weight=torch.randn(3 * DIM, 3), short_bias=torch.randn(3 * DIM),
    )  # fmt: skip
    for suffix in ("", "2"):
        x["k" + suffix], x[f"k{suffix}_rev"] = (torch.randn(DIM, seqlen) / seqlen**0.5 for _ in range(2))
        x["skip" + suffix] = torch.randn(DIM)
    return x


def transformed(x: Inputs, transform: Callable[..., Any], seqlen: int) -> Inputs:
    filters = {n: transform(x[n], x[n + "_rev"], seqlen) for n in ("k", "k2")}
    return {**x, **filters, "k_rev": None, "k2_rev": None}


def exact(x: Inputs, dout: Tensor | None = None, channels: int = 32) -> Tensor:
    """The result in float64, or the gradient of p for dout; a few channels at a time, for memory."""
    parts = []
    for first in range(0, DIM, channels):
        part = {n: t[first : first + channels].double() for n, t in x.items() if n not in ("p", "u")}
        thirds = [slice(i * DIM + first, i * DIM + first + channels) for i in range(3)]
        part["p"] = torch.cat([x["p"][..., third] for third in thirds], dim=-1).detach().double()
        part["u"] = x["u"][..., first : first + channels].double()
        for name in ("short_weight", "short_bias"):
            part[name] = torch.cat([x[name][third] for third in thirds]).double()
        if dout is None:
            parts.append(m2ops.monarch_mixer_ref(**part))
            continue
        leaf = part["p"].requires_grad_()
        grad = torch.autograd.grad(m2ops.monarch_mixer_ref(**part), leaf, dout[..., first : first + channels].double())[
            0
        ]
        parts.append(grad.unflatten(-1, (3, channels)))
    return torch.cat(parts, dim=-1).detach().flatten(2)


def costs(x: Inputs, seqlen: int) -> tuple[float, float]:
    """Operations of the two convolutions (two transforms each), bytes of activations and spectra read and written."""
    size = m2ops.fft_size(seqlen)
    activations = (x["p"].nbytes + 2 * x["u"].nbytes) * 1.0
    return 2 * x["u"].shape[0] * DIM * binding.fft_plan(size).flops, activations + 2 * 8 * DIM * size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seqlen", SHAPES)
def test_monarch_mixer(versus: Versus, seqlen: int, dtype: str) -> None:
    x = inputs(SHAPES[seqlen], seqlen, DTYPES[dtype])
    ours, theirs = (transformed(x, f, seqlen) for f in (m2ops.filter_spectrum, m2ops.filter_spectrum_ref))
    flops, nbytes = costs(x, seqlen)
    with torch.no_grad():
        versus(
            "monarch_mixer, bidirectional, spectra given",
            f"{dtype} {SHAPES[seqlen]} x {seqlen} x {DIM}",
            lambda: m2ops.monarch_mixer(**ours),
            {"composition": lambda: composition(**ours), "plain torch": lambda: m2ops.monarch_mixer_ref(**theirs)},
            exact=exact(x),
            bound=BOUNDS[DTYPES[dtype]],
            flops=flops,
            nbytes=nbytes,
            rounds=5,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seqlen", SHAPES)
def test_monarch_mixer_training(versus: Versus, seqlen: int, dtype: str) -> None:
    x = inputs(SHAPES[seqlen], seqlen, DTYPES[dtype])
    dout = torch.randn(x["u"].shape).to(x["u"].dtype)
    want = exact(x, dout)
    leaves = [t.requires_grad_() for t in x.values()]
    flops, nbytes = costs(x, seqlen)

    def gradient(function: Callable[..., Tensor]) -> Tensor:
        return torch.autograd.grad(function(**x), leaves, dout)[0]

    versus(
        "monarch_mixer, forward and backward, filters in time",
        f"{dtype} {SHAPES[seqlen]} x {seqlen} x {DIM}",
        lambda: gradient(m2ops.monarch_mixer),
        {
            "composition": lambda: gradient(composition),
            "plain torch": lambda: gradient(m2ops.monarch_mixer_ref),
        },
        exact=want,
        bound=BOUNDS[DTYPES[dtype]],
        flops=flops * 11 / 4,  # four transforms forward, seven backward; the filters' own are left out
        nbytes=3 * nbytes,
        rounds=3,
    )
