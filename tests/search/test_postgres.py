"""What is PostgreSQL's alone: its address and password, its errors, its index of vectors, the command line over it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_of_words import BagOfWords
from postgres_server import IN_ADDRESS, PASSWORD

from m2bert.errors import M2BertError, StoreError
from m2bert.search.documents import Document
from m2bert.search.filters import parse_where
from m2bert.search.index import SearchIndex
from m2bert.search.places import place_of, shown


@pytest.fixture
def store(postgres_url: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = "".join(letter for letter in request.node.name if letter.isalnum()).lower()[:40]
    return f"{postgres_url}#own_{os.getpid()}_{name}"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("postgresql://me:pass@host:5432/notes", "postgresql://me@host:5432/notes"),
        ("postgres://me@host/notes#letters", "postgresql://me@host/notes#letters"),
        ("postgresql:///notes?password=pass&host=/tmp", "postgresql:///notes"),
        ("postgresql://me:p%40ss@one,two:5433/notes?sslmode=require", "postgresql://me@one,two:5433/notes"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, name: str) -> None:
    assert shown(address) == name and place_of(address).address is not None


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:qz/xy@inn/notes", "postgresql://me:qz#xy@inn/notes", "postgresql://me:qz?xy@inn/n",
        "postgresql://me:qzxy/notes", "postgresql://me@inn/notes#No-qz", "postgresql://inn/notes#pg_qz",
        "mysql://me:qzxy@inn/notes",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_read_is_refused_without_showing_it(address: str) -> None:
    with pytest.raises(M2BertError) as found:
        place_of(address)
    assert not any(part in str(found.value) for part in ("qz", "xy", "inn"))


def test_failures_are_told_without_the_password(postgres_url: str, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = postgres_url.replace(IN_ADDRESS, "another-secret")
    nobody = postgres_url.replace(postgres_url.rpartition(":")[2].partition("/")[0], "9")
    missing = postgres_url.replace("/postgres", "/nowhere").replace("postgresql:/nowhere", "postgresql://")
    for address, said in ((wrong, "password authentication failed"), (nobody, "refused"), (missing, "does not exist")):
        with pytest.raises(StoreError, match=said) as found:
            SearchIndex(address)
        told = str(found.value) + caplog.text + repr(found.value.__cause__)
        assert not any(secret in told for secret in (PASSWORD, IN_ADDRESS, "another-secret"))
        assert "check that the server runs" in str(found.value)


def test_what_is_not_a_store_is_left_alone(store: str, postgres_url: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    schema = store.partition("#")[2]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        with pytest.raises(M2BertError, match=r"is there and empty; drop it"):
            SearchIndex(store, BagOfWords(dim=8)).add({"a": "river"})
        connection.execute(f"CREATE TABLE {schema}.documents (a int)")
        with pytest.raises(
            M2BertError, match=r"is not a store of m2bert and is left as it is; name another behind a #"
        ):
            SearchIndex(store)
        connection.execute(f"DROP SCHEMA {schema} CASCADE")
        SearchIndex(store, BagOfWords(dim=8)).add({"a": "river"})
        connection.execute(f"UPDATE {schema}.store SET format = 9")
        with pytest.raises(
            M2BertError, match=r"is of format 9, this version of m2bert reads and writes format 1; index"
        ):
            SearchIndex(store)
    with pytest.raises(M2BertError, match=r"keeps vectors of at most 16,000 dimensions, got 16,001; use a folder"):
        SearchIndex(store + "_wide", BagOfWords(dim=16_001)).add({"a": "river"})


def test_a_connection_that_the_server_closed_is_opened_again(store: str, postgres_url: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    index = SearchIndex(store, BagOfWords(dim=8))
    index.add({"a": "river"})
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'm2bert'"
        ).fetchone()[0]
    assert ended >= 1
    assert [found.id for found in index.search("river")] == ["a"]


def test_its_indexes_find_what_a_scan_finds(store: str, postgres_url: str, monkeypatch: Any) -> None:
    from m2bert.search.stores import postgres

    monkeypatch.setattr(postgres, "INDEXED_FROM", 500)
    monkeypatch.setattr(postgres, "CANDIDATES", 40)
    monkeypatch.setattr(postgres, "MOST_LOOKED_AT", 100)
    encoder = BagOfWords(dim=32)
    draw = np.random.default_rng(0)
    texts = {f"d{n:03d}": " ".join(f"w{word}" for word in draw.integers(0, 60, 12)) for n in range(600)}
    # Days that only differ behind what an index of texts has room for, and numbers among them.
    facts = [{"odd": n % 50 == 7, "year": n, "day": n if n < 3 else "x" * 300 + f"{n:03d}"} for n in range(600)]
    index = SearchIndex(store, encoder)
    index.add([Document(name, text, "", (), each) for (name, text), each in zip(texts.items(), facts, strict=True)])
    kinds = {(each.column, each.kind) for each in index.sizes().indexes}
    assert kinds == {("words", "GIN"), ("metadata", "GIN"), ("vector", "HNSW"), ("year", "BTree"), ("day", "BTree")}
    vectors = encoder.encode(list(texts.values()))
    names = list(texts)
    for query in ("w1 w2 w3", "w10 w20 w30 w40", "w59 w0"):
        scores = vectors @ encoder.encode([query])[0]
        order = sorted(range(600), key=lambda i: (-scores[i], names[i]))
        found = index.search(query, 10, rank="whole")
        np.testing.assert_allclose([x.score for x in found], scores[order[:10]], atol=2**-11)
        odd = [names[i] for i in order if i % 50 == 7]  # fewer than the index lists: it goes on to the last of them
        assert {x.id for x in index.search(query, 20, rank="whole", where="odd = true")} == set(odd)
    uses_index = plans(postgres_url, store)
    last = "x" * 300
    for where, those in (
        ("year >= 590", range(590, 600)), ("year BETWEEN 20.5 AND 24", range(21, 25)), ("day < 2", range(2)),
        (f"day > '{last}595'", range(596, 600)), (f"day <= '{last}004'", range(3, 5)),
        (f"day >= '{last}003' AND day < '{last}006'", range(3, 6)), ("day >= 'y'", ()),
    ):  # fmt: skip
        assert {x.id for x in index.search("w1", 20, rank="whole", where=where)} == {names[i] for i in those}, where
        assert uses_index(where), where


def plans(postgres_url: str, store: str) -> Any:
    """Whether PostgreSQL finds the documents of a condition by an index of ours, where it may not look at all rows."""
    psycopg = pytest.importorskip("psycopg")
    from m2bert.search.stores.postgres_where import to_sql

    def uses_index(where: str) -> bool:
        test, values = to_sql(parse_where(where), ["year", "day"])
        with psycopg.connect(postgres_url) as connection:
            connection.execute("SET enable_seqscan = off")
            query = f"EXPLAIN SELECT number FROM {store.partition('#')[2]}.documents WHERE {test}"
            plan = " ".join(row[0] for row in connection.execute(query, values).fetchall())
            return "facts_" in plan and "Index Cond: (" in plan

    return uses_index


def test_the_command_line_over_it(store: str, world: Path, tmp_path: Path, run: Any, monkeypatch: Any) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for name, text in {"a": "river stone", "b": "copper wire"}.items():
        (notes / f"{name}.txt").write_text(text)
    model = world / "model"
    code, out, err = run("index", notes, "--store", store, "--model", model)
    assert code == 0, err
    told = out + err
    code, out, err = run("search", store, "copper", "--rank", "words", "--json")
    assert code == 0 and [result["id"] for result in json.loads(out)["results"]] == ["b.txt"], err
    told += out + err
    (notes / "a.txt").unlink()
    code, out, err = run("index", notes, "--store", store, "--json")
    report = json.loads(out)
    assert (report["removed"], report["store"]) == (1, shown(store))
    told += out + err
    code, out, err = run("stats", store)
    assert code == 0 and "documents  1" in out
    told += out + err
    code, out, err = run("explain", "copper", "b.txt", "--store", store)
    assert code == 0, err
    told += out + err
    code, out, err = run("search", store.replace(IN_ADDRESS, "another-secret"), "copper")
    assert code == 2 and "password authentication failed" in err
    told += out + err
    assert not any(secret in told for secret in (PASSWORD, IN_ADDRESS, "another-secret"))


def test_a_server_serves_it(store: str, world: Path) -> None:
    from m2bert.cli.models import Running
    from m2bert.cli.serve import Served, open_service
    from m2bert.encoders.embedder import Embedder

    SearchIndex(store, Embedder(world / "model")).add({"a": "river stone"})
    service = open_service(Served((store,), (), Running(), False, None, None))
    try:
        name = store.partition("#")[2]
        assert list(service.stores) == [name]
        assert service.stores[name].index.search("river")[0].id == "a"
        assert service.stores[name].without_paths(f"at {shown(store)!r}") == f"at {name!r}"
    finally:
        service.close()
