"""nvcc compiles every kernel without spills, stack or warnings, for each architecture. Needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
ARCHS = ("sm_80", "sm_90")
KERNELS = ("fft_conv_fwd_kernel", "filter_spectrum_fwd_kernel")
FFT_SIZES = 7  # 256 .. 16384, an instance of each kernel for each
MAX_REGISTERS = 80  # two blocks of 512 threads an SM have 64; the ceiling leaves other compilers room

# An array indexed by a run-time value has to live on the stack.
SPILLING_KERNEL = """
__global__ void spilling_kernel(const int* index, float* x) {
  float kept[64] = {};
  for (int j = 0; j < 1000; ++j) kept[index[j] & 63] += x[j];
  for (int j = 0; j < 64; ++j) x[j] = kept[j];
}
"""

MATRIX_KERNEL = """
#include "mma.cuh"
__global__ void matrix_kernel(const uint32_t* x, float* out) {
  uint32_t a[4] = {x[0], x[1], x[2], x[3]}, b[2] = {m2::cuda::pack_half(out[0], out[1]), x[4]};
  float c[4] = {};
  m2::cuda::mma_half(c, a, b);
  m2::cuda::mma_bfloat(c, a, b);
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = c[i];
}
"""


@dataclass(frozen=True)
class Report:
    """What ptxas says about one kernel on one architecture; bytes a thread."""

    kernel: str
    arch: str
    stack: int
    spills: int
    registers: int


@pytest.fixture(scope="module")
def nvcc() -> str:
    """Path of nvcc: on PATH, in CUDA_HOME, or where the toolkit installs itself."""
    toolkit = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=toolkit)
    if found is None:
        pytest.skip("needs nvcc (on PATH or in CUDA_HOME)")
    return found


def compile_cuda(nvcc: str, source: Path, out: Path) -> list[Report]:
    """Compile with warnings as errors and read the report of every kernel."""
    codes = [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in ARCHS]
    flags = ["-std=c++17", f"-I{CUDA}", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", *codes]
    command = [nvcc, *flags, "-c", str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    return [
        Report(name, arch, int(stack), int(stores) + int(loads), int(registers))
        for name, arch, stack, stores, loads, registers in pattern.findall(done.stdout + done.stderr)
    ]


def test_fft_conv_kernels_stay_in_registers(nvcc: str, tmp_path: Path) -> None:
    reports = compile_cuda(nvcc, CUDA / "fft_conv.cu", tmp_path / "fft_conv.o")
    for arch in ARCHS:
        for kernel in KERNELS:
            assert sum(r.arch == arch and kernel in r.kernel for r in reports) == FFT_SIZES
    assert [r for r in reports if r.stack or r.spills or r.registers > MAX_REGISTERS] == []


def test_register_report_sees_the_stack(nvcc: str, tmp_path: Path) -> None:
    """Negative control: a kernel that needs a stack is reported as such."""
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING_KERNEL)
    reports = compile_cuda(nvcc, source, tmp_path / "spilling.o")
    assert [r.arch for r in reports] == list(ARCHS)
    assert all(r.stack >= 256 for r in reports)


def test_table_and_boundary_headers_compile(nvcc: str, tmp_path: Path) -> None:
    assert compile_cuda(nvcc, CUDA / "device_table.cu", tmp_path / "device_table.o") == []


def test_instruction_wrappers_compile(nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "matrix.cu"
    source.write_text(MATRIX_KERNEL)
    reports = compile_cuda(nvcc, source, tmp_path / "matrix.o")
    assert [(r.arch, r.stack, r.spills) for r in reports] == [(arch, 0, 0) for arch in ARCHS]
