"""The index and its store: exact scores, one visible step, only changed texts embedded, clear refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from tiny import story, tiny_embedder

import m2bert.search.bulk
from m2bert.errors import M2BertError
from m2bert.search.documents import Corpus, Document, Skipped
from m2bert.search.index import SearchIndex

SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture(scope="module")
def embedder() -> Any:
    return tiny_embedder()


class Counting:
    """An embedder that remembers which texts it was given, and can be made to fail."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.texts: list[str] = []
        self.calls_left = 10**9

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode_documents(self, texts: Any, *, progress: Any = None) -> Any:
        if self.calls_left == 0:
            raise KeyboardInterrupt
        self.calls_left -= 1
        self.texts += texts
        return self.inner.encode_documents(texts, progress=progress)


def corpus(texts: dict[str, str], source: str = "stories") -> Corpus:
    return Corpus(source, [Document(identity, text, source) for identity, text in texts.items()])


def stories(count: int, first: int = 0) -> dict[str, str]:
    return {f"story-{number}": story(30 + 7 * number, seed=number) for number in range(first, first + count)}


def ids(index: SearchIndex) -> set[str]:
    return {identity for _, identity in index.stats(documents=True).documents}


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_update_embeds_only_what_changed(tmp_path: Path, embedder: Any) -> None:
    counting = Counting(embedder)
    index = SearchIndex(tmp_path / "store", counting)
    texts = stories(6)
    report = index.update(corpus(texts))
    assert (report.added, report.updated, report.unchanged, report.removed) == (6, 0, 0, 0)
    assert len(counting.texts) == 6
    counting.texts.clear()
    report = index.update(corpus(texts))
    assert (report.added, report.updated, report.unchanged, report.removed) == (0, 0, 6, 0)
    assert counting.texts == []
    changed = {**texts, "story-2": story(20, seed=50), "new": story(21, seed=51)}
    del changed["story-0"]
    report = SearchIndex(tmp_path / "store", counting).update(corpus(changed))
    assert (report.added, report.updated, report.unchanged, report.removed) == (1, 1, 4, 1)
    assert sorted(counting.texts) == sorted([changed["story-2"], changed["new"]])
    assert ids(index) == set(changed)
    results = index.search(changed["story-2"], k=1, rank="whole")
    assert results[0].id == "story-2" and results[0].score == pytest.approx(1.0, abs=1e-5)


def test_equal_texts_are_embedded_once(tmp_path: Path, embedder: Any) -> None:
    counting = Counting(embedder)
    index = SearchIndex(tmp_path / "store", counting)
    index.add({"one": "river stone", "two": "river stone"})
    assert counting.texts == ["river stone"]
    assert ids(index) == {"one", "two"}


def test_update_leaves_other_sources_and_unreadable_documents(tmp_path: Path, embedder: Any) -> None:
    index = SearchIndex(tmp_path / "store", embedder)
    index.update(corpus({"it's": "river", "b": "stone"}, "first"))
    index.update(corpus({"it's": "paper", "b": "engine"}, "second"))
    broken = Corpus("second", [Document("b", "engine", "second")], [Skipped("it's", "binary")])
    report = index.update(broken)
    assert report.removed == 0 and report.skipped == broken.skipped
    report = index.update(corpus({"b": "engine"}, "second"))
    assert report.removed == 1
    assert set(index.stats(documents=True).documents) == {("first", "it's"), ("first", "b"), ("second", "b")}
    assert index.delete(["it's", "unknown"], source="first") == 1
    assert set(index.stats(documents=True).documents) == {("first", "b"), ("second", "b")}


def test_overflow_modes_are_not_mixed(tmp_path: Path) -> None:
    texts = {"short": "river stone", "long": story(300)}
    windowed = Counting(tiny_embedder())
    SearchIndex(tmp_path / "store", windowed).add(texts)
    truncating = Counting(tiny_embedder(overflow="truncate"))
    report = SearchIndex(tmp_path / "store", truncating).add(texts)
    assert truncating.texts == [texts["long"]]
    assert (report.num_windowed, report.num_truncated_documents) == (0, 1)
    assert report.num_truncated_tokens > 100
    windowed.texts.clear()
    report = SearchIndex(tmp_path / "store", windowed).add(texts)
    assert windowed.texts == [texts["long"]]
    assert (report.num_windowed, report.num_truncated_documents) == (1, 0)
    with pytest.raises(M2BertError, match=r"index: document 'long' has .* tokens .*overflow=.*nothing was changed"):
        SearchIndex(tmp_path / "store", tiny_embedder(overflow="error")).add(texts)


def test_interrupted_run_is_continued(tmp_path: Path, embedder: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(m2bert.search.bulk, "CHARACTERS_BETWEEN_WRITES", 500)
    counting = Counting(embedder)
    index = SearchIndex(tmp_path / "store", counting)
    index.add({"old": "river stone"})
    counting.texts.clear()
    counting.calls_left = 3
    texts = {**stories(8), "old": "paper engine"}
    with pytest.raises(KeyboardInterrupt):
        index.add(texts)
    assert ids(index) == {"old"}
    finished = list(counting.texts)
    assert 0 < len(finished) < len(texts)
    counting.texts.clear()
    counting.calls_left = 10**9
    calls: list[tuple[int, int]] = []
    report = index.add(texts, progress=lambda done, total: calls.append((done, total)))
    assert sorted(finished + counting.texts) == sorted(texts.values())
    assert (report.added, report.updated, report.embedded) == (8, 1, len(counting.texts))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1] > 0
    assert sorted(path.name for path in (tmp_path / "store" / "staging").iterdir()) == ["lock"]
    fresh = SearchIndex(tmp_path / "other", embedder)
    fresh.add(texts)
    asked = [(result.id, pytest.approx(result.score, abs=1e-6)) for result in fresh.search("garden", k=20)]
    assert [(result.id, result.score) for result in index.search("garden", k=20)] == asked


def test_damaged_staged_file_is_made_again(tmp_path: Path, embedder: Any) -> None:
    index = SearchIndex(tmp_path / "store", embedder)
    index.add({"a": "river"})
    (tmp_path / "store" / "staging" / "000000-1.arrow").write_bytes(b"ARROW1\0\0 no more")
    index.add({"b": "stone"})
    assert ids(index) == {"a", "b"}


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from bag_of_words import BagOfWords
from tiny import story
import m2bert.search.bulk
from m2bert.search.documents import Corpus, Document
from m2bert.search.index import SearchIndex
from m2bert.search.stores.lance import LanceStore
from m2bert.search.stores.staging import Staging

def announced(name, function):
    def call(*arguments, **options):
        print(name, flush=True)
        return function(*arguments, **options)
    return call

m2bert.search.bulk.CHARACTERS_BETWEEN_WRITES = 400
LanceStore.add = announced("commit", LanceStore.add)
Staging.append = announced("stage", Staging.append)
documents = [Document(f"story-{{n}}", story(30 + 7 * n, seed=n), {source!r}) for n in range({first}, {last})]
print("ready", flush=True)
SearchIndex({store!r}, BagOfWords()).update(Corpus({source!r}, documents))
print("done", flush=True)
"""


def start_child(store: Path, first: int, last: int, source: str = "stories") -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(SUPPORT), store=str(store), first=first, last=last, source=source)
    sources = str(Path(m2bert.search.bulk.__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": sources}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    children = [start_child(store, first, first + 9, f"from {first}") for first in (0, 20)]
    for child in children:
        output, _ = child.communicate(timeout=60)
        assert output.split()[-1] == "done" and child.returncode == 0
    expected = {("from 0", f"story-{number}") for number in range(9)}
    expected |= {("from 20", f"story-{number}") for number in range(20, 29)}
    assert set(SearchIndex(store).stats(documents=True).documents) == expected


def test_search_changes_nothing(tmp_path: Path, embedder: Any) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(M2BertError, match="there is no store at"):
        SearchIndex(missing, embedder).search("river")
    assert not missing.exists()
    SearchIndex(tmp_path / "store", embedder).add({"a": "river"})
    before = tree(tmp_path / "store")
    SearchIndex(tmp_path / "store", embedder).search("river")
    SearchIndex(tmp_path / "store").stats(documents=True)
    assert tree(tmp_path / "store") == before


def test_folder_that_is_not_a_store_is_left_alone(tmp_path: Path, embedder: Any) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.txt").write_text("a cat")
    with pytest.raises(M2BertError, match="not a store"):
        SearchIndex(folder, embedder)
    assert tree(folder).keys() == {"cat.txt"}
    with pytest.raises(M2BertError, match="not a store"):
        SearchIndex(folder / "cat.txt", embedder)
    other = tmp_path / "other"
    lancedb.connect(str(other)).create_table("documents", pa.table({"x": [1]}))
    with pytest.raises(M2BertError, match="did not write"):
        SearchIndex(other, embedder)


def test_half_made_store_is_taken_over(tmp_path: Path, embedder: Any) -> None:
    (tmp_path / "store" / "documents.lance" / "_versions").mkdir(parents=True)
    index = SearchIndex(tmp_path / "store", embedder)
    index.add({"a": "river"})
    assert ids(index) == {"a"}


def test_store_refuses_vectors_of_another_dimension(tmp_path: Path, embedder: Any) -> None:
    SearchIndex(tmp_path / "store", embedder).add({"a": "river"})

    class Wrong(Counting):
        def encode_documents(self, texts: Any, *, progress: Any = None) -> Any:
            made = list(super().encode_documents(texts, progress=progress))
            wrong = SimpleNamespace(start=0, end=1, vector=np.ones(3, np.float32))
            if texts[-1] == "stone":
                return [*made[:-1], replace(made[-1], vector=np.ones(3, np.float32))]
            return [*made[:-1], replace(made[-1], passages=[wrong])]

    index = SearchIndex(tmp_path / "store", Wrong(embedder))
    for last in ("stone", "paper"):
        with pytest.raises(M2BertError, match="'c' must have vectors of dimension 16"):
            index.add({"b": "a longer text", "c": last})
    assert ids(index) == {"a"}


@pytest.mark.parametrize("query", ["", " \n", None])
def test_empty_query_is_refused(tmp_path: Path, embedder: Any, query: Any) -> None:
    with pytest.raises(M2BertError, match="the query must be"):
        SearchIndex(tmp_path / "store", embedder).search(query)


@pytest.mark.parametrize("k", [0, -1, True, 2.0])
def test_wrong_k_is_refused(tmp_path: Path, embedder: Any, k: Any) -> None:
    with pytest.raises(M2BertError, match="k must be"):
        SearchIndex(tmp_path / "store", embedder).search("river", k)


def test_empty_store_is_refused(tmp_path: Path, embedder: Any) -> None:
    index = SearchIndex(tmp_path / "store", embedder)
    index.add({"a": "river"})
    index.delete(["a"])
    with pytest.raises(M2BertError, match="holds no documents"):
        index.search("river")


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ({}, "at least one document"),
        ({"a": " "}, "the text of document 'a'"),
        ({"a": None}, "the text of document 'a'"),
        ({"": "river"}, "the id of document ''"),
        ([Document("a", "river"), Document("a", "stone")], "two documents are called 'a'"),
        ({"\ud800": "river"}, "the id of document .* lone surrogate at character 0"),
        ({"a": "b\ud800"}, "the text of document 'a' .* lone surrogate at character 1"),
        ([Document("a", "river", None)], r"must be a Document\(id, text, source\) of strings"),  # type: ignore[arg-type]
        ([("a", "river", "x")], r"must be a Document\(id, text, source\) of strings"),
        ("river", "a mapping of ids to texts or an iterable of Document, got str"),
        (None, "a mapping of ids to texts or an iterable of Document, got NoneType"),
    ],
)
def test_bad_documents_are_refused(tmp_path: Path, embedder: Any, documents: Any, message: str) -> None:
    with pytest.raises(M2BertError, match=message):
        SearchIndex(tmp_path / "store", embedder).add(documents)
    assert not (tmp_path / "store").exists()


def test_empty_corpus_removes_nothing(tmp_path: Path, embedder: Any) -> None:
    index = SearchIndex(tmp_path / "store", embedder)
    index.update(corpus({"a": "river"}))
    with pytest.raises(M2BertError, match=r"at least one readable document.*nothing was changed"):
        index.update(Corpus("stories", [], [Skipped("a", "binary")]))
    assert ids(index) == {"a"}


def test_a_document_of_a_model_without_mean_pooling_is_its_own_passage(tmp_path: Path) -> None:
    embedder = tiny_embedder(pooling="cls")
    texts = {"a": story(200), "b": "river"}
    index = SearchIndex(tmp_path / "store", embedder)
    index.add(texts)
    cosines = dict(zip(texts, embedder.encode(list(texts.values())) @ embedder.encode(["river"])[0], strict=True))
    for result in index.search("river", rank="passages"):
        (hit,) = result.passages
        assert (hit.start, hit.end, hit.text) == (0, len(texts[result.id]), texts[result.id])
        assert [result.score, hit.score, hit.contribution] == pytest.approx([float(cosines[result.id])] * 3, abs=1e-6)
    assert len(index.document("a").spans) == 0


def test_store_writes_nothing_to_the_terminal(tmp_path: Path, capfd: Any, embedder: Any) -> None:
    index = SearchIndex(tmp_path / "store", embedder)
    index.add(stories(3))
    index.search("river")
    index.delete(["story-1"])
    assert capfd.readouterr() == ("", "")


def test_documents_of_an_unreadable_folder_are_kept(tmp_path: Path, embedder: Any) -> None:
    index = SearchIndex(tmp_path / "store", embedder)
    index.update(corpus({"vault/a": "river", "vaults": "stone", "b": "engine"}))
    broken = Corpus("stories", [Document("b", "engine", "stories")], [Skipped("vault/", "cannot be read", "folder")])
    assert index.update(broken).removed == 1
    assert ids(index) == {"vault/a", "b"}


def test_document_without_tokens_is_named(tmp_path: Path, embedder: Any) -> None:
    index = SearchIndex(tmp_path / "store", embedder)
    index.add({"a": "river"})
    with pytest.raises(M2BertError, match=r"index: document 'unseen' holds no tokens.*nothing was changed"):
        index.add({"b": "a longer text about a river", "unseen": "\x01\x02"})
    assert ids(index) == {"a"}


def test_query_without_tokens_is_named(tmp_path: Path, embedder: Any) -> None:
    index = SearchIndex(tmp_path / "store", embedder)
    index.add({"a": "river"})
    for query in ("\x01", "river \udce9"):
        with pytest.raises(M2BertError, match="search: the query "):
            index.search(query)


def test_arguments_of_other_types_are_refused(tmp_path: Path, embedder: Any) -> None:
    index = SearchIndex(tmp_path / "store", embedder)
    index.add({"a": "river", "b": "stone"})
    assert len(index.search("river", 10**30)) == 2
    for passages in (-1, "x", True, None):
        with pytest.raises(M2BertError, match="passages must be a whole number"):
            index.search("river", passages=passages)
    with pytest.raises(M2BertError, match="ids must be a list"):
        index.delete("ab")
    for wrong in (0, None):
        with pytest.raises(M2BertError, match="every document id must be a string"):
            index.delete(["a", wrong])  # type: ignore[list-item]
    with pytest.raises(M2BertError, match="embedder must be an Embedder, got str"):
        SearchIndex(tmp_path / "store", "m2-bert-mini")  # type: ignore[arg-type]
    assert ids(index) == {"a", "b"}
