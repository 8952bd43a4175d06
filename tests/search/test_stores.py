"""What every store must do, over LanceDB in a folder and over a real PostgreSQL: the same tests for both."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bag_of_words import BagOfWords
from ranked_by_hand import ODD, QUERIES, RANKS, by_hand, mixed_texts, weights_of
from tiny import tiny_embedder

from m2bert.errors import M2BertError
from m2bert.ranking.parts import Mixture
from m2bert.ranking.words import words_of
from m2bert.search.documents import Document
from m2bert.search.index import SearchIndex
from m2bert.search.sections import Section
from m2bert.search.stores import Query

SUPPORT = Path(__file__).resolve().parents[1] / "support"
KINDS = ("lance", "postgres")
# PostgreSQL keeps vectors in 16 bits: 11 of a number's own, so a cosine is off by less than 2**-11.
TOLERANCE = {"lance": 2e-6, "postgres": 2**-11}
numbers = itertools.count()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a store that is not there yet."""
    if kind == "lance":
        return str(tmp_path / "store")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return f"{request.getfixturevalue('postgres_url')}#test_{os.getpid()}_{next(numbers)}"


def bag(**options: Any) -> BagOfWords:
    return BagOfWords(**{"dim": 64, "passage_words": 4} | options)


def test_documents_are_added_replaced_and_deleted_as_they_were_given(store: str) -> None:
    text = "river stone light paper engine market garden winter\x00signal"
    sections = (Section(0, "page 1"), Section(12, "page 2"))
    index = SearchIndex(store, bag())
    index.add([Document("one", text, "letters", sections, {"year": 2020, "who": "Käthe's", "draft": True})])
    record = index.document("one")
    expected = bag().encode_documents([text])[0]
    assert (record.source, record.id, record.sections) == ("letters", "one", sections)
    assert record.text == (text if isinstance(index.place.address, type(None)) else text.replace("\x00", "�"))
    assert record.metadata == {"year": 2020, "who": "Käthe's", "draft": True}
    assert (record.num_tokens, record.num_windows, record.num_truncated) == (8, 1, 0)
    np.testing.assert_allclose(record.vector, expected.vector, atol=2**-11)
    assert record.spans.tolist() == [[passage.start, passage.end] for passage in expected.passages]
    assert record.passages is not None and len(record.passages.scales) == 2
    report = index.add([Document("one", "copper", "letters"), Document("one", "wire", "notes")])
    assert (report.added, report.updated) == (1, 1)
    assert [index.document("one", source).text for source in ("letters", "notes")] == ["copper", "wire"]
    assert index.document("one", "letters").passages is None and index.document("one", "letters").metadata == {}
    assert index.delete(["one", "nobody"], source="letters") == 1
    assert set(index.stats(documents=True).documents) == {("notes", "one")}
    assert list(SearchIndex.open(store).search("copper", rank="words")) == []
    assert [found.id for found in SearchIndex.open(store).search("wire", rank="words")] == ["one"]


def test_an_update_makes_the_store_agree_with_its_source(store: str) -> None:
    index = SearchIndex(store, bag())
    index.add({"other": "river"})
    index.update({"it's": "stone", "b": "light", "c": "paper"}, source="letters")
    report = index.update({"b": "light", "c": "engine", "d": "market"}, source="letters")
    assert (report.added, report.updated, report.unchanged, report.removed) == (1, 1, 1, 1)
    states = SearchIndex.open(store).stats(documents=True).documents
    assert set(states) == {("", "other"), ("letters", "b"), ("letters", "c"), ("letters", "d")}
    assert list(index.search("stone", rank="words")) == []


@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_those_by_hand(kind: str, store: str, query: str, texts: dict[str, str], by_kind: Any) -> None:
    index, embedder = by_kind(kind, store)
    parts = by_hand(embedder, texts, query)
    for rank in RANKS:
        weights = weights_of(rank)
        expected = {name: sum(weights[part] * own[part] for part in weights) for name, own in parts.items()}
        found = index.search(query, len(texts), passages=0, rank=rank)
        if rank == "words":
            expected = {name: score for name, score in expected.items() if score > 0}
        assert {result.id for result in found} == set(expected)
        scores = [result.score for result in found]
        np.testing.assert_allclose(scores, [expected[result.id] for result in found], atol=TOLERANCE[kind], rtol=1e-5)
        assert scores == sorted(scores, reverse=True)
        first = index.search(query, 5, passages=0, rank=rank)
        assert [result.id for result in first] == [result.id for result in found][:5]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {**mixed_texts(12), **ODD}


@pytest.fixture(scope="module")
def by_kind(texts: dict[str, str]) -> Any:
    """The index of the texts in a store of a kind, filled by three changes, and its embedder."""
    made: dict[str, Any] = {}

    def index_of(kind: str, store: str) -> Any:
        if kind not in made:
            embedder = tiny_embedder()
            index = SearchIndex(store, embedder)
            names = list(texts)
            index.add({name: "heron " * 30 for name in names[:5]} | {"gone": "zebra heron"})
            index.add({name: texts[name] for name in names[:10]})
            index.delete(["gone"])
            index.add({name: texts[name] for name in names[10:]})
            made[kind] = index, embedder
        return made[kind]

    return index_of


def test_what_words_add_to_one_document(kind: str, store: str, texts: dict[str, str], by_kind: Any) -> None:
    index, _ = by_kind(kind, store)
    best = index.search("heron heron zebra nobody", 1, rank="words")[0]
    shares = index.word_scores("heron heron zebra nobody", index.document(best.id))
    assert set(shares) == {"heron", "zebra"} and min(shares.values()) > 0
    assert sum(shares.values()) == pytest.approx(best.score, rel=1e-5)


METADATA = {
    "a": {"year": 2019, "kind": "report", "draft": True, "none": None},
    "b": {"year": 2020.5, "kind": "re_ort", "draft": False},
    "c": {"year": "2020", "kind": 'O\'Hara \\ "x" %'},
    "d": {},
}


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("year >= 2019", "ab"),
        ("year = 2020.5 OR year = '2020'", "bc"),
        ("year != 2019", "b"),
        ("NOT year = 2019", "b"),
        ("year BETWEEN 2019 AND 2020", "a"),
        ("kind IN ('report', 're_ort', 7)", "ab"),
        ("kind NOT IN ('report', 'x')", "bc"),
        ("year IN (2019, '2020')", "ac"),
        ("kind LIKE 're%'", "ab"),
        ("kind NOT LIKE '%r_'", "c"),
        ("kind = 'O''Hara \\ \"x\" %'", "c"),
        ("kind > 'report' OR kind < 'P'", "c"),
        ("draft = true", "a"),
        ("draft != true", "b"),
        ("year IS NULL", "d"),
        ("year IS NOT NULL AND NOT (draft = true)", "b"),
        ("id IN ('a', 'd')", "ad"),
        ("source = 'mine' AND id > 'b'", "cd"),
        ("source IS NULL", ""),
    ],
)
def test_conditions_mean_the_same_everywhere(kind: str, filtered: Any, where: str, names: str) -> None:
    found = filtered(kind).search("river", 10, passages=0, rank="whole", where=where)
    assert "".join(sorted(result.id for result in found)) == names
    words = filtered(kind).search("river stone", 10, passages=0, rank="words", where=where)
    assert {result.id for result in words} == set(names)


@pytest.fixture(scope="module")
def filtered(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Any:
    made: dict[str, SearchIndex] = {}

    def index_of(kind: str) -> SearchIndex:
        if kind not in made:
            address = str(tmp_path_factory.mktemp("filtered") / "store")
            if kind == "postgres":
                address = f"{request.getfixturevalue('postgres_url')}#filtered_{os.getpid()}"
            made[kind] = SearchIndex(address, bag())
            documents = [Document(name, "river stone", "mine", (), values) for name, values in METADATA.items()]
            made[kind].add(documents)
        return made[kind]

    return index_of


def test_metadata_alone_changes_without_embedding(store: str) -> None:
    index = SearchIndex(store, bag())
    index.add([Document("a", "river", "", (), {"year": 1}), Document("b", "river")])
    report = index.add([Document("a", "river", "", (), {"name": "x"}), Document("b", "river")])
    assert (report.updated, report.embedded) == (1, 0)
    assert index.document("a").metadata == {"name": "x"}
    assert [found.id for found in index.search("river", where="name = 'x'")] == ["a"]
    with pytest.raises(
        M2BertError, match=r"no document of the store has 'colour', which where asks for; it knows name"
    ):
        index.search("river", where="colour = 'red'")


def test_two_writers_at_once_lose_nothing(store: str) -> None:
    SearchIndex(store, bag()).add({"first": "river heron"})

    def write(own: str) -> None:
        index = SearchIndex(store, bag())
        for number in range(4):
            index.add({f"{own}-{number}": f"river {own} stone-{number}", "both": f"river {own}"})

    writers = [threading.Thread(target=write, args=(name,)) for name in ("left", "right")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    index = SearchIndex.open(store)
    assert index.stats().num_documents == 10 == len(index.stats(documents=True).documents)
    alone = {identity: index.document(identity).text for _, identity in index.stats(documents=True).documents}
    from ranked_by_hand import bm25_by_hand

    expected = bm25_by_hand(alone, words_of("river left"))
    scale = 1 / (2**0.5 * np.log(11))
    found = {result.id: result.score for result in index.search("river left", 20, rank="words")}
    assert found == pytest.approx({name: score * scale for name, score in expected.items()}, rel=1e-5)


WRITER = """
import os, signal, sys
from bag_of_words import BagOfWords
from m2bert.search.index import SearchIndex
from m2bert.search.stores.staging import Staging

rows = Staging.rows
def killed(self, documents, hashes):
    for batch in rows(self, documents, hashes):
        yield batch
        os.kill(os.getpid(), signal.SIGKILL)
Staging.rows = killed
SearchIndex(sys.argv[1], BagOfWords(dim=64, passage_words=4)).add({f"n{i}": f"heron {i}" for i in range(9)})
"""


def test_a_killed_writer_leaves_the_state_before(store: str) -> None:
    index = SearchIndex(store, bag())
    index.add({"old": "heron"})
    code = [sys.executable, "-c", WRITER, store]
    done = subprocess.run(
        code, env={**os.environ, "PYTHONPATH": f"{SUPPORT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [found.id for found in index.search("heron", rank="words")] == ["old"]
    assert index.add({f"n{i}": f"heron {i}" for i in range(9)}).added == 9
    assert len(index.search("heron", 20, rank="words")) == index.stats().num_documents == 10


def test_sources_and_strange_names_are_kept_apart(store: str) -> None:
    index = SearchIndex(store, bag())
    long = "x" * 5000
    names = ["it's", 'say "so"', "semi;colon -- %s", "日本", "a\\b", long]
    index.add([Document(name, f"river {number}", f"in {name}") for number, name in enumerate(names)])
    for number, name in enumerate(names):
        assert index.document(name, f"in {name}").text == f"river {number}"
        assert [found.id for found in index.search("river", source=f"in {name}")] == [name]
    index.add({"word": long + " heron", "other": "y" * 5000})
    assert [found.id for found in index.search(long, rank="words")] == ["word"]
    assert index.delete([long], source=f"in {long}") == 1


def test_mistakes_are_told_in_words_with_the_remedy(store: str) -> None:
    name = SearchIndex(store).place.name
    with pytest.raises(M2BertError) as found:
        SearchIndex.open(store)
    assert (
        str(found.value) == f"store: there is no store at {name!r}; make one with `m2bert index FOLDER --store {name}`"
    )
    index = SearchIndex(store, bag())
    index.add({"a": "river"})
    other = bag()
    other.fingerprint = "another"
    with pytest.raises(M2BertError, match=r"was made with the model 'bag-of-words' of fingerprint 0123456789ab, got"):
        SearchIndex(store, other)
    with pytest.raises(M2BertError, match=r"index: no document 'b' in the store"):
        index.document("b")
    index.delete(["a"])
    with pytest.raises(M2BertError, match=r"holds no documents; add some"):
        index.search("river")


def test_the_protocol_alone(store: str) -> None:
    """The verbs as a store answers them, without the index around it."""
    index = SearchIndex(store, bag())
    index.update({name: f"river {name}" for name in "abc"}, source="s")
    verbs = index.place.open()
    assert verbs.info == (verbs.info.__class__)("bag-of-words", "0123456789ab", 64)
    assert verbs.count() == 3 and sorted(itertools.chain(*verbs.ids("s"))) == ["a", "b", "c"]
    assert set(verbs.states([("s", "a"), ("t", "a")])) == {("s", "a")} and verbs.states([]) == {}
    assert set(verbs.states(source="t")) == set() and len(verbs.states(source="s")) == 3
    assert verbs.sizes().bytes > 1000
    assert verbs.search(Query(None, ["nothing"]), 3, Mixture().only("words")) == []
    verbs.refresh(everything=True)
    assert verbs.delete([("s", "a"), ("s", "b"), ("t", "c")]) == 2 and verbs.count() == 1
    assert SimpleNamespace(**vars(verbs.get("c")[0])).text == "river c"
