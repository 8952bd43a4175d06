"""The files this package writes: whole or not at all, and where they lie.

A file or folder is made under a name of its own beside its place, written to the disk, and takes its name last: who
reads sees what was there before or all of the new, also after a power cut. What a killed run leaves of that is hidden,
and the next one that writes the same name deletes it: whoever writes holds a lock, which the system gives back when it
ends. Where there are no such locks (Windows, some network disks) it goes once it is a day old.

A folder changes places with the old one in one step on Linux (renameat2). Where the system or the file system cannot do
that, there are two renames; a kill between them leaves the old folder hidden, and the next writer puts it back first.
Test: tests/test_files.py.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import platformdirs

from m2bert.errors import M2BertError

UNFINISHED, REPLACED = ".part", ".old"
# Where there are no locks: nothing here writes for as long without a pause, so what is older belongs to nobody.
SECONDS_UNTIL_LEFT = 24 * 3600.0


# Errors of the system as libraries in other languages tell them, and how torch tells that it could not write all.
TOLD_BY_LIBRARIES = re.compile(r"\(os error \d+\)|(inline_container|iostream)")


def reason_of_system(error: BaseException) -> str:
    """Why the operating system has refused something, in words; empty for any other error."""
    if isinstance(error, M2BertError):
        return ""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    said = " ".join(str(error).split())
    found = TOLD_BY_LIBRARIES.search(said)
    return "" if not found else "not all could be written" if found[1] else said


@contextmanager
def writing(path: str | os.PathLike[str], *, who: str) -> Iterator[None]:
    """What cannot be written to `path` meanwhile is told in a sentence that begins with `who`: M2BertError."""
    try:
        yield
    except Exception as error:
        if not (reason := reason_of_system(error)):
            raise
        where = os.fspath(path)
        raise M2BertError(f"{who}: cannot write {where} ({reason}); name another place, or make room") from error


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
    with writing(path, who=who):
        if _is_stream(path):
            with open(path, "wb") as stream:
                yield stream
            return
        target = Path(os.path.realpath(path))
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        with _aside(target, lambda path: path.touch(exist_ok=False)) as aside:
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                aside.chmod(stat.S_IMODE(target.stat().st_mode))
            aside.replace(target)
            _sync(target.parent)


@contextmanager
def whole_folder(folder: str | os.PathLike[str], *, who: str, replace: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which is at `folder` when all is written; after an exception nothing has changed.

    A folder that is there meanwhile stays, since somebody else has made the same; with `replace` the new one holds
    copies of its files to begin with and takes its place. Raises M2BertError, beginning with `who`, where it cannot be
    written.
    """
    target = Path(os.path.realpath(folder))
    with writing(folder, who=who):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _aside(target, Path.mkdir) as aside:
            if replace and target.is_dir():
                shutil.copytree(target, aside, dirs_exist_ok=True)
            yield aside
            _sync_below(aside)
            if replace:
                _put_in_place(aside, target)
            elif not target.is_dir():
                _rename_unless_there(aside, target)
            _sync(target.parent)


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


@contextmanager
def _aside(target: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """What `make` makes under a hidden name beside `target`, locked; what has that name in the end is deleted."""
    _delete_left(target)
    aside, lock = _made(target, make)
    try:
        yield aside
    finally:
        _delete(aside)
        if lock is not None:
            os.close(lock)


def _made(target: Path, make: Callable[[Path], object]) -> tuple[Path, int | None]:
    while True:
        aside = _hidden(target, UNFINISHED)
        make(aside)
        try:
            lock = _lock(aside)
        except (FileNotFoundError, BlockingIOError):
            continue  # another process took it for left, in the moment before it was locked
        except OSError:
            return aside, None
        if aside.exists():
            return aside, lock
        os.close(lock)


def _hidden(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{suffix}")


def _lock(path: Path) -> int:
    """Lock the file or folder `path` until the descriptor that is returned is closed, or this process ends.

    Raises BlockingIOError where a process that lives holds it, another OSError where there are no such locks.
    """
    if sys.platform == "win32":
        raise OSError("no locks of folders on this system")
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _delete_left(target: Path) -> None:
    """Delete what runs that were killed have left of `target`; without a `target` the newest old folder becomes it."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}({re.escape(UNFINISHED)}|{re.escape(REPLACED)})")
    found = [(entry, kind[1]) for entry in target.parent.iterdir() if (kind := ours.fullmatch(entry.name))]
    replaced = [entry for entry, kind in found if kind == REPLACED]
    if replaced and not target.exists():
        max(replaced, key=lambda entry: entry.lstat().st_ctime).rename(target)
    for entry, _ in found:
        # What another user left may not be ours to delete.
        with suppress(PermissionError):
            _delete_unless_held(entry)


def _delete_unless_held(entry: Path) -> None:
    lock = None
    try:
        lock = _lock(entry)
    except (FileNotFoundError, BlockingIOError):
        return  # another process deletes it, or writes it
    except OSError:
        # The time of the last change of the entry itself, which no copying of times sets back.
        if time.time() - entry.lstat().st_ctime < SECONDS_UNTIL_LEFT:
            return
    try:
        _delete(entry)
    finally:
        if lock is not None:
            os.close(lock)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _put_in_place(aside: Path, target: Path) -> None:
    """Put `aside` in the place of `target`, so that its name belongs to the old folder, or to none."""
    if not target.exists():
        aside.rename(target)
    elif not _exchange(aside, target):
        old = _hidden(target, REPLACED)
        target.rename(old)
        try:
            aside.rename(target)
        except OSError:
            old.rename(target)
            raise
        old.rename(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step. False where the system or the file system cannot, or will not."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


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
