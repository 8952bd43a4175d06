"""A command under a hard limit on its memory: a control group, whose processes the kernel kills beyond it.

python scripts/measure_memory.py --limit 600 COMMAND...
python scripts/measure_memory.py --limit 600 --texts 1150 FOLDER m2bert index FOLDER --store STORE --model MODEL

The limit counts what all processes of the command have together: their memory, and the pages of files they read, which
the kernel takes back first. It needs the right to make a group (root, outside most containers). --texts: makes so many
texts of a million characters each in a folder before, if they are not there. Prints the most that was taken, without
and with pages of files. Test: tests/search/test_streaming.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path("/sys/fs/cgroup")
CHARACTERS, COMMON_SHARE, RARE = 1_000_000, 0.85, 60_000
WORDS = ["river", "stone", "light", "paper", "engine", "market", "garden", "winter"]


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

    def taken(self) -> tuple[int, int]:
        """Bytes of memory that the group's processes have now, without and with pages of files."""
        lines = (self.folder / "memory.stat").read_text().splitlines()
        stats = {name: int(value) for name, value in map(str.split, lines)}
        own, files = (stats.get(new, stats.get(old, 0)) for new, old in (("anon", "rss"), ("file", "cache")))
        return own, own + files


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


def watched(
    group: Group, command: Sequence[Any], **options: Any
) -> tuple[subprocess.CompletedProcess[str], tuple[int, int]]:
    """Run a command in a group, and the most bytes it was seen to take, without and with pages of files."""
    ended, most = threading.Event(), [(0, 0)]

    def watch() -> None:
        while not ended.wait(0.05):
            own, every = group.taken()
            most[0] = max(most[0][0], own), max(most[0][1], every)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        done = group.run(command, **options)
    finally:
        ended.set()
        thread.join()
    return done, most[0]


def text_of(number: int, characters: int = CHARACTERS) -> str:
    """Sentences of a few words that are common to all texts, and of many rare ones."""
    draw = np.random.default_rng(number)
    count = characters // 6
    common, rare = draw.integers(len(WORDS), size=count), (RARE * draw.random(count) ** 3).astype(int)
    plain = draw.random(count) < COMMON_SHARE
    words = [WORDS[c] if p else f"{WORDS[c]}{r}" for c, r, p in zip(common.tolist(), rare.tolist(), plain, strict=True)]
    lines = (" ".join(words[start : start + 10]) for start in range(0, count, 10))
    return f"only{number}\n" + ".\n".join(lines)[:characters]


def made(folder: Path, texts: int) -> int:
    """Make the texts that are not there; returns the bytes of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(texts):
        path = folder / f"{number:05d}.txt"
        if not path.exists():
            path.write_text(text_of(number), encoding="utf-8")
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, required=True, help="Megabytes.")
    parser.add_argument("--texts", nargs=2, metavar=("COUNT", "FOLDER"), help="Texts to make before.")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    told: dict[str, Any] = {"limit": options.limit}
    if options.texts:
        told["folder_megabytes"] = made(Path(options.texts[1]), int(options.texts[0])) >> 20
    began = time.monotonic()
    with memory_group(options.limit) as group:
        done, most = watched(group, options.command, env=os.environ)
    told |= {"returncode": done.returncode, "seconds": round(time.monotonic() - began)}
    print(json.dumps(told | {"megabytes": most[0] >> 20, "with_pages_of_files": most[1] >> 20}))


if __name__ == "__main__":
    main()
