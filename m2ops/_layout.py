"""Argument rules shared by the operators: layouts, masks, shapes.
Test: tests/search/test_bad_input.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LAYOUTS = ("bdl", "bld")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(op: str, name: str, x: object, ndim: int | None, axes: str) -> None:
    """Raise unless `x` is a floating tensor of `ndim` dimensions (None: any); `axes` names them in the message."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor of shape {axes}, got {type(x).__name__}")
    if ndim is not None and x.dim() != ndim:
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
    """Raise unless `x` lies on the device (and has the dtype, or autocast will give it the dtype) of `other`."""
    if x.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other_name} ({other.device}), got {x.device}; move it with .to()"
        )
    if dtype and x.dtype != other.dtype and not _autocast_unites(x, other):
        raise TypeError(
            f"{op}: {name} must have the dtype of {other_name} ({other.dtype}), got {x.dtype}; convert it with .to()"
        )


def _autocast_unites(x: Tensor, other: Tensor) -> bool:
    """Whether autocast casts both to one dtype; it leaves float64 alone."""
    casts = x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type)
    return casts and torch.float64 not in (x.dtype, other.dtype)


def check_vector(op: str, name: str, x: Tensor | None, axes: str, size: int, other_name: str, other: Tensor) -> None:
    """Raise unless `x` is None or a floating tensor of shape (size,) on the device of `other`."""
    if x is None:
        return
    check_tensor(op, name, x, 1, axes)
    check_shape(op, name, x, axes, (size,))
    check_like(op, name, x, other_name, other, dtype=False)


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
    check_like(op, "mask", mask, "its tensor", x, dtype=False)
    return x.masked_fill(~(mask[:, :, None] if channels_last else mask[:, None, :]), 0.0)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the internals: float64 stays, everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast(dtype: torch.dtype, x: Tensor | None) -> Tensor | None:
    """`x` in `dtype`; None passes."""
    return x if x is None else x.to(dtype)
