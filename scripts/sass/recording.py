"""How the operators launch their kernels: asked of the boundary and launch code compiled for the CPU.

csrc/testing/cuda_emulator.h writes a launch to a file instead of running it; tensors are allocated, never touched, so
that sizes of a GPU are asked for on any machine. Test: tests/cuda/test_gpu_model.py.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sass.binary import plain_name

PROCESSORS = 132  # of an H200


@dataclass(frozen=True)
class Recorded:
    """One launch: the kernel's plain name, blocks, threads a block, bytes of shared memory, bytes of its arguments."""

    kernel: str
    grid: int
    threads: int
    shared_bytes: int
    arguments: bytes


class Recorder:
    """Records what operators of torch.ops.m2ops_emulated launch; `library` is build/testing/libm2ops_emulated.so."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))
        self.ops: Any = torch.ops.m2ops_emulated
        self.handle = ctypes.CDLL(str(library))
        listed = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
        entries = [line.split() for line in listed.splitlines() if "_kernel" in line]
        self.names = {int(at, 16): plain_name(symbol) for at, _, symbol in (e for e in entries if len(e) == 3)}

    def launches(self, call: Callable[[Any], object], processors: int = PROCESSORS) -> list[Recorded]:
        """What `call(operators)` launches on a device of so many multiprocessors."""
        with tempfile.TemporaryDirectory(prefix="launches-") as folder:
            path = Path(folder) / "launches"
            path.touch()
            self.handle.m2_emulator_record(str(path).encode(), processors)
            try:
                call(self.ops)
            finally:
                self.handle.m2_emulator_record(b"", 2)
            lines = path.read_text(encoding="ascii").splitlines()
        return [self._parsed(line) for line in lines]

    def _parsed(self, line: str) -> Recorded:
        at, grid, threads, shared, arguments = line.split(" ")
        return Recorded(self.names[int(at, 16)], int(grid), int(threads), int(shared), bytes.fromhex(arguments))
