"""Freed memory kept by the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Pages that a second allocation of 64 MB touches for the first time, without and with freed memory kept.
PROGRAM = """
import resource, torch, m2ops
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_serves_the_next_allocation() -> None:
    def faults(call: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("assert m2ops.keep_freed_memory() is True") * 10 < faults("") + 10
