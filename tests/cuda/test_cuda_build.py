"""nvcc compiles every kernel without spills, stack or warnings, for each architecture. Needs no GPU."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
ARCHS = ("sm_80", "sm_90a", "sm_100")

# Every kernel of a file: its instances and its ceiling of registers a thread. Two blocks of 512 threads an SM have 64
# each, or 80 at 400 threads; the ceilings leave other compilers room.
KERNELS: dict[str, dict[str, tuple[int, int]]] = {
    # Two element types, 128 .. 256 outputs: their sums alone are 64 .. 128 registers; one block of 256 threads an SM.
    "blockdiag_glu.cu": {"blockdiag_glu_fwd_kernel": (6, 255)},
    "device_table.cu": {},
    "fft_conv.cu": {  # 256 .. 16384 points
        "fft_conv_fwd_kernel": (7, 80),
        "filter_spectrum_fwd_kernel": (7, 80),
        "filter_spectrum_bwd_kernel": (7, 80),
    },
    # Shared memory allows at most 512 threads an SM from 1024 points on: 128 registers for each.
    "fft_conv_bwd.cu": {"fft_conv_bwd_kernel": (7, 128), "fft_conv_bwd_sum_kernel": (1, 64)},
    "fft_conv_long.cu": {
        # Sources and results: in place, a filter, tensors; blocks of 256 threads. Rows of 1024 .. 8192.
        "fft_pass_fwd_kernel": (3, 128),
        "fft_pass_bwd_kernel": (3, 128),
        "fft_rows_kernel": (4, 128),
        "fft_rows_bwd_kernel": (4, 128),
    },
    # 8192 points; two blocks of 256 threads an SM.
    "fft_conv_mma.cu": {"fft_conv_mma_fwd_kernel": (1, 128), "fft_conv_mma_scale_kernel": (1, 64)},
    # Two element types; one block of 512 threads an SM, which keep all factors in registers.
    "fft_conv_mma_short.cu": {"fft_conv_mma_short_kernel": (2, 128)},
    # A thread holds 64 complex values: one block of 256 threads an SM.
    "fft_conv_mma_large.cu": {"fft_conv_mma_large_fwd_kernel": (1, 232)},
    # Two blocks of 256 threads an SM or, above 4096 points, one of 512 have 128 registers for each.
    "fft_conv_mma_bwd.cu": {"fft_conv_mma_bwd_kernel": (7, 128)},
    # Two widths of elements. Four blocks of 256 threads an SM have 64 registers for each.
    "monarch_mixer.cu": {"mixer_rows_kernel": (2, 64), "mixer_sum_kernel": (2, 64)},
    "monarch_mixer_bwd.cu": {"mixer_bwd_kernel": (2, 128)},  # 24 sums over tiles, windows of 14: two blocks an SM
    "short_conv.cu": {  # two widths of elements, aligned rows or not
        "short_conv_fwd_kernel": (4, 80),
        "short_conv_fwd_pairs_kernel": (1, 80),
        "short_conv_bwd_kernel": (4, 112),  # two windows of 14 and 15 sums; two blocks of 256 an SM could have 128
        "short_conv_bwd_sum_kernel": (1, 40),
    },
}

# Where a compiler takes more. 16384 points fill the shared memory: one block of 512 threads an SM, which
# has 128 registers for each.
CEILINGS = {
    ("fft_conv_fwd_kernel", "sm_100"): 96,
    ("filter_spectrum_fwd_kernel", "sm_100"): 96,
    ("filter_spectrum_bwd_kernel", "sm_100"): 96,
    ("fft_conv_bwd_sum_kernel", "sm_100"): 128,  # loads many partial sums at a time; 256 threads
}

# Compiling takes as long as there is machine code to make; its size, unlike the time, is the same on every machine.
# 0.4 MB take about 6.5 s on one core of an AMD EPYC; the library, of 2 architectures and PTX, has to be
# built within 5 minutes on two.
MAX_CODE_BYTES = 4_000_000

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


def compile_cuda(nvcc: str, source: Path, arch: str, out: Path) -> list[Report]:
    """Compile with warnings as errors and read the report of every kernel."""
    code = f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}"
    flags = ["-std=c++17", f"-I{CUDA}", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", code, "-cubin"]
    done = subprocess.run([nvcc, *flags, str(source), "-o", str(out)], capture_output=True, text=True, check=False)
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


@pytest.fixture(scope="module")
def builds(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[list[Report], int]]:
    """Reports and bytes of machine code of every file for every architecture, two compilers at a time."""
    folder = tmp_path_factory.mktemp("cubin")

    def build(job: tuple[str, str]) -> tuple[list[Report], int]:
        name, arch = job
        out = folder / f"{name}.{arch}"
        return compile_cuda(nvcc, CUDA / name, arch, out), out.stat().st_size

    jobs = list(itertools.product(KERNELS, ARCHS))
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(jobs, pool.map(build, jobs), strict=True))


def test_every_source_is_checked() -> None:
    assert sorted(path.name for path in CUDA.glob("*.cu")) == sorted(KERNELS)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_stay_in_registers(
    builds: dict[tuple[str, str], tuple[list[Report], int]], name: str, arch: str
) -> None:
    reports, _ = builds[name, arch]
    assert len(reports) == sum(instances for instances, _ in KERNELS[name].values())
    for kernel, (instances, registers) in KERNELS[name].items():
        ours = [r for r in reports if re.search(rf"\d{kernel}", r.kernel)]  # the length stands before a mangled name
        assert len(ours) == instances
        assert [
            r
            for r in ours
            if r.arch != arch or r.stack or r.spills or r.registers > CEILINGS.get((kernel, arch), registers)
        ] == []


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code_stays_small(builds: dict[tuple[str, str], tuple[list[Report], int]], arch: str) -> None:
    total = sum(builds[name, arch][1] for name in KERNELS)
    assert 10_000 < total <= MAX_CODE_BYTES


def test_register_report_sees_the_stack(nvcc: str, tmp_path: Path) -> None:
    """Negative control: a kernel that needs a stack is reported as such."""
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING_KERNEL)
    reports = [r for arch in ARCHS for r in compile_cuda(nvcc, source, arch, tmp_path / "spilling")]
    assert [r.arch for r in reports] == list(ARCHS)
    assert all(r.stack >= 256 for r in reports)


def test_instruction_wrappers_compile(nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "matrix.cu"
    source.write_text(MATRIX_KERNEL)
    reports = [r for arch in ARCHS for r in compile_cuda(nvcc, source, arch, tmp_path / "matrix")]
    assert [(r.arch, r.stack, r.spills) for r in reports] == [(arch, 0, 0) for arch in ARCHS]
