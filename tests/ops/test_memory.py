"""Freed memory kept by the C library."""

from __future__ import annotations

import platform

import pytest
from forking import run_forked

# Pages that an allocation of 64 MB touches for the first time, once allocations of that size have settled: how many of
# the first ones find no freed block depends on where the heap happens to start (scraps of alignment fill the caches of
# small blocks, seven of a size, before they are joined to the block they were cut from).
PROGRAM = """
import resource, torch, m2ops
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min([faults() for _ in range(40)][20:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_serves_the_next_allocation() -> None:
    def faults(call: str) -> int:
        return int(run_forked(PROGRAM.format(call=call)).stdout)

    assert faults("assert m2ops.keep_freed_memory() is True") * 10 < faults("") + 10
