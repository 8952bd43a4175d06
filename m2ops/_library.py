"""Loads the native libraries and holds the handle that registers Python-side implementations.

If they are missing, `import m2ops` fails and names the command that builds them; nothing falls back silently.
Test: tests/ops/test_library.py.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import forward_ad

FOLDER = Path(__file__).resolve().parent
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
CPU_LIBRARY = FOLDER / f"libm2ops_cpu{SUFFIX}"
CUDA_LIBRARY = FOLDER / f"libm2ops_cuda{SUFFIX}"
REMEDY = "build it with 'pip install .' in the project's folder (needs a C++ compiler)"


def _load() -> tuple[Any, bool]:
    if not CPU_LIBRARY.is_file():
        raise ImportError(f"m2ops: the native library is missing ({CPU_LIBRARY.name} in {FOLDER}); {REMEDY}")
    try:
        torch.ops.load_library(str(CPU_LIBRARY))
        binding = importlib.import_module("m2ops._C")
    except (OSError, ImportError) as error:
        raise ImportError(
            f"m2ops: the native library does not fit torch {torch.__version__} or this Python ({error}); {REMEDY}"
        ) from error
    # A wrong M2OPS_ISA, M2OPS_AMX, M2OPS_BF16 or M2OPS_POOL_MB is reported here, not in the middle of a computation.
    binding.current_isa(), binding.amx_state(), binding.bf16_state(), binding.pool_state()
    cuda = torch.version.cuda is not None and CUDA_LIBRARY.is_file()
    if cuda:
        torch.ops.load_library(str(CUDA_LIBRARY))
    return binding, cuda


binding, cuda_loaded = _load()
_handle = torch.library.Library("m2ops", "IMPL")


def implement(op: str, key: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: register a Python function as implementation of `m2ops::op` for a dispatch key."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _handle.impl(op, function, key)
        return function

    return register


def autocast(op: str, cast: Callable[..., tuple[Any, ...]]) -> None:
    """Register the autocast rule of `m2ops::op`: `cast(dtype, *args)` returns the arguments to call it with."""
    overload = getattr(torch.ops.m2ops, op).default
    for device in ("cpu", "cuda"):

        def rule(*args: Any, device: str = device) -> Any:
            with torch.autocast(device, enabled=False):
                return overload(*cast(torch.get_autocast_dtype(device), *args))

        _handle.impl(op, rule, f"Autocast{device.upper()}")


def refuse_second_gradient(op: str) -> None:
    """Make differentiating `m2ops::{op}_bwd` an error; torch alone would warn and leave the terms out."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"{op}: its gradient cannot be differentiated again, got a second backward through it; "
            f"use {op}_ref where second derivatives are needed"
        )

    torch.library.register_autograd(f"m2ops::{op}_bwd", backward)


def in_forward_mode(*tensors: torch.Tensor | None) -> bool:
    """Whether one has a tangent (forward-mode derivatives), which torch would drop without a word: it would be 0.

    Then an operator's reference, which torch differentiates, takes its place; it says so in its documentation.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def to(dtype: torch.dtype, x: torch.Tensor | None) -> torch.Tensor | None:
    """Cast a floating tensor other than float64 (which autocast leaves alone); None passes."""
    return x if x is None or x.dtype in (dtype, torch.float64) else x.to(dtype)
