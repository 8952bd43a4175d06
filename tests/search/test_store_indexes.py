"""Indexes of a larger store: kept to their promise, brought up to date, and never the source of a score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from lancedb.index import IvfPq
from lancedb.table import LanceTable
from streamed import Cheap

import m2bert.search.adding
import m2bert.search.stores.lance
from m2bert.search.documents import Document
from m2bert.search.index import SearchIndex
from m2bert.search.stores import lance_indexes
from m2bert.search.stores.lance_indexes import VECTOR_INDEX

COUNT = 600


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_indexes, "INDEXED_FROM", 300)
    monkeypatch.setattr(lance_indexes, "WORDS_BEHIND", 20)
    monkeypatch.setattr(m2bert.search.stores.lance, "CANDIDATES", 100)


def documents(first: int, last: int) -> Any:
    return (Document(f"d{n:04d}", f"river number{n}", metadata={"year": n % 40}) for n in range(first, last))


def made(folder: Path, count: int = COUNT) -> SearchIndex:
    index = SearchIndex(folder, Cheap())
    index.add(documents(0, count))
    return index


def behind(index: SearchIndex) -> dict[str, int]:
    return {each.column: each.behind for each in index.sizes().indexes}


def exact(index: SearchIndex, query: str, count: int, ten: int = 10) -> dict[str, float]:
    """The ten highest cosines, by one product of all vectors."""
    encoder = Cheap()
    names = [f"d{n:04d}" for n in range(count)]
    vectors = encoder.encode([f"river number{n}" for n in range(count)])
    cosines = vectors.astype(np.float64) @ encoder.encode([query])[0]
    return {names[place]: float(cosines[place]) for place in np.argsort(-cosines)[:ten]}


def test_sizes_name_indexes_and_what_is_behind_them(tmp_path: Path) -> None:
    index = made(tmp_path, 299)
    assert behind(index) == {"words": 0} and index.sizes().names == ("year",)
    index.add(documents(299, COUNT))
    sizes = index.sizes()
    assert {each.column: each.rows for each in sizes.indexes} == {
        "id": COUNT, "source": COUNT, "number_of_year": COUNT, "vector": COUNT, "words": COUNT
    }  # fmt: skip
    recall = next(each.recall for each in sizes.indexes if each.column == "vector")
    assert recall is not None and recall >= lance_indexes.PROMISED
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert sizes.bytes == written > COUNT * 64 * 4


def test_new_rows_are_found_at_once_and_indexes_follow(tmp_path: Path) -> None:
    index = made(tmp_path)
    index.add(documents(COUNT, COUNT + 15))
    assert behind(index) == {"id": 15, "source": 15, "number_of_year": 15, "vector": 15, "words": 15}
    last = f"river number{COUNT + 14}"
    for rank in ("words", "whole", "all"):
        assert index.search(last, rank=rank)[0].id == f"d{COUNT + 14:04d}"
    assert index.search(last, where=f"year = {(COUNT + 14) % 40}", rank="words")[0].id == f"d{COUNT + 14:04d}"
    index.add(documents(COUNT + 15, COUNT + 40))  # more than a twentieth, and than twenty
    assert behind(index)["vector"] == behind(index)["words"] == 0
    index.add(documents(COUNT + 40, COUNT + 45))
    index.optimize()
    assert set(behind(index).values()) == {0}
    assert {one.id: one.score for one in index.search(last, rank="whole")} == pytest.approx(
        exact(index, last, COUNT + 45)
    )


def test_the_index_of_words_of_few_long_texts_is_not_made_anew_for_every_portion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("FIRST_CHARACTERS", 1), ("LEAST_CHARACTERS", 1), ("MOST_CHARACTERS", 1)):
        monkeypatch.setattr(m2bert.search.adding, name, number)  # a document a portion
    monkeypatch.setattr(lance_indexes, "LARGE_BYTES", 1)
    made_anew: list[int] = []
    create = LanceTable.create_index

    def noting(self: LanceTable, column: str, *more: Any, **options: Any) -> None:
        made_anew.append(self.count_rows())
        create(self, column, *more, **options)

    monkeypatch.setattr(LanceTable, "create_index", noting)
    index = made(tmp_path, 30)
    # Before the first row, and then whenever a quarter of all is behind; tidying brings it up to date too.
    assert made_anew == [0, 2, 3, 5, 7, 10, 14, 19, 26]
    assert behind(index)["words"] <= 3 and index.search("number29", rank="words")[0].id == "d0029"
    index.optimize()
    assert behind(index) == {"words": 0}


@pytest.mark.parametrize("most", [0, 2, 38])
def test_conditions_that_few_or_many_meet_find_what_a_scan_finds(tmp_path: Path, monkeypatch: Any, most: int) -> None:
    """15, 45 and 585 documents: those that meet it are scanned, all partitions are looked into, or the first ones."""
    monkeypatch.setattr(lance_indexes, "LEAST_PROBES", 1)
    monkeypatch.setattr(lance_indexes, "_found", lambda *arguments: 1.0)
    index = made(tmp_path)
    every = exact(index, "river", COUNT, ten=COUNT)
    expected = [name for name in every if int(name[1:]) % 40 in range(most + 1)][:10]
    found = index.search("river", rank="whole", where=f"year <= {most}")
    assert {one.id for one in found} == set(expected)
    assert {one.id: one.score for one in found} == pytest.approx({name: every[name] for name in expected})


def test_an_index_added_by_hand_gives_no_wrong_scores(tmp_path: Path) -> None:
    """One of few bits, unrefined: it is passed over and told, and replaced when the store is optimized."""
    index = made(tmp_path)
    table = lancedb.connect(str(tmp_path)).open_table("documents")
    table.drop_index(VECTOR_INDEX)
    table.create_index("vector", config=IvfPq(num_partitions=8, num_sub_vectors=2, num_bits=4), name="by_hand")
    found = table.search(Cheap().encode(["river"])[0], vector_column_name="vector").limit(10).to_arrow()
    assert set(found["id"].to_pylist()) != set(exact(index, "river", COUNT))  # what it finds by itself
    results = index.search("river", rank="whole")
    assert {one.id: one.score for one in results} == pytest.approx(exact(index, "river", COUNT), abs=1e-6)
    told = next(each for each in index.sizes().indexes if each.column == "vector")
    assert not told.used and told.recall is None
    index.optimize()
    told = next(each for each in index.sizes().indexes if each.column == "vector")
    assert told.used and told.kind == "IvfRq"


def test_an_index_that_breaks_its_promise_is_not_used(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(lance_indexes, "_found", lambda *arguments: 0.9)
    index = made(tmp_path)
    assert "vector" not in behind(index) and "finds only 0.900" in caplog.text
    results = index.search("river", rank="whole")
    assert {one.id: one.score for one in results} == pytest.approx(exact(index, "river", COUNT), abs=1e-6)


def test_more_partitions_are_looked_into_until_the_promise_is_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(lance_indexes, "LEAST_PROBES", 1)
    monkeypatch.setattr(lance_indexes, "_found", lambda table, query, probes, depth, best: min(probes / 4, 1.0))
    made(tmp_path)
    table = lancedb.connect(str(tmp_path)).open_table("documents")
    checked = lance_indexes.vector_index(table)
    assert checked is not None and (checked.probes, checked.recall, checked.rows) == (4, 1.0, COUNT)


def test_the_check_finds_what_a_scan_finds(tmp_path: Path) -> None:
    made(tmp_path)
    table = lancedb.connect(str(tmp_path)).open_table("documents")
    queries = lance_indexes._sample(table, COUNT)
    vectors = table.to_arrow()["vector"].combine_chunks().flatten().to_numpy().reshape(COUNT, -1)
    ids = table.search().select(["id"]).with_row_id(True).limit(COUNT).to_arrow()["_rowid"].to_numpy()
    best = [set(ids[np.argsort(-(vectors @ query))[:10]].tolist()) for query in queries]
    assert lance_indexes._first_of_scan(table, queries) == best and len(best[0]) == 10
    assert lance_indexes._found(table, queries[0], 20, 100, best[0]) >= 0.9
    assert lance_indexes._found(table, queries[0], 20, 100, best[1]) < 0.9
