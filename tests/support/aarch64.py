"""The CPU operators in a program of their own: compiled for aarch64 and run by qemu-user, or watched by sanitizers.

The program is csrc/testing/aarch64; inside `with Aarch64(isa)` it answers for the CPU kernels of torch.ops.m2ops.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from native import CSRC, ROOT, run, tool
from torch import Tensor

BUILD = ROOT / "build" / "aarch64"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LIBRARIES = "/usr/aarch64-linux-gnu"  # where Debian's cross compiler keeps those of the target

needs_aarch64 = pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None,
    reason=f"needs {COMPILER} and {EMULATOR} ('make aarch64' installs both)",
)

DTYPES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bool: 11, torch.bfloat16: 15}
NAMES = {code: dtype for dtype, code in DTYPES.items()}


@functools.cache
def program() -> Path:
    """Path of run_operators, built for aarch64."""
    return _built(BUILD, CMAKE_SYSTEM_NAME="Linux", CMAKE_SYSTEM_PROCESSOR="aarch64", CMAKE_CXX_COMPILER=COMPILER)


@functools.cache
def sanitized() -> Path:
    """The same for this machine, which ends at the first byte it has no right to, and at undefined behaviour."""
    flags = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    return _built(ROOT / "build" / "sanitized", CMAKE_BUILD_TYPE="Sanitized", CMAKE_CXX_FLAGS=flags)


def _built(folder: Path, **options: str) -> Path:
    """run_operators in a build folder; other processes of the run wait while one builds."""
    folder.mkdir(parents=True, exist_ok=True)
    options |= {"CMAKE_MAKE_PROGRAM": tool("ninja"), "TORCH_HEADERS": str(Path(torch.__file__).parent / "include")}
    defines = [f"-D{name}={value}" for name, value in options.items()]
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 2))
    with FileLock(folder.with_suffix(".lock")):
        run(tool("cmake"), "-S", CSRC / "testing" / "aarch64", "-B", folder, "-G", "Ninja", *defines)
        run(tool("cmake"), "--build", folder, "--target", "run_operators", "--parallel", jobs)
    return folder / "run_operators"


def emulated(*options: str) -> list[str]:
    """The command that runs the program."""
    return [EMULATOR, "-L", LIBRARIES, *options, str(program())]


class Aarch64:
    """Operators of one instruction set of aarch64, in the place of those of this machine while it is entered."""

    def __init__(self, isa: str, *options: str, command: Sequence[str] = ()) -> None:
        """options: of the emulator. command: what to run in its place."""
        run = command or emulated(*options)
        self.process = subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        words = self._line().split()
        middle = words.index("operators")
        self.isas, self.operators = words[1:middle], words[middle + 1 :]
        self.calls: list[str] = []
        self._send(f"isa {isa}\n".encode())
        assert self._line() == f"ok {isa}"

    def base(self) -> int:
        """Where the library of the kernels lies in the program's memory."""
        self._send(b"base\n")
        return int(self._line().split()[1])

    def __enter__(self) -> Aarch64:
        self._library = torch.library.Library("m2ops", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="[^$]*Overriding a previously registered kernel")
            for name in self.operators:
                self._library.impl(name, functools.partial(self.call, name), "CPU")
        return self

    def __exit__(self, *_: object) -> None:
        self._library._destroy()

    def close(self) -> None:
        """End the program, which must have had no fault."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait() == 0

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of an operator: a tensor or a tuple of them. Raises RuntimeError with the program's words."""
        self.calls.append(name)
        words, memory = [name], b""
        for argument in arguments:
            if isinstance(argument, Tensor):
                span = 1 + sum((n - 1) * s for n, s in zip(argument.shape, argument.stride(), strict=True))
                span = span if argument.numel() else 0
                bits = argument.detach().as_strided((span,), (1,)).contiguous().view(torch.uint8)
                memory += bits.numpy().tobytes()
                sizes, strides = (",".join(map(str, x)) for x in (argument.shape, argument.stride()))
                words.append(f"{DTYPES[argument.dtype]}:{sizes}:{strides}:{span}")
            else:
                words.append("-" if argument is None else str(int(argument)))
        self._send((" ".join(words) + "\n").encode() + memory)
        status, *results = self._line().split(" ")
        if status == "error":
            raise RuntimeError(" ".join(results))
        outputs = tuple(self._tensor(result) for result in results)
        return outputs[0] if len(outputs) == 1 else outputs

    def _tensor(self, description: str) -> Tensor:
        code, sizes = description.split(":")
        dtype, shape = NAMES[int(code)], [int(size) for size in sizes.split(",")]
        out = torch.empty(shape, dtype=dtype)
        assert self.process.stdout is not None
        data = self.process.stdout.read(out.numel() * out.element_size())
        return torch.frombuffer(bytearray(data), dtype=dtype).view(shape) if data else out

    def _send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().rstrip("\n")
        assert line, "run_operators ended"
        return line
