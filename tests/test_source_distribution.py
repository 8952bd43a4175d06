"""A source distribution holds everything the build needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IGNORE = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")


def test_source_distribution_holds_what_the_build_needs(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77 or newer, as the build does")
    tree = tmp_path / "project"
    tree.mkdir()
    for folder in ("csrc", "scripts", "m2ops"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=IGNORE)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, tree)
    program = "import sys; import build_backend; print(build_backend.build_sdist(sys.argv[1]))"
    env = {**os.environ, "PYTHONPATH": str(tree / "scripts")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, cwd=tree, env=env, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    found = [path.relative_to(tree) for folder in ("csrc", "scripts") for path in (tree / folder).rglob("*.*")]
    sources = {str(path) for path in found if path.suffix != ".pyc"}  # which the build itself has made
    needed = sources | {"CMakeLists.txt", "setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md"}
    assert needed <= names, needed - names
