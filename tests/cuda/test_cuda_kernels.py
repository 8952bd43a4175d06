"""The CUDA kernels, compiled by g++ and run on the CPU under csrc/testing/cuda_emulator.h.

The emulator's own checks, the kernels of each operator against float64 (all under the address and undefined-behaviour
sanitizers), and the same with each barrier left out. The boundary of torch above them: test_cuda_emulated.py.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from emulation import (
    CONVOLUTIONS,
    CSRC,
    FFT_CONV_BWD,
    FFT_CONV_LONG,
    FFT_CONV_MMA,
    GLU,
    MIXER,
    SANITIZERS,
    SHORT_CONV,
    TRANSFORM,
    Objects,
    compile_cpp,
    needs_emulator,
)

pytestmark = needs_emulator

PROGRAMS = {  # a test of csrc/testing, and the kernels it runs
    "fft_conv": TRANSFORM,
    "fft_conv_bwd": CONVOLUTIONS,
    "fft_conv_mma": [*TRANSFORM, FFT_CONV_LONG, FFT_CONV_BWD, *FFT_CONV_MMA],
    "short_conv": [SHORT_CONV],
    "blockdiag_glu": [GLU],
    "monarch_mixer": [*MIXER, SHORT_CONV],
}
BARRIER = re.compile(r"^(?!\s*//).*(__syncthreads\(\)|__syncwarp\(\)|wait_for_copies<\d+>\(\));")
# Every file with barriers, and programs that run its code.
USERS = {
    "fft_passes.cuh": ("fft_conv", "fft_conv_bwd"),
    "fft_bwd_passes.cuh": ("fft_conv_bwd",),
    "fft_conv.cu": ("fft_conv_bwd",),
    "fft_conv_bwd.cu": ("fft_conv_bwd",),
    "fft_conv_long.cu": ("fft_conv_bwd",),
    "fft_conv_mma.cuh": ("fft_conv_mma", "fft_conv_bwd"),
    "fft_conv_mma.cu": ("fft_conv_mma",),
    "fft_conv_mma_short.cu": ("fft_conv_mma",),
    "fft_conv_mma_large.cu": ("fft_conv_mma",),
    "fft_conv_mma_bwd.cu": ("fft_conv_bwd",),
    "monarch_mixer.cu": ("monarch_mixer",),
    "monarch_mixer_bwd.cu": ("monarch_mixer",),
    "short_conv.cu": ("short_conv",),
    "blockdiag_glu.cu": ("blockdiag_glu",),
}


def barriers(path: Path) -> list[int]:
    """Numbers of the lines with a barrier or a wait for copies."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if BARRIER.match(line)]


def run_program(program: Path, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run a test program, with the barrier at `without` (file:line) left out."""
    env = {**os.environ, "M2_EMULATOR_WITHOUT": without}
    return subprocess.run([program], env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def sanitizers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of the sanitizers, none where the compiler comes without their libraries."""
    source = tmp_path_factory.mktemp("probe") / "probe.cpp"
    source.write_text("int main() { return 0; }\n")
    command = ["g++", *SANITIZERS, str(source), "-o", str(source.with_suffix(""))]
    return SANITIZERS if subprocess.run(command, capture_output=True, check=False).returncode == 0 else []


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, sanitizers: list[str]) -> Callable[[str], Path]:
    """Builds a program of PROGRAMS at its first call."""
    folder = tmp_path_factory.mktemp("programs")
    objects = Objects(folder)

    def program(name: str) -> Path:
        if not (folder / name).exists():
            parts = objects(sanitizers, [CSRC / f"testing/test_{name}_cuda.cpp", *PROGRAMS[name]])
            compile_cpp(folder / name, *sanitizers, *parts)
        return folder / name

    return program


def test_cuda_emulator_rejects_faulty_kernels(tmp_path: Path, sanitizers: list[str]) -> None:
    program = compile_cpp(tmp_path / "emulator", *sanitizers, CSRC / "testing/test_cuda_emulator.cpp")
    done = run_program(program)
    assert done.returncode == 0 and "all checks passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_emulated_match_float64(name: str, build: Callable[[str], Path]) -> None:
    done = run_program(build(name))
    assert done.returncode == 0 and "all checks passed" in done.stdout, done.stdout + done.stderr


def test_every_file_with_barriers_has_a_control() -> None:
    assert {path.name for path in (CSRC / "cuda").iterdir() if barriers(path)} == set(USERS)


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in USERS.items() for name in names])
def test_every_barrier_is_missed(file: str, name: str, build: Callable[[str], Path]) -> None:
    """Negative control: with any one barrier or wait left out, the emulator rejects the kernel (status 3)."""
    for line in barriers(CSRC / "cuda" / file):
        done = run_program(build(name), f"{file}:{line}")
        assert done.returncode == 3, f"nothing noticed without {file}:{line}\n{done.stdout}{done.stderr}"
        assert "emulator: block (" in done.stdout and "shared memory" in done.stdout


def test_a_place_without_a_barrier_is_not_missed(build: Callable[[str], Path]) -> None:
    """The control of the control: naming a place is no fault of its own."""
    assert run_program(build("short_conv"), "short_conv.cu:1").returncode == 0
