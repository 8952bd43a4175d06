"""Runs CMake with Ninja for the native libraries; metadata is in pyproject.toml, sources in CMakeLists.txt.

Environment: M2OPS_CUDA=0 skips the CUDA library, M2OPS_CUDA_ARCHS="80;90" chooses its architectures,
M2OPS_BUILD_DIR keeps the build folder, MAX_JOBS limits parallel compilation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))
from find_torch import MINIMUM, find_torch  # noqa: E402


class CMakeBuild(build_ext):
    """Configure, build and install into the package folder."""

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        if torch is None:
            version = ".".join(map(str, MINIMUM))
            raise SystemExit(
                f"setup.py: needs torch >= {version} to build against; run 'pip install torch==2.13.0' first"
            )
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(os.environ.get("M2OPS_BUILD_DIR", self.build_temp)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # Under build isolation cmake, ninja and pybind11 live in a folder that is gone the next time; what is compiled
        # stays, what was found is found again.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        include = torch.root / "include"
        options = {
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
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 2))
        defines = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *defines], check=True)
        subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True)
        subprocess.run(["cmake", "--install", build], check=True)

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds: the libraries beside the module travel with it."""
        built = Path(self.build_lib).resolve() / "m2ops"
        for library in sorted(built.glob("*.so")):
            self.copy_file(str(library), str(ROOT / "m2ops" / library.name))


setup(ext_modules=[Extension("m2ops._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
