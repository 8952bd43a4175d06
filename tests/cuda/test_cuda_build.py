"""The machine code of every CUDA kernel, for each architecture: no spills, no stack, few registers. Needs no GPU.

Read from the installed library where it has machine code for the architecture; for others its PTX is assembled, as
a driver does for a GPU newer than the library. Where there is no library the kernels are compiled (target
kernels_compiled of csrc/testing/machine_code). No architecture has code of its own, so that what compiles for one
without warnings (M2OPS_WERROR of .ci/run) does for all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from native import CHECKED_ARCHS, CSRC, CUDA_LIBRARY, built, find_nvcc, library_archs, machine_code, run

CUDA = CSRC / "cuda"

# Every kernel: its instances and its ceiling of registers a thread. Two blocks of 512 threads an SM have 64 each, or 80
# at 400 threads; the ceilings leave other compilers room.
KERNELS: dict[str, tuple[int, int]] = {
    # Two element types, 128 .. 256 outputs: their sums alone are 64 .. 128 registers; one block of 256 threads an SM.
    "blockdiag_glu_fwd_kernel": (6, 255),
    "fft_conv_fwd_kernel": (7, 80),  # 256 .. 16384 points
    "filter_spectrum_fwd_kernel": (7, 80),
    "filter_spectrum_bwd_kernel": (7, 80),
    # Shared memory allows at most 512 threads an SM from 1024 points on: 128 registers for each.
    "fft_conv_bwd_kernel": (7, 128),
    "fft_conv_bwd_sum_kernel": (1, 64),
    # Sources and results: in place, a filter, tensors; blocks of 256 threads. Rows of 1024 .. 8192.
    "fft_pass_fwd_kernel": (3, 128),
    "fft_pass_bwd_kernel": (3, 128),
    "fft_rows_kernel": (4, 128),
    "fft_rows_bwd_kernel": (4, 128),
    # Three sizes, two element types; two blocks of 256 threads an SM or, of 32768 points, one of 512.
    "tc_conv_fwd_kernel": (6, 128),
    "spectrum_prep_kernel": (1, 64),
    # Two element types; one block of 512 threads an SM, which keep all factors in registers.
    "fft_conv_mma_short_kernel": (2, 128),
    # Up to 4096, 8192 and 16384 points, two element types; two blocks of 256 threads an SM or, of 16384, one of 512.
    "tc_conv_bwd_kernel": (6, 128),
    # Two widths of elements. Four blocks of 256 threads an SM have 64 registers for each.
    "mixer_rows_kernel": (2, 64),
    "mixer_sum_kernel": (2, 64),
    "mixer_bwd_kernel": (2, 128),  # 24 sums over tiles, windows of 14: two blocks an SM
    "short_conv_fwd_kernel": (4, 80),  # two widths of elements, aligned rows or not
    "short_conv_fwd_pairs_kernel": (1, 80),
    "short_conv_bwd_kernel": (4, 112),  # two windows of 14 and 15 sums; two blocks of 256 an SM could have 128
    "short_conv_bwd_sum_kernel": (1, 40),
}

# Where a compiler takes more. 16384 points fill the shared memory: one block of 512 threads an SM, which
# has 128 registers for each.
CEILINGS = {
    ("fft_conv_fwd_kernel", "100"): 96,
    ("filter_spectrum_fwd_kernel", "100"): 96,
    ("filter_spectrum_bwd_kernel", "100"): 96,
    ("fft_conv_bwd_sum_kernel", "100"): 128,  # loads many partial sums at a time; 256 threads
}

# Compiling takes as long as there is machine code to make; its size, unlike the time, is the same on every machine.
# 0.4 MB take about 6.5 s on one core of an AMD EPYC; the library, of 2 architectures and PTX, has to be
# built within 5 minutes on two.
MAX_CODE_BYTES = 4_000_000


@dataclass(frozen=True)
class Report:
    """What the machine code of one kernel for one architecture takes; bytes a thread. Spills lie on the stack."""

    kernel: str
    arch: str
    stack: int
    registers: int


def found(name: str) -> str:
    """Path of a tool of the toolkit: beside nvcc, or from PyPI."""
    nvcc = find_nvcc()
    assert nvcc is not None
    packaged = [str(path) for path in (Path(sysconfig.get_path("purelib")) / "nvidia").glob("cu*/bin")]
    path = shutil.which(name, path=os.pathsep.join([str(Path(nvcc).resolve().parent), *packaged]))
    assert path is not None, f"the tests need {name}; run 'pip install nvidia-cuda-{name}'"
    return path


def cuobjdump(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Output of the toolkit's reader of machine code."""
    return subprocess.run([found("cuobjdump"), *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout


def cubins(arch: str, folder: Path) -> list[Path]:
    """Files of the kernels' machine code for one architecture, in an empty folder."""
    binary = machine_code(arch)
    if binary == CUDA_LIBRARY and arch not in library_archs():
        newest = max(library_archs(), key=int)
        cuobjdump("--extract-ptx", "all", binary, cwd=folder)
        for ptx in folder.glob(f"*.sm_{newest}.ptx"):
            run(found("ptxas"), "-arch", f"sm_{arch}", "--warning-as-error", ptx, "-o", ptx.with_suffix(".cubin"))
    else:
        cuobjdump("--extract-elf", "all", "-arch", f"sm_{arch}", binary, cwd=folder)
    return sorted(folder.glob("*.cubin"))


def read_reports(binary: Path, arch: str) -> list[Report]:
    """The report of every kernel in a file, for one architecture."""
    text = cuobjdump("--dump-resource-usage", "-arch", f"sm_{arch}", binary)
    pattern = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:0 ")
    reports = [Report(name, arch, int(stack), int(registers)) for name, registers, stack in pattern.findall(text)]
    assert len(reports) == text.count("Function ")
    return reports


@pytest.fixture(scope="module", params=CHECKED_ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    if find_nvcc() is None:
        pytest.skip("needs nvcc (on PATH or in CUDA_HOME)")
    return str(request.param)


@pytest.fixture(scope="module")
def code(arch: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return cubins(arch, tmp_path_factory.mktemp(f"sm_{arch}"))


@pytest.fixture(scope="module")
def reports(arch: str, code: list[Path]) -> list[Report]:
    return [report for cubin in code for report in read_reports(cubin, arch)]


def instances(reports: list[Report], kernel: str) -> list[Report]:
    """Reports of one kernel; the length stands before a mangled name."""
    return [report for report in reports if re.search(rf"\d{kernel}", report.kernel)]


def test_every_kernel_has_a_ceiling() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in CUDA.glob("*.cu*"))
    assert set(re.findall(r"__global__[^;{]*?(\w+_kernel)\(", sources)) == set(KERNELS)


def test_nothing_but_these_kernels_is_compiled(reports: list[Report]) -> None:
    assert len(reports) == sum(count for count, _ in KERNELS.values())


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_stay_in_registers(reports: list[Report], arch: str, kernel: str) -> None:
    count, registers = KERNELS[kernel]
    ours = instances(reports, kernel)
    assert len(ours) == count
    assert [r for r in ours if r.stack or r.registers > CEILINGS.get((kernel, arch), registers)] == []


def test_no_architecture_has_code_of_its_own() -> None:
    assert "__CUDA_ARCH__" not in "".join(path.read_text(encoding="utf-8") for path in CUDA.iterdir() if path.is_file())


def test_machine_code_stays_small(code: list[Path]) -> None:
    assert 1_000_000 < sum(path.stat().st_size for path in code) <= MAX_CODE_BYTES


def test_register_report_sees_the_stack(arch: str) -> None:
    """Negative control: a kernel that needs a stack is reported as such."""
    (report,) = instances(read_reports(built("libcontrols.a"), arch), "spilling_kernel")
    assert report.stack >= 256


def test_instruction_wrappers_compile(arch: str) -> None:
    (report,) = instances(read_reports(built("libcontrols.a"), arch), "matrix_kernel")
    assert report.stack == 0
