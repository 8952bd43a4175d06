"""The CUDA kernels, compiled for the CPU and run under csrc/testing/cuda_emulator.h.

The emulator's own checks, the kernels of each operator against float64 (all under the address and undefined-behaviour
sanitizers), and the same with each barrier left out. The boundary of torch above them: test_cuda_emulated.py.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from native import CSRC, built, needs_emulator

pytestmark = needs_emulator

PROGRAMS = [path.stem[5:-5] for path in sorted((CSRC / "testing").glob("test_*_cuda.cpp"))]
BARRIER = re.compile(r"^(?!\s*//).*(__syncthreads\(\)|__syncwarp\(\)|wait_for_copies<\d+>\(\));")
# Every file with barriers, and programs that run its code.
USERS = {
    "fft_passes.cuh": ("fft_conv", "fft_conv_bwd"),
    "fft_bwd_passes.cuh": ("fft_conv_bwd",),
    "fft_conv.cu": ("fft_conv_bwd",),
    "fft_conv_bwd.cu": ("fft_conv_bwd",),
    "fft_conv_long.cu": ("fft_conv_bwd",),
    "fft_conv_mma.cuh": ("fft_conv_mma", "fft_conv_bwd"),
    "fft_conv_mma_short.cu": ("fft_conv_mma",),
    "tc_conv.cuh": ("fft_conv_mma", "fft_conv_bwd"),
    "tc_conv.cu": ("fft_conv_mma",),
    "tc_conv_bwd.cu": ("fft_conv_bwd",),
    "spectrum_prep.cu": ("fft_conv_mma",),
    "monarch_mixer.cu": ("monarch_mixer",),
    "monarch_mixer_bwd.cu": ("monarch_mixer",),
    "short_conv.cu": ("short_conv",),
    "blockdiag_glu.cu": ("blockdiag_glu",),
}


def barriers(path: Path) -> list[int]:
    """Numbers of the lines with a barrier or a wait for copies."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if BARRIER.match(line)]


def run_program(name: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run a test program, with the barrier at `without` (file:line) left out."""
    env = {**os.environ, "M2_EMULATOR_WITHOUT": without}
    return subprocess.run([built(name)], env=env, capture_output=True, text=True, check=False)


def test_cuda_emulator_rejects_faulty_kernels() -> None:
    done = run_program("test_cuda_emulator")
    assert done.returncode == 0 and "all checks passed" in done.stdout, done.stdout + done.stderr


def test_there_is_a_program_for_every_operator_with_kernels() -> None:
    boundaries = {path.stem for path in (CSRC / "cuda_ops").glob("*.cpp")}
    assert boundaries and boundaries <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_emulated_match_float64(name: str) -> None:
    done = run_program(f"test_{name}_cuda")
    assert done.returncode == 0 and "all checks passed" in done.stdout, done.stdout + done.stderr


def test_every_file_with_barriers_has_a_control() -> None:
    assert {path.name for path in (CSRC / "cuda").iterdir() if barriers(path)} == set(USERS)


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in USERS.items() for name in names])
def test_every_barrier_is_missed(file: str, name: str) -> None:
    """Negative control: with any one barrier or wait left out, the emulator rejects the kernel (status 3)."""
    for line in barriers(CSRC / "cuda" / file):
        done = run_program(f"test_{name}_cuda", f"{file}:{line}")
        assert done.returncode == 3, f"nothing noticed without {file}:{line}\n{done.stdout}{done.stderr}"
        assert "emulator: block (" in done.stdout and "shared memory" in done.stdout


def test_a_place_without_a_barrier_is_not_missed() -> None:
    """The control of the control: naming a place is no fault of its own."""
    assert run_program("test_short_conv_cuda", "short_conv.cu:1").returncode == 0
