"""Depthwise causal convolution of small width: short_conv.

Kernels: csrc/cpu/short_conv.inl behind csrc/short_conv.cpp.
Test: tests/ops/test_short_conv.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2ops._layout import (
    apply_mask,
    cast,
    check_layout,
    check_like,
    check_shape,
    check_tensor,
    check_vector,
    compute_dtype,
)
from m2ops._library import autocast, in_forward_mode, refuse_second_gradient, to

MIN_WIDTH, MAX_WIDTH = 2, 7


def short_conv_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, *, layout: str = "bdl"
) -> Tensor:
    """Plain-torch meaning of :func:`short_conv`."""
    channels_last = layout == "bld"
    dtype = compute_dtype(x.dtype)
    taps, width = weight.to(dtype), weight.shape[1]
    signal = apply_mask("short_conv", x, mask, channels_last).to(dtype)
    signal = signal.transpose(1, 2) if channels_last else signal
    padded = F.pad(signal, (width - 1, 0))
    out = sum(padded[..., i : i + signal.shape[-1]] * taps[:, i, None] for i in range(width))
    assert isinstance(out, Tensor)
    out = out if bias is None else out + bias.to(dtype)[:, None]
    out = out.transpose(1, 2) if channels_last else out
    return apply_mask("short_conv", out.to(x.dtype), mask, channels_last)


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, *, layout: str = "bdl"
) -> Tensor:
    """Depthwise causal convolution of small width, as in front of the gates of Monarch Mixer.

    Equivalent to (layout "bdl")::

        F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=dim)[..., :seqlen]

    Args:
        x: (batch, dim, seqlen), or (batch, seqlen, dim) with layout="bld".
        weight: (dim, width) with width 2 .. 7; the last tap multiplies the present position.
        bias: (dim,) or None.
        mask: (batch, seqlen) bool, True at real tokens. Others contribute nothing and give 0.
        layout: "bdl" or "bld".

    Forward-mode derivatives are those of :func:`short_conv_ref`, which then computes in its place.

    Returns:
        Tensor of the shape and dtype of x; summed in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: wrong shape, dtype, device or layout.
    """
    channels_last = check_layout("short_conv", layout)
    check_tensor("short_conv", "x", x, 3, "(batch, seqlen, dim)" if channels_last else "(batch, dim, seqlen)")
    dim = x.shape[2] if channels_last else x.shape[1]
    check_tensor("short_conv", "weight", weight, 2, "(dim, width)")
    check_shape("short_conv", "weight", weight, "(dim, width)", (dim, weight.shape[1]))
    check_like("short_conv", "weight", weight, "x", x, dtype=False)
    if not MIN_WIDTH <= weight.shape[1] <= MAX_WIDTH:
        raise ValueError(f"short_conv: width must be 2 .. 7, got {weight.shape[1]}; use fft_conv for long filters")
    check_vector("short_conv", "bias", bias, "(dim,)", dim, "x", x)
    if in_forward_mode(x, weight, bias):
        return short_conv_ref(x, weight, bias, mask, layout=layout)
    dtype = compute_dtype(x.dtype)
    signal = apply_mask("short_conv", x, mask, channels_last)
    out = torch.ops.m2ops.short_conv(signal, weight.to(dtype), cast(dtype, bias), channels_last)
    return apply_mask("short_conv", out, mask, channels_last)


@torch.library.register_fake("m2ops::short_conv")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("m2ops::short_conv_bwd")
def _(dout: Tensor, x: Tensor, weight: Tensor, channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, weight, bias, ctx.channels_last = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.m2ops.short_conv_bwd(dout, x, weight, ctx.channels_last)
    return dx, dweight, dbias if ctx.has_bias else None, None


torch.library.register_autograd("m2ops::short_conv", _backward, setup_context=_setup)
refuse_second_gradient("short_conv")
autocast("short_conv", lambda dtype, x, weight, bias, last: (to(dtype, x), weight, bias, last))
