"""The files this package writes: whole or not at all, and where they lie.

A file or folder is made under a name of its own beside its place, written to the disk, and takes its name last: who
reads sees what was there before or all of the new, also after a power cut. What a killed run leaves of that is hidden,
and the next one that writes the same name deletes it once it is a day old.
Test: tests/test_files.py.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import platformdirs

from m2bert.errors import M2BertError

UNFINISHED, REPLACED = ".part", ".old"
# Nothing here writes for as long without a pause, so what is older belongs to nobody.
SECONDS_UNTIL_LEFT = 24 * 3600.0


def cache_folder(part: str) -> Path:
    """The folder `part` of what this package keeps in the user's cache; not made here.

    On Linux `$XDG_CACHE_HOME/m2bert/<part>`, or `~/.cache/m2bert/<part>` where that is not an absolute path.
    """
    return Path(platformdirs.user_cache_dir("m2bert", appauthor=False)) / part


@contextmanager
def whole_file(path: str | os.PathLike[str], *, who: str, parents: bool = False) -> Iterator[BinaryIO]:
    """A file to write bytes into, which is at `path` when all are written; after an exception nothing has changed.

    A link stays, and its target is written. A device or a pipe is written to directly. A file that was there leaves
    its permissions to the new one. `parents`: make the folders above it. Raises M2BertError, beginning with `who`,
    where it cannot be written.
    """
    try:
        if _is_stream(path):
            with open(path, "wb") as stream:
                yield stream
            return
        target = Path(os.path.realpath(path))
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        _delete_left(target)
        aside = _aside(target, UNFINISHED)
        try:
            with aside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                aside.chmod(stat.S_IMODE(target.stat().st_mode))
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        _sync(target.parent)
    except OSError as error:
        raise _unwritable(who, path, error) from error


@contextmanager
def whole_folder(folder: str | os.PathLike[str], *, who: str, replace: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which is at `folder` when all is written; after an exception nothing has changed.

    A folder that is there meanwhile stays, since somebody else has made the same; with `replace` the new one holds
    copies of its files to begin with and takes its place. Raises M2BertError, beginning with `who`, where it cannot be
    written.
    """
    target = Path(os.path.realpath(folder))
    aside = _aside(target, UNFINISHED)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _delete_left(target)
        try:
            if replace and target.is_dir():
                shutil.copytree(target, aside)
            else:
                aside.mkdir()
            yield aside
            _sync_below(aside)
            if replace:
                _exchange(aside, target)
            elif not target.is_dir():
                _rename_unless_there(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _sync(target.parent)
    except OSError as error:
        raise _unwritable(who, folder, error) from error


def write_text(path: str | os.PathLike[str], text: str, *, who: str) -> None:
    """Write a UTF-8 file as :func:`whole_file` does. Raises M2BertError."""
    with whole_file(path, who=who) as file:
        file.write(text.encode("utf-8"))


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


def _is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at `path` that no file may take the place of: a device, a pipe."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _aside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{suffix}")


def _delete_left(target: Path) -> None:
    """Delete what runs that were killed have left of `target`; an old folder only where a new one stands."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}({re.escape(UNFINISHED)}|{re.escape(REPLACED)})")
    for entry in list(target.parent.iterdir()):
        if not (found := ours.fullmatch(entry.name)) or (found[1] == REPLACED and not target.exists()):
            continue
        # Another process may delete it first, and what another user left may not be ours to delete.
        with suppress(FileNotFoundError, PermissionError):
            # The time of the last change of the entry itself, which no copying of times sets back.
            if time.time() - entry.lstat().st_ctime < SECONDS_UNTIL_LEFT:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _exchange(aside: Path, target: Path) -> None:
    """Put `aside` in the place of `target`; the old folder goes only after the new one stands."""
    if not target.exists():
        aside.rename(target)
        return
    old = _aside(target, REPLACED)
    target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _rename_unless_there(aside: Path, target: Path) -> None:
    try:
        aside.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _sync_below(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent) / name)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # a folder cannot be opened there
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(who: str, path: str | os.PathLike[str], error: OSError) -> M2BertError:
    return M2BertError(
        f"{who}: cannot write {os.fspath(path)} ({error.strerror or error}); name another place, or make room"
    )
