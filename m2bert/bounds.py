"""Bounds on what a file may ask for, in one place: lines, expansion, whole files, settings.

A file of a few megabytes can otherwise fill the memory or the day. Each bound has a default far above what honest files
need, an environment variable that raises it, and its row in docs/reliability.md; a refusal names both.
Test: tests/test_bounds.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from m2bert.errors import M2BertError

CHUNK = 1 << 20
# Less than this is never too much for what was packed.
FREELY_EXPANDED = 64 << 20


@dataclass(frozen=True)
class Bound:
    """variable: the environment variable that changes it. default: its value without, in units of `unit`."""

    variable: str
    default: int
    unit: str

    @property
    def value(self) -> int:
        """What holds now. Raises M2BertError where the environment says something else than a number."""
        given = os.environ.get(self.variable, "")
        if not given:
            return self.default
        if not (given.isascii() and given.isdecimal() and int(given[:12]) > 0 and len(given) <= 12):
            raise M2BertError(f"{self.variable} must be a whole number of {self.unit}, 1 or more, got {given!r:.40}")
        return int(given)

    def said(self) -> str:
        """The end of a refusal: the bound and how to raise it."""
        return f"over the limit of {self.value:,} {self.unit} (raise it with {self.variable})"


LINE = Bound("M2BERT_MAX_LINE_MB", 64, "MB a line")
EXPANSION = Bound("M2BERT_MAX_EXPANSION", 100, "times the packed size")
WHOLE_FILE = Bound("M2BERT_MAX_FILE_MB", 1024, "MB a file read whole")
SETTINGS = Bound("M2BERT_MAX_SETTINGS_KB", 256, "KB of settings")
BOUNDS = (LINE, EXPANSION, WHOLE_FILE, SETTINGS)


class TooMuchError(M2BertError):
    """More than a bound allows; `reason` is the end of a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def lines_of(file: IO[bytes], packed: int) -> Iterator[tuple[int, bytes | None]]:
    r"""The lines of an open file that are not blank, as (number, bytes without "\n"); None for one over LINE.

    packed: bytes of the file on the disk. Lines end at "\n" alone. Raises TooMuchError when more than EXPANSION comes
    out of it.
    """
    longest = LINE.value << 20
    most = max(FREELY_EXPANDED, packed * EXPANSION.value)
    number, total, size = 1, 0, 0
    parts: list[bytes] = []
    while chunk := file.read(CHUNK):
        total += len(chunk)
        if total > most:
            raise TooMuchError(f"expands to more than {total >> 20:,} MB from {packed:,} bytes, {EXPANSION.said()}")
        if not size and chunk.endswith(b"\n") and not chunk.strip():  # gigabytes of nothing in seconds
            number += chunk.count(b"\n")
            continue
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            if size + len(piece) > longest:
                yield number, None
            elif size:
                if (line := b"".join([*parts, piece])).strip():
                    yield number, line
            elif piece and not piece.isspace():
                yield number, piece
            parts, size = [], 0
            number += 1
        size += len(rest)
        parts = [*parts, rest] if size <= longest else []
    if size > longest:
        yield number, None
    elif (line := b"".join(parts)).strip():
        yield number, line


def read_whole(path: Path) -> bytes:
    """The bytes of a file. Raises TooMuchError for one over WHOLE_FILE, OSError for what is not a plain file."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(f"{path.name} is not a plain file")
    if state.st_size > WHOLE_FILE.value << 20:
        raise TooMuchError(f"{path} has {state.st_size >> 20:,} MB, {WHOLE_FILE.said()}")
    return path.read_bytes()
