"""What memory this process may still take, and giving back what it has freed.

Test: tests/test_memory_left.py.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROCESS, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# What is freed in the meantime is still there; trimming takes some milliseconds.
TRIMMED_EVERY = 0.2
# Where the system does not say.
UNKNOWN = 2 << 30
# Options of mallopt; and the least block of bytes that has pages of its own, as glibc has it at first, and in the end,
# after such large ones were freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LEAST_GIVEN, _MOST_KEPT = 128 << 10, 32 << 20
_kept = False


def memory_left() -> int:
    """Bytes that this process may take beside what it has: the least of what is left to the machine, to the control
    groups that the process is in (containers), and of `ulimit -d` and `ulimit -v`.

    Pages of files, which the kernel takes back, count as free.
    """
    try:
        found = [_numbers(PROCESS / "meminfo")["MemAvailable"] * 1024, *_left_to_groups(), *_left_of_limits()]
    except (OSError, KeyError):  # not Linux
        return UNKNOWN
    return max(min(found), 0)


def keep_freed() -> None:
    """As m2ops.keep_freed_memory, which stays out of programs that load no model, but where `giving_back` says
    otherwise; for programs of ours. Nothing is done where it is not glibc."""
    global _kept
    if (library := _library()) is not None:
        _kept = True
        os.environ.setdefault("M2OPS_POOL_MB", "0")  # one of the two is enough
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)


@contextmanager
def giving_back() -> Iterator[None]:
    """Give the system what the C library keeps of what was freed: inside, large blocks at once, and small ones every
    TRIMMED_EVERY seconds, since each of many threads has its own. Afterwards freed memory is kept as far as glibc goes
    by itself, or as keep_freed said. Nothing is done where it is not glibc, or where the environment says how much is
    kept."""
    if (library := _library()) is None or any(name.startswith("MALLOC_") for name in os.environ):
        yield
        return
    library.mallopt(_MMAP_MAX, 65_536)
    library.mallopt(_MMAP_THRESHOLD, _LEAST_GIVEN)
    library.mallopt(_TRIM_THRESHOLD, _LEAST_GIVEN)
    library.malloc_trim(0)  # what was freed before, at once
    ended = threading.Event()

    def trim() -> None:
        while not ended.wait(TRIMMED_EVERY):
            library.malloc_trim(0)

    trimming = threading.Thread(target=trim, daemon=True)
    trimming.start()
    try:
        yield
    finally:
        ended.set()
        trimming.join()
        library.malloc_trim(0)
        library.mallopt(_MMAP_THRESHOLD, _MOST_KEPT)
        library.mallopt(_TRIM_THRESHOLD, 2 * _MOST_KEPT)
        if _kept:
            keep_freed()


def _library() -> Any:
    """The C library where it is glibc; None elsewhere."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None


def _left_to_groups() -> Iterator[int]:
    for line in (PROCESS / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, limit, used = GROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # In a container the group's own folder may be the root.
        here = root / path.lstrip("/")
        for folder in (here, *(parent for parent in here.parents if parent.is_relative_to(root))):
            try:
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                stat = _numbers(folder / "memory.stat")
            except (OSError, ValueError):  # not there, or without a limit
                continue
            pages = (stat.get(f"total_{name}", stat.get(name, 0)) for name in ("active_file", "inactive_file"))
            yield most - taken + sum(pages)


def _left_of_limits() -> Iterator[int]:
    import resource

    status = _numbers(PROCESS / "self" / "status")
    for kind, name in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most, _ = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            yield most - status[name] * 1024


def _numbers(path: Path) -> dict[str, int]:
    """The numbers of a file of the kernel that has a name and a number in each line."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
