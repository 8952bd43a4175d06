"""Judging an operator: error against an exact result, and negative controls that show the judge is awake.

For tests and benchmarks only.
Test: tests/ops/test_testing.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Relative L2 error allowed against a float64 oracle on the same rounded inputs (docs/architecture.md, numerics).
BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2.5e-3, torch.float16: 1e-3}


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Relative L2 error of `out` against `exact`; infinite if any element of `out` is not finite."""
    if out.shape != exact.shape:
        raise AssertionError(f"shape must be {tuple(exact.shape)}, got {tuple(out.shape)}")
    if not torch.isfinite(out).all():
        return float("inf")
    got, want = out.detach().double(), exact.detach().double()
    norm = want.norm()
    return float((got - want).norm() / norm) if norm > 0 else float(got.norm())


def bound_for(exact: Tensor, dtype: torch.dtype) -> float:
    """The bound of `dtype`, or 1.25 times what rounding `exact` to it costs where a few elements make that larger."""
    return max(BOUNDS[dtype], 1.25 * relative_error(exact.to(dtype), exact))


def assert_matches(out: Tensor, exact: Tensor, *, bound: float | None = None) -> None:
    """Raise AssertionError unless `out` is within its dtype's bound of the float64 `exact`.

    Before it accepts, it checks that it would reject zeros and a slightly damaged copy of `out`.
    """
    limit = bound_for(exact, out.dtype) if bound is None else bound
    error = relative_error(out, exact)
    if not error <= limit:
        raise AssertionError(f"relative L2 error must be at most {limit:.1e}, got {error:.3e}")
    if exact.numel() and float(exact.double().norm()) > 0:
        for name, wrong in _damaged(out, limit).items():
            if relative_error(wrong, exact) <= limit:
                raise AssertionError(f"the check is blind: it accepts {name}")


def _damaged(out: Tensor, limit: float) -> dict[str, Tensor]:
    shifted = out.detach().double().flatten().clone()
    shifted[shifted.abs().argmax()] += 4 * limit * shifted.norm()
    return {"zeros": torch.zeros_like(out), "one damaged element": shifted.view(out.shape)}
