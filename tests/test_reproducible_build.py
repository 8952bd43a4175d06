"""The same sources give the same bytes: an object file of the libraries, and a wheel, each made in two folders.

The whole wheel twice, nothing shared: `python scripts/check_installs.py --reproducible` (docs/releasing.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest
import torch
from native import ROOT, needs_compiler, tool

import m2ops

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "build_backend"
backend-path = ["scripts"]

[project]
name = "small"
version = "1"
"""
PLACES = ["first", "another/folder"]


def test_libraries_keep_no_room_for_the_path_of_their_build() -> None:
    """A path that an installation writes over leaves zeros behind the new one, and all that follows lies elsewhere."""
    elffile = pytest.importorskip("elftools.elf.elffile", reason="needs pyelftools, which auditwheel brings on Linux")
    libraries = list(Path(m2ops.__file__).parent.glob("*.so"))
    assert len(libraries) >= 3
    for library in libraries:
        with library.open("rb") as file:
            strings = elffile.ELFFile(file).get_section_by_name(".dynstr").data()
        assert b"\0\0" not in strings, library.name


@needs_compiler
def test_object_files_do_not_say_where_their_sources_lay(tmp_path: Path) -> None:
    objects = []
    for place in PLACES:
        tree, build = tmp_path / place, tmp_path / place / "build"
        for folder in ("plan", "cpu"):
            shutil.copytree(ROOT / "csrc" / folder, tree / "csrc" / folder)
        for source in (ROOT / "CMakeLists.txt", *(ROOT / "csrc").glob("*.*")):
            target = tree / source.relative_to(ROOT)
            shutil.copy(source, target)
        options = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "TORCH_INCLUDE_DIRS": Path(torch.__file__).parent / "include",
            "TORCH_LIB_DIR": Path(torch.__file__).parent / "lib",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": tree / "pip-build" / "pybind11" / "share" / "cmake" / "pybind11",
            "M2OPS_CUDA": 0,
        }
        shutil.copytree(Path(pybind11.__file__).parent, tree / "pip-build" / "pybind11")
        name = "CMakeFiles/m2ops_cpu.dir/csrc/ops.cpp.o"
        env = {**os.environ, "CCACHE_DISABLE": "1"}
        for command in (
            [tool("cmake"), "-S", tree, "-B", build, "-G", "Ninja", *(f"-D{n}={v}" for n, v in options.items())],
            [tool("cmake"), "--build", build, "--target", name],
        ):
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        objects.append((build / name).read_bytes())
        # pip lays pybind11 into another folder for every build: what names it there is compiled anew every time.
        rules = (build / "build.ninja").read_text().split("\n\n")
        compiled_anew = [rule for rule in rules if ".cpp.o: " in rule and "pip-build" in rule]
        assert [rule.split(".cpp.o: ")[0].split("/")[-1] for rule in compiled_anew] == ["bindings"]
    assert b"ops.cpp" in objects[0]  # the libraries do name their sources
    assert objects[0] == objects[1]
    assert str(tmp_path).encode() not in objects[0] and sys.prefix.encode() not in objects[0]


def test_wheels_do_not_say_when_they_were_made(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77 or newer, as the build does")
    wheels = []
    for place, date in zip(PLACES, (1_600_000_000, 1_700_000_000), strict=True):
        tree = tmp_path / place
        (tree / "small").mkdir(parents=True)
        (tree / "small" / "__init__.py").write_text("")
        (tree / "pyproject.toml").write_text(PROJECT)
        shutil.copytree(ROOT / "scripts", tree / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        os.utime(tree / "small" / "__init__.py", (date, date))
        program = "import sys; import build_backend; build_backend.build_wheel(sys.argv[1])"
        env = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
        command = [sys.executable, "-c", program, str(tmp_path / place)]
        env["PYTHONPATH"] = str(tree / "scripts")
        subprocess.run(command, cwd=tree, env=env, capture_output=True, check=True)
        (wheel,) = tree.glob("*.whl")
        wheels.append(wheel.read_bytes())
    assert wheels[0] == wheels[1]
