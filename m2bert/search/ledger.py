"""Which documents a run has met so far, however many: on the disk beyond some megabytes, and gone with the run.

Test: tests/search/test_streaming.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from types import TracebackType

# What a name stands for: a document that holds nothing to find, one that is there and was not read, and one that was.
EMPTY, UNREAD, READ = 0, 1, 2


class Ledger:
    """Names of documents within one source, or pairs of source and id joined by a zero."""

    def __init__(self) -> None:
        self._names = sqlite3.connect("")  # a file of SQLite's own, made when its cache is full
        self._names.execute("CREATE TABLE names (name TEXT PRIMARY KEY, kind INTEGER) WITHOUT ROWID")
        self._names.execute("PRAGMA cache_size = -8000")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._names.close()

    def note(self, name: str, kind: int) -> bool:
        """Note a name; a lower kind does not take the place of a higher one. Whether it was READ before."""
        row = self._names.execute("SELECT kind FROM names WHERE name = ?", (name,)).fetchone()
        if row is None or row[0] < kind:
            self._names.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (name, kind))
        return row is not None and row[0] == READ

    def lower(self, names: Iterable[str], kind: int) -> None:
        """Names that were noted are of another kind after all."""
        self._names.executemany("INSERT OR REPLACE INTO names VALUES (?, ?)", [(name, kind) for name in names])

    def kinds(self, names: Sequence[str]) -> list[int | None]:
        """The kind of each name; None for one that was not met."""
        found = (self._names.execute("SELECT kind FROM names WHERE name = ?", (name,)).fetchone() for name in names)
        return [None if row is None else row[0] for row in found]
