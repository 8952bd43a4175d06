"""What a store knows of the files it mirrors: by their stamps they need not be read again.

It lies beside the table, a SQLite file for each source, and only says what the table holds of which state of a file: an
entry counts while the table has a document of that hash. So it may be lost, or be older than the table, at no more cost
than reading files again.
Test: tests/search/test_mirror.py.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from m2bert.errors import M2BertError

FOLDER = "mirror"
ASKED_AT_ONCE = 500
_TABLE = "CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, stamp TEXT, text_hash TEXT, run TEXT) WITHOUT ROWID"
_Result = TypeVar("_Result")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """The state of a file when it was read, and the hash of the document that was made of it."""

    stamp: str
    text_hash: str


class Mirror:
    """What is known of the files of one source, by the ids of their documents; for one thread, on the disk."""

    def __init__(self, store: Path, source: str) -> None:
        self._source = source
        name = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.path = store / FOLDER / f"{name}.sqlite"
        self._run = uuid.uuid4().hex
        self._before = self.path.with_suffix(".json")  # of versions that kept it so

    def known(self, ids: Sequence[str]) -> dict[str, Seen]:
        """What is known of some; nothing where it cannot be read."""
        if not self.path.exists():
            return {}

        def ask(files: sqlite3.Connection) -> dict[str, Seen]:
            found: dict[str, Seen] = {}
            for start in range(0, len(ids), ASKED_AT_ONCE):
                some = ids[start : start + ASKED_AT_ONCE]
                marks = ", ".join("?" * len(some))
                rows = files.execute(f"SELECT id, stamp, text_hash FROM files WHERE id IN ({marks})", some)
                found |= {identity: Seen(stamp, known) for identity, stamp, known in rows}
            return found

        return self._ask(ask, {})

    def all(self) -> Iterator[tuple[str, Seen]]:
        """What is known of all."""
        if self.path.exists():
            nothing: list[tuple[str, str, str]] = []

            def ask(files: sqlite3.Connection) -> list[tuple[str, str, str]]:
                return files.execute("SELECT id, stamp, text_hash FROM files").fetchall()

            yield from ((identity, Seen(stamp, known)) for identity, stamp, known in self._ask(ask, nothing))

    def note(self, seen: Mapping[str, Seen]) -> None:
        """Keep what is known of some, all of it or nothing. Raises M2BertError where it cannot be written."""
        rows = [(identity, each.stamp, each.text_hash, self._run) for identity, each in seen.items()]
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    def forget_others(self) -> None:
        """Keep only what was noted since this object was made. Raises M2BertError where it cannot be written."""
        if self.path.exists():
            self._write("DELETE FROM files WHERE run != ?", [(self._run,)])
        self._before.unlink(missing_ok=True)

    def _ask(self, ask: Callable[[sqlite3.Connection], _Result], otherwise: _Result) -> _Result:
        try:
            return self._with_files(ask)
        except (sqlite3.Error, OSError) as error:
            logger.warning("%s cannot be read, so that files of %s are read again: %s", self.path, self._source, error)
            return otherwise

    def _write(self, statement: str, rows: Sequence[tuple[str, ...]]) -> None:
        def write(files: sqlite3.Connection) -> None:
            files.executemany(statement, rows)

        try:
            self.path.parent.mkdir(exist_ok=True)
            try:
                self._with_files(write)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self.path.unlink()  # damaged: begin again
                self._with_files(write)
        except (sqlite3.Error, OSError) as error:
            raise M2BertError(
                f"store: cannot write to {str(self.path.parent)!r} ({getattr(error, 'strerror', None) or error}); give "
                f"yourself the permission, or index into a new folder"
            ) from error

    def _with_files(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        files = sqlite3.connect(self.path)
        try:
            with files:
                files.execute(_TABLE)
                return work(files)
        finally:
            files.close()
