"""Compiles the CUDA kernels and their tests with g++ for the CPU, under csrc/testing/cuda_emulator.h.

For tests/cuda: test_cuda_kernels.py (programs in C++) and test_cuda_emulated.py (a library of operators for torch).
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FFT_CONV = CSRC / "cuda/fft_conv.cu"
FFT_CONV_BWD = CSRC / "cuda/fft_conv_bwd.cu"
FFT_CONV_LONG = CSRC / "cuda/fft_conv_long.cu"
FFT_CONV_MMA = [CSRC / f"cuda/fft_conv_mma{part}.cu" for part in ("", "_short", "_large")]
FFT_CONV_MMA_BWD = CSRC / "cuda/fft_conv_mma_bwd.cu"
SHORT_CONV = CSRC / "cuda/short_conv.cu"
GLU = CSRC / "cuda/blockdiag_glu.cu"
MIXER = [CSRC / "cuda/monarch_mixer.cu", CSRC / "cuda/monarch_mixer_bwd.cu"]
TRANSFORM = [CSRC / "cuda/fft_plan.cpp", CSRC / "cuda/device_table.cu", FFT_CONV]
CONVOLUTIONS = [*TRANSFORM, FFT_CONV_BWD, FFT_CONV_LONG, *FFT_CONV_MMA, FFT_CONV_MMA_BWD]
KERNELS = [*CONVOLUTIONS, SHORT_CONV, GLU, *MIXER]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

needs_emulator = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the CUDA emulator runs on x86-64 only"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def compile_cpp(out: Path, *args: str | Path) -> Path:
    """Compile with warnings as errors; the compiler's words are the message on failure."""
    flags = ["-std=c++17", "-Og", "-Wall", "-Wextra", "-Werror", "-DM2_CUDA_EMULATED"]
    command = ["g++", *flags, *map(str, args), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


class Objects:
    """Object files of sources, each compiled once for the flags it is asked for; two compilers at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[tuple[str, ...], Path] = {}

    def __call__(self, flags: list[str], sources: list[Path]) -> list[Path]:
        missing = [source for source in sources if (str(source), *flags) not in self.made]

        def build(source: Path) -> Path:
            out = self.folder / f"{source.stem}-{source.suffix[1:]}-{len(self.made)}-{sources.index(source)}.o"
            return compile_cpp(out, *flags, "-c", "-x", "c++", source)

        with ThreadPoolExecutor(max_workers=2) as pool:
            self.made |= {
                (str(source), *flags): out for source, out in zip(missing, pool.map(build, missing), strict=True)
            }
        return [self.made[(str(source), *flags)] for source in sources]
