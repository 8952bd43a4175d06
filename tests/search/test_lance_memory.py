"""What LanceDB takes into memory at once, by the size of rows and by what is left; and when files are put together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lancedb.table import LanceTable
from streamed import Cheap

from m2bert.search.index import SearchIndex
from m2bert.search.stores import lance, lance_memory
from m2bert.search.stores.lance_memory import ROWS, WORDS, keep_in_bounds, note_rows

MB = 1 << 20


class Table:
    """As many rows, of so many bytes on the disk."""

    def __init__(self, rows: int, size: int) -> None:
        self.rows, self.size = rows, size

    def count_rows(self) -> int:
        return self.rows

    def stats(self) -> dict[str, int]:
        return {"total_bytes": self.size}


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_memory, "_ours", {ROWS, WORDS})
    monkeypatch.setattr(lance_memory, "_largest", 1)
    monkeypatch.setattr(lance_memory, "memory_left", lambda: 400 * MB)
    for name in (ROWS, WORDS):
        monkeypatch.setenv(name, "7")


def bounds() -> tuple[str, str]:
    return os.environ[ROWS], os.environ[WORDS]


def test_rows_at_once_follow_from_their_size_and_words_from_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_in_bounds(Table(0, 0))
    assert bounds() == ("512", "50")
    keep_in_bounds(Table(1000, 1000 * 64 << 10))
    assert bounds() == ("128", "50")
    note_rows(pa.record_batch({"text": pa.array(["x" * MB, "x" * MB])}))
    monkeypatch.setattr(lance_memory, "memory_left", lambda: 0)
    keep_in_bounds(Table(1000, 1000 * 64 << 10))
    assert bounds() == ("7", "16")  # a little more than a megabyte, and the least
    note_rows(pa.record_batch({"text": pa.array(["x" * 20 * MB])}))
    monkeypatch.setattr(lance_memory, "memory_left", lambda: 1 << 50)
    keep_in_bounds(Table(1, 1))
    assert bounds() == ("1", "2048")


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_memory, "_ours", {WORDS})
    keep_in_bounds(Table(1, 1))
    assert bounds() == ("7", "50")


@pytest.mark.parametrize(("file", "wasteful", "least", "most"), [(1 << 40, 100, 6, 12), (1, 100, 1, 1), (1, 0, 6, 12)])
def test_large_files_are_put_together_when_many_versions_are_there_or_old_ones_take_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int, wasteful: float, least: int, most: int
) -> None:
    """Every four versions, two additions each, or every forty; and always the first time."""
    values = {"VERSIONS_BETWEEN_TIDYING": 4, "LARGE_FILE": file, "WASTEFUL": wasteful, "CROWDED": 1e9}
    for name, value in values.items():
        monkeypatch.setattr(lance, name, value)
    times: list[int] = []
    optimize = LanceTable.optimize

    def noting(self: LanceTable, **options: Any) -> None:
        times.append(self.version)
        optimize(self, **options)

    monkeypatch.setattr(LanceTable, "optimize", noting)
    index = SearchIndex(tmp_path, Cheap())
    for number in range(10):
        index.add({f"d{number}": f"river number{number}"})
    assert least <= len(times) <= most
    assert [found.id for found in index.search("number9", rank="words")] == ["d9"]
