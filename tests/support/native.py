"""Builds what tests run of the native code, the targets of csrc/testing/CMakeLists.txt, into build/testing.

What is built stays there: a second run compiles nothing, and only the sources that changed are compiled again.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from m2ops._library import CUDA_LIBRARY, binding

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "testing"
CHECKED_ARCHS = ("80", "90", "100")  # machine code of the kernels is read for these
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler (c++)")
needs_emulator = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the CUDA emulator runs on x86-64 only"),
    needs_compiler,
]


def find_nvcc() -> str | None:
    """Path of nvcc: on PATH, in CUDA_HOME, or where the toolkit installs itself."""
    toolkit = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path=toolkit)


def library_archs() -> set[str]:
    """Architectures for which the CUDA library that is installed has machine code."""
    archs = binding.build_info()["cuda_archs"].split(",") if CUDA_LIBRARY.is_file() else []
    return {arch.removesuffix("-real") for arch in archs}


def compiled_archs() -> tuple[str, ...]:
    """Those for which tests compile the kernels from their sources: none where there is a CUDA library."""
    return () if CUDA_LIBRARY.is_file() else CHECKED_ARCHS


def machine_code(arch: str) -> Path:
    """The installed library, or the kernels compiled for tests where there is none."""
    return CUDA_LIBRARY if CUDA_LIBRARY.is_file() else built("libkernels_compiled.a")


def tool(name: str) -> str:
    """Path of cmake or ninja; the extra `test` installs both beside Python."""
    found = shutil.which(name, path=TOOLS)
    assert found is not None, f"the tests need {name}; run 'pip install {name}'"
    return found


def run(*command: str | Path) -> None:
    """Run a program; its words are the message on failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


@functools.cache
def configure() -> None:
    """Tell CMake where torch and nvcc are now."""
    torch_folder = Path(torch.__file__).parent
    options = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "CMAKE_CUDA_COMPILER": find_nvcc() or "",
        "TORCH_INCLUDE_DIR": torch_folder / "include",
        "TORCH_LIB_DIR": torch_folder / "lib",
        "CHECKED_ARCHS": ";".join(CHECKED_ARCHS),
        "COMPILED_ARCHS": ";".join(compiled_archs()),
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    run(tool("cmake"), "-S", CSRC / "testing", "-B", BUILD, "-G", "Ninja", *defines)


@functools.cache
def built(target: str) -> Path:
    """The file of a target, whose name is the target's; other processes of the run wait while one builds."""
    BUILD.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 2))
    with FileLock(BUILD.with_suffix(".lock")):
        configure()
        run(tool("cmake"), "--build", BUILD, "--target", target, "--parallel", jobs)
    return BUILD / target
