"""A command under a hard limit on its memory: a control group, whose processes the kernel kills beyond it.

python limited.py MEGABYTES COMMAND...

The limit counts what all processes of the command have together: their memory, and the pages of files they read, which
the kernel takes back first. It needs the right to make a group (root, outside most containers); prints the most that
was taken, with and without pages of files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path("/sys/fs/cgroup")


class CannotLimit(Exception):
    """Why there is no group."""


@dataclass(frozen=True)
class Group:
    """A control group of memory."""

    folder: Path

    def run(self, command: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the group; a process that takes too much is killed (-9)."""
        into = ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *map(str, command)]
        return subprocess.run(into, text=True, check=False, **options)

    def taken(self) -> int:
        """Bytes of memory that the group's processes have now, without pages of files."""
        stats = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return int(stats.get("anon", stats.get("rss", 0)))


@contextmanager
def memory_group(megabytes: int) -> Iterator[Group]:
    """A group that may take so much; raises CannotLimit."""
    second = (ROOT / "cgroup.controllers").exists()
    parent, limit = (ROOT, "memory.max") if second else (ROOT / "memory", "memory.limit_in_bytes")
    try:
        if second and "memory" not in (ROOT / "cgroup.subtree_control").read_text().split():
            raise CannotLimit("groups below the root of the control groups may not limit memory here")
        folder = Path(tempfile.mkdtemp(prefix="m2bert-", dir=parent))
        (folder / limit).write_text(str(megabytes << 20))
    except OSError as error:
        raise CannotLimit(f"no group of limited memory can be made here: {error.strerror}") from error
    try:
        yield Group(folder)
    finally:
        folder.rmdir()


def watched(group: Group, command: Sequence[Any], **options: Any) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run a command in a group, and the most bytes it was seen to take, without pages of files."""
    ended, most = threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.05):
            most[0] = max(most[0], group.taken())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return group.run(command, **options), most[0]
    finally:
        ended.set()
        thread.join()


def main() -> None:
    """See the module."""
    megabytes, command = int(sys.argv[1]), sys.argv[2:]
    with memory_group(megabytes) as group:
        done, most = watched(group, command, env=os.environ)
    print(json.dumps({"returncode": done.returncode, "megabytes": round(most / 2**20), "limit": megabytes}))


if __name__ == "__main__":
    main()
