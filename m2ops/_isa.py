"""Instruction sets of the CPU kernels: which this machine has, which is in use, and how to force one.

The environment variable M2OPS_ISA forces one for the whole process; a wrong name is an error that lists the right
ones. Matrix tiles (AMX) are used beside the best of them for short bfloat16 convolutions; M2OPS_AMX=0 turns them off,
M2OPS_AMX=emulate computes what they would, slowly.
Test: tests/ops/test_isa.py, tests/ops/test_amx.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from m2ops._library import binding


def available_isas() -> list[str]:
    """Names of the instruction sets this machine has, best first."""
    return list(binding.available_isas())


def current_isa() -> str:
    """Name of the instruction set in use. Raises ValueError if M2OPS_ISA names one this machine lacks."""
    return str(binding.current_isa())


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Use the kernels of one instruction set inside the block, in every thread; no matrix tiles unless it is the best.

    Raises ValueError naming the available ones if this machine lacks it.
    """
    before = current_isa()
    binding.select_isa(name)
    try:
        yield
    finally:
        binding.select_isa(before)
