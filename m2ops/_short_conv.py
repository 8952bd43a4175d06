"""Depthwise causal convolution of small width: short_conv.

Kernels: csrc/cpu/short_conv.inl behind csrc/short_conv.cpp. May import m2ops._library and _layout.
Test: tests/test_short_conv.py.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from m2ops._layout import apply_mask, compute_dtype


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
