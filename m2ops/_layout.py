"""Argument rules shared by the operators: layouts, masks, shapes. Imports torch only. Test: tests/test_bad_input.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LAYOUTS = ("bdl", "bld")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(op: str, name: str, x: object, ndim: int, axes: str) -> None:
    """Raise unless `x` is a floating tensor of `ndim` dimensions; `axes` names them in the message."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor of shape {axes}, got {type(x).__name__}")
    if x.dim() != ndim:
        raise ValueError(f"{op}: {name} must have shape {axes}, got {tuple(x.shape)}")
    if x.dtype not in FLOATS:
        raise TypeError(
            f"{op}: {name} must be float32, bfloat16, float16 or float64, got {x.dtype}; convert it with .float()"
        )


def check_shape(op: str, name: str, x: Tensor, axes: str, shape: Sequence[int]) -> None:
    """Raise unless `x.shape == shape`."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {axes} = {tuple(shape)}, got {tuple(x.shape)}")


def check_like(op: str, name: str, x: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    """Raise unless `x` lies on the device (and has the dtype) of `other`."""
    if x.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other_name} ({other.device}), got {x.device}; move it with .to()"
        )
    if dtype and x.dtype != other.dtype:
        raise TypeError(
            f"{op}: {name} must have the dtype of {other_name} ({other.dtype}), got {x.dtype}; convert it with .to()"
        )


def check_layout(op: str, layout: str) -> bool:
    """True if channels come last; raise on an unknown layout."""
    if layout not in LAYOUTS:
        raise ValueError(
            f"{op}: layout must be 'bdl' (batch, dim, seqlen) or 'bld' (batch, seqlen, dim), got {layout!r}"
        )
    return layout == "bld"


def check_mask(op: str, mask: Tensor | None, batch: int, seqlen: int) -> None:
    """Raise unless `mask` is None or bool of shape (batch, seqlen)."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{op}: mask must be a bool tensor, True at real tokens, got {got}; use mask.bool()")
    check_shape(op, "mask", mask, "(batch, seqlen)", (batch, seqlen))


def apply_mask(op: str, x: Tensor, mask: Tensor | None, channels_last: bool) -> Tensor:
    """Set the positions of `x` where `mask (batch, seqlen)` is False to exactly 0."""
    if mask is None:
        return x
    batch, seqlen = (x.shape[0], x.shape[1]) if channels_last else (x.shape[0], x.shape[2])
    check_mask(op, mask, batch, seqlen)
    return x.masked_fill(~(mask[:, :, None] if channels_last else mask[:, None, :]), 0.0)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the internals: float64 stays, everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
