"""What a searcher's program does with an index: any iterable in, batches of queries, plain data, tables, threads."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bag_of_words import BagOfWords
from tiny import story, tiny_embedder

from m2bert.errors import M2BertError
from m2bert.search.documents import Document
from m2bert.search.index import SearchIndex
from m2bert.search.stores import lance

TEXTS = {f"s{number}": story(40, seed=number) for number in range(12)}
QUERIES = ["copper harbor", "winter garden", "paper engine signal", "ladder"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    index = SearchIndex(tmp_path_factory.mktemp("results") / "store", tiny_embedder())
    index.add(TEXTS)
    return index


def ids(index: SearchIndex) -> set[tuple[str, str]]:
    return set(index.stats(documents=True).documents)


def test_documents_come_from_any_iterable(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())

    def documents() -> Iterator[Document | tuple[str, str]]:
        yield Document("a", "river")
        yield "b", "stone"

    assert index.add(documents()).added == 2
    assert index.add(iter({"c": "light"}.items())).added == 1
    assert index.update((each for each in [("x", "paper"), ("y", "engine")]), source="letters").added == 2
    report = index.update({"y": "engine two"}, source="letters")
    assert (report.updated, report.removed) == (1, 1)
    assert index.update([Document("z", "market"), Document("y", "engine two", "letters")], source="letters").added == 1
    assert ids(index) == {("", "a"), ("", "b"), ("", "c"), ("letters", "y"), ("letters", "z")}


@pytest.mark.parametrize(
    ("documents", "source", "message"),
    [
        ([("a", "text")], None, "source must name what the documents are all of, got None"),
        ([("a", "text")], "", "source must name"),
        ([Document("a", "text", "there")], "here", "document 'a' must be of the source 'here', got 'there'"),
        ([("a", "text", "more")], "here", r"every document must be a Document\(id, text, source\)"),
        ([("a", "x"), ("a", "y")], "here", "two documents are called 'a'"),
        (iter([]), "here", "there must be at least one document"),
        ("text", "here", "documents must be a mapping"),
    ],
)
def test_what_is_no_iterable_of_a_source_is_refused(tmp_path: Path, documents: Any, source: Any, message: str) -> None:
    with pytest.raises(M2BertError, match=message):
        SearchIndex(tmp_path / "store", BagOfWords()).update(documents, source=source)


def test_a_list_of_queries_is_encoded_at_once_and_answered_as_one_by_one(index: SearchIndex, monkeypatch: Any) -> None:
    alone = [index.search(query, k=3) for query in QUERIES]
    calls: list[list[str]] = []
    encode = index.embedder.encode

    def counted(texts: Any, **options: Any) -> Any:
        calls.append(list(texts))
        return encode(texts, **options)

    monkeypatch.setattr(index.embedder, "encode", counted)
    together = index.search(QUERIES, k=3)
    assert calls == [QUERIES]
    calls.clear()
    assert [results.query for results in together] == QUERIES
    for one, other in zip(together, alone, strict=True):
        assert [result.id for result in one] == [result.id for result in other]
        assert [result.score for result in one] == pytest.approx([result.score for result in other], abs=1e-5)
    assert len({tuple(result.id for result in results) for results in together}) > 1
    words = index.search(QUERIES, k=3, rank="words")
    assert calls == [] and all(result.passages == [] for result in words[0])
    assert [len(results) for results in index.search((QUERIES[0],), k=2)] == [2]


@pytest.mark.parametrize(
    ("query", "message"),
    [([], "at least one query, got an empty list"), (["river", " "], "some words of text, got ' '"), ([5], "got 5")],
)
def test_batches_with_a_bad_query_are_refused(index: SearchIndex, query: Any, message: str) -> None:
    with pytest.raises(M2BertError, match=message):
        index.search(query)


def test_results_are_plain_data_and_tables(index: SearchIndex) -> None:
    found = index.search("copper harbor", k=4, passages=2)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["query"] == "copper harbor" and [row["rank"] for row in plain["results"]] == [1, 2, 3, 4]
    first = plain["results"][0]
    assert first == found[0].to_dict() and first["passages"][0]["text"] == found[0].passages[0].text
    table = found.to_arrow()
    assert table["id"].to_pylist() == [result.id for result in found] and set(table["query"].to_pylist()) == {
        found.query
    }
    assert table["score"].to_pylist() == [result.score for result in found]
    parts = ("whole", "passages", "words")
    for row, result in zip(table.to_pylist(), found, strict=True):
        assert {part: row[f"score_{part}"] for part in parts} == dict(result.parts)
        assert row["passages"] == [dict(hit) for hit in result.to_dict()["passages"]]
    assert index.search("copper harbor", k=1, rank="words").to_arrow()["score_whole"].to_pylist() == [None]
    none = SearchIndex(index.path, index.embedder).search("zzz", rank="words")
    assert len(none) == 0 and none.to_arrow().schema == table.schema and none.to_arrow().num_rows == 0


def test_results_are_a_frame_of_pandas(index: SearchIndex, monkeypatch: Any) -> None:
    pytest.importorskip("pandas")
    found = index.search("copper harbor", k=4)
    frame = found.to_pandas()
    assert list(frame["id"]) == [result.id for result in found] and frame["score"].is_monotonic_decreasing
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(M2BertError, match="to_pandas needs pandas, which is not installed; pip install pandas"):
        found.to_pandas()


def test_an_index_is_opened_and_closed_by_with(tmp_path: Path) -> None:
    with pytest.raises(M2BertError, match="there is no store at"):
        SearchIndex.open(tmp_path / "store", BagOfWords())
    assert not (tmp_path / "store").exists()
    with SearchIndex(tmp_path / "store", BagOfWords()) as made:
        made.add({"a": "river"})
    with SearchIndex.open(tmp_path / "store", BagOfWords()) as index:
        assert index.search("river")[0].id == "a"
    assert index.model is None
    assert index.search("river")[0].id == "a"  # whoever uses it again opens it again
    assert index.model == "bag-of-words"


def test_threads_search_at_once_while_another_adds(tmp_path: Path) -> None:
    """Every search sees the store before an addition or after it: scores are those of numpy in one of the states."""
    embedder = tiny_embedder()
    index = SearchIndex(tmp_path / "store", embedder)
    index.add(TEXTS)
    more = [{f"n{step}-{number}": story(30, seed=100 + 10 * step + number) for number in range(4)} for step in range(4)]
    states = [dict(TEXTS)]
    for addition in more:
        states.append({**states[-1], **addition})
    vectors = {identity: embedder.encode_documents([text])[0].vector for identity, text in states[-1].items()}
    queries = dict(zip(QUERIES, embedder.encode(QUERIES), strict=True))
    expected = {
        query: [sorted((float(vectors[name] @ vector) for name in state), reverse=True)[:5] for state in states]
        for query, vector in queries.items()
    }
    stop = threading.Event()

    def search(query: str) -> int:
        done = 0
        while not stop.is_set() or done < 3:
            scores = [result.score for result in index.search(query, k=5, rank="whole", passages=1)]
            assert any(scores == pytest.approx(state, abs=1e-4) for state in expected[query]), query
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        searching = [pool.submit(search, query) for query in QUERIES]
        try:
            for addition in more:
                SearchIndex(tmp_path / "store", embedder).add(addition)
        finally:
            stop.set()
        assert all(each.result() >= 3 for each in searching)
    assert [result.score for result in index.search(QUERIES[0], k=5, rank="whole")] == pytest.approx(
        expected[QUERIES[0]][-1], abs=1e-4
    )


def test_a_search_stays_in_the_state_it_began_in(tmp_path: Path, monkeypatch: Any) -> None:
    """While one thread is between two looks at the store, another replaces every document and searches too."""
    index = SearchIndex(tmp_path / "store", BagOfWords())
    index.add({name: f"river {name} old" for name in "abc"})
    taken, listed, go_on = lance.taken, threading.Event(), threading.Event()

    def waiting(*arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and not go_on.is_set():
            listed.set()
            assert go_on.wait(60)
        return taken(*arguments)

    monkeypatch.setattr(lance, "taken", waiting)
    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(index.search, "river old")
        assert listed.wait(60)
        try:
            SearchIndex(tmp_path / "store", BagOfWords()).add({name: f"river {name} new" for name in "abc"})
            assert {result.passages[0].text for result in index.search("river old")} == {
                f"river {n} new" for n in "abc"
            }
        finally:
            go_on.set()
        found = searching.result()
    assert {result.passages[0].text for result in found} == {f"river {n} old" for n in "abc"}
