"""Runs CMake with Ninja for the native libraries; metadata is in pyproject.toml, sources in CMakeLists.txt.

The libraries go into the wheel, and beside the sources too: the folder m2ops of the checkout is what Python finds first
when it stands there, whatever is installed.

Environment: M2OPS_CUDA=0 skips the CUDA library, M2OPS_CUDA_ARCHS="80;90" chooses its architectures,
M2OPS_BUILD_DIR is the folder of object files (build/native.*), MAX_JOBS limits parallel compilation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))
from find_torch import MINIMUM, Torch, find_torch  # noqa: E402

ABI = str(sysconfig.get_config_var("EXT_SUFFIX")).removesuffix(".so")


class FreshPackages(build_py):
    """Copy the packages into an empty folder: a module that moved or a library of another Python would stay in it."""

    def run(self) -> None:
        if not self.editable_mode:
            for package in ("m2ops", "m2bert"):
                shutil.rmtree(Path(self.build_lib) / package, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Configure, build and install into the package folder."""

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        if torch is None:
            version = ".".join(map(str, MINIMUM))
            raise SystemExit(
                f"setup.py: needs torch >= {version} to build against; run 'pip install torch==2.13.0' first"
            )
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(os.environ.get("M2OPS_BUILD_DIR", ROOT / "build" / f"native{ABI}")).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # Under build isolation cmake, ninja and pybind11 live in a folder that is gone the next time; what is compiled
        # stays, what was found is found again.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        defines = [f"-D{name}={value}" for name, value in cmake_options(torch, target).items()]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 2))
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *defines], check=True)
        subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True)
        subprocess.run(["cmake", "--install", build], check=True)
        put_beside_sources(target)

    def copy_extensions_to_source(self) -> None:
        """Nothing for in-place and editable builds to add: the libraries lie beside the sources after every build."""


def cmake_options(torch: Torch, target: Path) -> dict[str, object]:
    """What CMakeLists.txt is told."""
    import pybind11

    include = torch.root / "include"
    return {
        "CMAKE_INSTALL_PREFIX": target,
        "CMAKE_BUILD_TYPE": "Release",
        "TORCH_INCLUDE_DIRS": f"{include};{include / 'torch/csrc/api/include'}",
        "TORCH_LIB_DIR": torch.root / "lib",
        "TORCH_VERSION": torch.version,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "M2OPS_CUDA": os.environ.get("M2OPS_CUDA", "AUTO"),
        "M2OPS_CUDA_ARCHS": os.environ.get("M2OPS_CUDA_ARCHS", ""),
    }


def put_beside_sources(built: Path) -> None:
    """Replace the libraries in the source folder by those in `built`, as one set: none of an older build remains."""
    sources = ROOT / "m2ops"
    if built == sources:
        return
    for old in libraries(sources):
        old.unlink()  # never written over: a running process may have it mapped
    for library in libraries(built):
        shutil.copy2(library, sources)


def libraries(folder: Path) -> list[Path]:
    """The native libraries in a folder; those of macOS are dylib, its Python modules so."""
    return [path for path in folder.iterdir() if path.suffix in (".so", ".dylib")]


setup(
    ext_modules=[Extension("m2ops._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshPackages},
)
