"""A missing or foreign native library: `import m2ops` fails and names the command that builds it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forking import run_forked

import m2ops


@pytest.mark.parametrize(("content", "message"), [(None, "is missing"), (b"not a library", "does not fit torch")])
def test_import_names_the_command_that_builds_the_library(tmp_path: Path, content: bytes | None, message: str) -> None:
    (tmp_path / "m2ops").mkdir()
    for source in Path(m2ops.__file__).parent.glob("*.py"):
        shutil.copy(source, tmp_path / "m2ops")
    if content is not None:
        (tmp_path / "m2ops" / "libm2ops_cpu.so").write_bytes(content)
    done = run_forked(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import m2ops")
    error = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and error.startswith("ImportError: m2ops: the native library")
    assert message in error and "pip install ." in error
