"""What LanceDB takes into memory at once, by the size of rows and by what is left; and when files are put together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
from lancedb.table import LanceTable
from streamed import Cheap

from m2bert.search.index import SearchIndex
from m2bert.search.stores import lance, lance_memory
from m2bert.search.stores.lance_memory import AHEAD, ROWS, WORDS, fits_together, keep_in_bounds, note_rows
from m2bert.search.stores.lance_places import largest_part_at

MB = 1 << 20


class Table:
    """As many rows, of so many bytes on the disk all together, and of so many in memory each; which are looked at."""

    def __init__(self, rows: int, size: int, nbytes: int = 1) -> None:
        self.rows, self.size, self.nbytes = rows, size, nbytes
        self.looked_at: list[int] = []

    def count_rows(self) -> int:
        return self.rows

    def stats(self) -> dict[str, int]:
        return {"total_bytes": self.size}

    def take_offsets(self, offsets: list[int]) -> Table:
        self.looked_at += offsets
        return self

    def select(self, columns: list[str]) -> Table:
        return self

    def to_arrow(self) -> Table:
        return self


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


def test_rows_at_once_follow_from_what_rows_are_in_memory_not_on_the_disk() -> None:
    """Words compress up to a hundred times: a store that this process has not written was read 512 rows at once."""
    table = Table(1000, 20 * MB, nbytes=2 * MB)
    keep_in_bounds(table)
    assert bounds()[0] == "4" and table.looked_at == list(range(0, 1000, 125))
    table = Table(3, 20 * MB, nbytes=100 * MB)
    keep_in_bounds(table)
    assert bounds()[0] == "1" and table.looked_at == [0]  # no more of such rows


def test_a_store_of_words_that_compress_well_is_read_in_few_rows(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(lance_memory, "LOOKED_AT_FROM", 1)
    SearchIndex(tmp_path, Cheap()).add({f"d{n}": f"only{n} " + "river " * 50_000 for n in range(10)})
    monkeypatch.setattr(lance_memory, "_largest", 1)  # in another process
    table = lancedb.connect(str(tmp_path)).open_table("documents")
    assert table.stats()["total_bytes"] < MB
    keep_in_bounds(table)
    assert bounds()[0] == str(8 * MB // (2 * 6 * 50_000)) == "13"  # a text and its words


@pytest.mark.parametrize(
    ("left", "rows", "part", "fits"),
    [(99, 1000, 0, False), (100, 1000, 0, True), (249, 1000, 10, False), (250, 1000, 10, True), (15, 4, 10, False),
     (16, 4, 10, True)],
)  # fmt: skip
def test_files_are_put_together_where_enough_memory_is_left(
    monkeypatch: pytest.MonkeyPatch, left: int, rows: int, part: int, fits: bool
) -> None:
    """100 MB and fifteen times a part of the index of words, but never more than four times all rows, of 1 MB each."""
    monkeypatch.setattr(lance_memory, "memory_left", lambda: left * MB)
    assert fits_together(Table(rows, 2 * MB, nbytes=MB), part * MB) == fits


def test_the_largest_part_of_an_index_of_words_is_that_of_its_files(tmp_path: Path) -> None:
    assert largest_part_at(tmp_path) == 0
    SearchIndex(tmp_path, Cheap()).add({f"d{n}": f"river number{n}" for n in range(30)})
    folders = list((tmp_path / "documents.lance" / "_indices").iterdir())  # of a part each
    sizes = [sum(path.stat().st_size for path in folder.glob("part_0_[ti]*")) for folder in folders]
    assert largest_part_at(tmp_path) == max(sizes) > 1000


def test_without_memory_files_wait_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "VERSIONS_BETWEEN_TIDYING", 1)
    sessions: list[Any] = []
    session = lancedb.Session

    def noting(**options: int) -> Any:
        sessions.append(session(**options))
        return sessions[-1]

    monkeypatch.setattr(lancedb, "Session", noting)
    files, kept = [], []
    for name, left in (("enough", 400 * MB), ("none", 0)):
        monkeypatch.setattr(lance_memory, "memory_left", lambda left=left: left)
        index = SearchIndex(tmp_path / name, Cheap())
        for number in range(4):
            index.add({f"d{number}": f"river number{number}"})
        files.append(lancedb.connect(str(tmp_path / name)).open_table("documents").stats()["fragment_stats"])
        kept.append(max(each.size_bytes for each in sessions))
        assert [found.id for found in index.search("number3", rank="words")] == ["d3"]
        sessions.clear()
    assert files[0]["num_fragments"] < files[1]["num_fragments"] == 4
    assert kept[1] < 100_000 < kept[0]


def test_read_ahead_follows_from_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for left, ahead in ((0, 16 * MB), (640 * MB, 40 * MB), (1 << 40, 2 << 30)):
        monkeypatch.setattr(lance_memory, "memory_left", lambda left=left: left)
        assert lance_memory.bytes_ahead() == ahead


def test_read_ahead_is_set_when_the_store_is_loaded_unless_it_was() -> None:
    code = f"import os, m2bert.search.stores.lance_memory as m; print(os.environ['{AHEAD}'], m.bytes_ahead())"
    for given in (None, "12345678"):
        env = {name: value for name, value in os.environ.items() if name != AHEAD} | ({AHEAD: given} if given else {})
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        used, own = map(int, done.stdout.split())
        assert used == int(given) if given else 0.5 < used / own < 2  # what is left changes from moment to moment


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
