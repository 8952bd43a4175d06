"""Files and folders that are there whole or not at all, and the questions asked before long work writes to them.

Tests: tests/bench/test_runs.py, tests/train/test_data.py, tests/encoders/test_cache.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from m2bert.errors import M2BertError

if TYPE_CHECKING:
    pass

import shutil
from contextlib import contextmanager


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill; it takes its name only when complete, so that a killed run leaves no half cache behind."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        aside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise M2BertError(
            f"data: cannot keep tokens in {str(folder.parent)!r} ({error}); name another folder"
        ) from error
    yield aside
    try:
        aside.rename(folder)
    except OSError:
        # Somebody else wrote the same cache meanwhile.
        shutil.rmtree(aside)


def default_folder() -> Path:
    """`m2bert/embeddings` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2bert" / "embeddings"


def write_text(path: Path | str, text: str, *, who: str) -> None:
    """Write a UTF-8 file; a reader sees either the old file or the whole new one. Raises M2BertError."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise M2BertError(f"{who}: cannot write {path} ({error.strerror}); choose another place") from error


def check_output(path: Path | None, *, who: str, option: str = "--json") -> None:
    """Raise M2BertError unless a file can lie there; asked before work that may take an hour."""
    if path is not None and not path.absolute().parent.is_dir():
        raise M2BertError(f"{who}: no such folder for {option}: {path.absolute().parent}; create it first")
    if path is not None and path.is_dir():
        raise M2BertError(f"{who}: {option} must name a file, got the folder {path}; add a file name")


def make_output(path: str | Path) -> Path:
    """The folder `path`, made where it is not there. Raises M2BertError when that cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise M2BertError(f"train: output {str(path)!r} must be a writable folder ({error}); name another") from error
    return folder
