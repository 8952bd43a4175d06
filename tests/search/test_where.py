"""Conditions on metadata: read as SQLite reads them, and what LanceDB finds by them is what SQLite finds."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_of_words import BagOfWords

from m2bert.errors import M2BertError
from m2bert.search.documents import Document
from m2bert.search.filters import Comparison, denied, parse_where
from m2bert.search.index import SearchIndex
from m2bert.search.stores.fields import MOST_FIELDS, fields_of
from m2bert.search.stores.lance import LanceStore
from m2bert.search.stores.lance_writing import widen

SOURCES = ("reports", "it's", 'say "x"', "100%", "a\\b", "Reports", "naïve 'x'; --")
CONDITIONS = (
    "year >= 2020 AND source = 'reports'",
    "year < 2000 or year>2030",
    "source IN ('it''s', 'say \"x\"', 'none')",
    "not (year = 2020 or source = 'it''s')",
    "NOT year BETWEEN 2005 AND 2025",
    "year NOT IN (2020, 2021) AND NOT NOT source <> 'reports'",
    "year IS NULL",
    "year IS NOT NULL and (source = 'a\\b' or source = 'naïve ''x''; --')",
    "source LIKE '%ports' AND source NOT LIKE 'R%'",
    "source LIKE '_00%'",
    "year = 2.5 OR year = -1e3 OR year = +7.",
    "source = 'reports' AND year > 1990 OR year = 2020 AND source != 'reports'",
    "(((year = 2020)))",
    "source > 'a' AND source <= 'it''s'",
)


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    years: list[float | None] = [2020, 2021, 1985, 2.5, -1000, None, 7, 2026, 2031]
    pairs = itertools.product(years, (*SOURCES, None))
    return {f"d{n}": {"year": year, "source": source} for n, (year, source) in enumerate(pairs)}


@pytest.fixture(scope="module")
def index(rows: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    found = SearchIndex(tmp_path_factory.mktemp("store"), BagOfWords(dim=16))
    found.add(Document(name, f"river {name}", metadata=metadata) for name, metadata in rows.items())
    return found


def found_by(index: SearchIndex, where: str, **options: Any) -> set[str]:
    return {result.id for result in index.search("river", 1000, where=where, **options)}


@pytest.mark.parametrize("where", CONDITIONS)
def test_what_is_found_is_what_sqlite_finds(index: SearchIndex, rows: dict[str, dict[str, Any]], where: str) -> None:
    """A document without a source of its own in its metadata has the empty one it was added under."""
    with sqlite3.connect(":memory:") as database:
        database.execute("PRAGMA case_sensitive_like = ON")
        database.execute("CREATE TABLE documents (id TEXT, year REAL, source TEXT)")
        values = [(name, row["year"], row["source"] or "") for name, row in rows.items()]
        database.executemany("INSERT INTO documents VALUES (?, ?, ?)", values)
        expected = {row[0] for row in database.execute(f"SELECT id FROM documents WHERE {where}")}
    assert 0 < len(expected) < len(rows)
    for rank in ("all", "whole", "words"):
        assert found_by(index, where, rank=rank) == expected


def test_scores_are_those_of_a_search_without_condition(index: SearchIndex) -> None:
    every = {result.id: result.score for result in index.search("river d7", 1000)}
    some = index.search("river d7", 1000, where="year = 2020 OR id = 'd7'")
    assert {one.id: one.score for one in some} == pytest.approx({one.id: every[one.id] for one in some}, rel=1e-6)
    assert some[0].id == "d7" and len(some) == len(SOURCES) + 1


def test_values_keep_their_types(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path, BagOfWords(dim=16))
    metadata: dict[str, dict[str, Any]] = {
        "a": {"x": 1}, "b": {"x": "1"}, "c": {"x": True}, "d": {}, "e": {"x": None}, "f": {"Order": 2, "order": "two"}
    }  # fmt: skip
    index.add(Document(name, "river", metadata=each) for name, each in metadata.items())
    assert found_by(index, "x = 1") == {"a"} and found_by(index, "x = '1'") == {"b"}
    assert found_by(index, "x = true") == {"c"} and found_by(index, "x IN (1, '1')") == {"a", "b"}
    assert found_by(index, "x NOT IN (2, '1')") == {"a"} and found_by(index, "NOT x = 2") == {"a"}
    assert found_by(index, "x IS NULL") == {"d", "e", "f"} and found_by(index, "x IS NOT NULL") == {"a", "b", "c"}
    assert found_by(index, "Order = 2") == {"f"} and found_by(index, "order = 'two' AND \"order\" > 't'") == {"f"}
    assert index.document("f").metadata == {"Order": 2, "order": "two"} and index.document("e").metadata == {}
    assert index.search("river", where="x = false") == []


def test_metadata_that_changes_alone_is_not_embedded_again(tmp_path: Path) -> None:
    encoder = BagOfWords(dim=16)
    index = SearchIndex(tmp_path, encoder)
    index.add([Document("a", "river", metadata={"year": 2020}), Document("b", "river stone")])
    before = index.document("a").vector
    report = index.add([Document("a", "river", metadata={"year": 2021, "kind": "new"}), Document("b", "river stone")])
    assert (report.updated, report.unchanged, report.added, report.embedded) == (1, 1, 0, 0)
    assert found_by(index, "year = 2021 AND kind = 'new'") == {"a"} and found_by(index, "year = 2020") == set()
    assert np.array_equal(index.document("a").vector, before) and before.any()
    report = index.add([Document("a", "river")])
    assert report.updated == 1 and found_by(index, "year IS NULL") == {"a", "b"}


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("year >= ", "at its end"), ("", "must be a condition"), ("year == 2020", "'= 2020'"),
        ("(year = 1", "at its end"),
        ("year = 1; DROP TABLE documents", "'; DROP"), ("1 = 1", "'1 = 1'"), ("year = other", "'other'"),
        ("lower(source) = 'x'", "(source)"), ("year = 1 -- x", "'-- x'"), ("source = 'open", "\"'open\""),
        ("year = 1e999", "finite"), ("a" * 64 + " = 1", "63 characters"), ("year = 1 OR " * 400 + "year = 1", "4,000"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_its_place(index: SearchIndex, where: str, named: str) -> None:
    with pytest.raises(M2BertError, match="search: ") as error:
        index.search("river", where=where)
    assert named in str(error.value) and len(str(error.value)) < 400


def test_a_name_that_no_document_has_is_named(index: SearchIndex, tmp_path: Path) -> None:
    with pytest.raises(M2BertError, match=r"no document of the store has 'yeer'.*source, year"):
        index.search("river", where="yeer = 2020")
    empty = SearchIndex(tmp_path, BagOfWords(dim=16))
    empty.add({"a": "river"})
    with pytest.raises(M2BertError, match="its documents have no metadata"):
        empty.search("river", where="year = 2020")
    assert found_by(empty, "id = 'a' AND source = ''") == {"a"}


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"year": float("nan")}, "nan"), ({"year": 2**60}, "2\\*\\*53"), ({"tags": ["a"]}, "tags"), ({"a b": 1}, "a b"),
        ({"x": "y" * 9000}, "8,192 bytes"), ({5: 1}, "got 5"), ("year", "got str"), ({"x": "\ud800"}, "finite"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_kept_is_refused(tmp_path: Path, metadata: Any, named: str) -> None:
    index = SearchIndex(tmp_path, BagOfWords(dim=16))
    with pytest.raises(M2BertError, match=f"the metadata of document 'b'.*{named}"):
        index.add([Document("a", "river"), Document("b", "river", metadata=metadata)])
    assert index.model is None


def test_more_names_than_a_store_takes_are_refused(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path, BagOfWords(dim=16))
    index.add(Document(f"d{n}", "river", metadata={f"x{n}": n}) for n in range(MOST_FIELDS))
    with pytest.raises(M2BertError, match=r"at most 100 different names .* got 101, the last one 'y'"):
        index.add([Document("more", "river", metadata={"y": 1})])
    assert index.stats().num_documents == MOST_FIELDS and found_by(index, "x99 = 99") == {"d99"}


def test_deep_conditions_are_read() -> None:
    assert parse_where("NOT " * 900 + "x = 1") == Comparison("x", "=", 1.0)
    assert parse_where("(" * 1900 + "x = 1" + ")" * 1900) == Comparison("x", "=", 1.0)
    assert denied(Comparison("x", "<", 1.0)) == Comparison("x", ">=", 1.0)


def test_two_processes_may_add_names_at_once(tmp_path: Path) -> None:
    """Each has the table as it was before the other; the second is refused by the database, looks, and tries again."""
    SearchIndex(tmp_path / "s", BagOfWords(dim=16)).add({"a": "river"})
    store = LanceStore.open(tmp_path / "s")
    tables = [store._database.open_table("documents") for _ in range(2)]
    for table, name in zip(tables, ("year", "place"), strict=True):
        widen(table, store.info, fields_of([{name: 1.0}]))
    names = store._database.open_table("documents").schema.names
    assert len([name for name in names if "year" in name]) == len([name for name in names if "place" in name]) == 1
