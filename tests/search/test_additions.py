"""What an addition reads and writes, and that small steps give what one large step gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from bag_of_words import BagOfWords
from tiny import WORDS, story

import m2bert.search.bulk
from m2bert.search.bulk import text_hash
from m2bert.search.documents import Corpus, Document
from m2bert.search.index import SearchIndex
from m2bert.search.stores import StoredState
from m2bert.search.stores.lance import VERSIONS_BETWEEN_TIDYING, LanceStore
from m2bert.search.stores.staging import Staging

SUPPORT = Path(__file__).resolve().parents[1] / "support"


class Wide(BagOfWords):
    """Vectors of 512 random numbers that depend on the text alone; a passage per line."""

    dim = 512

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: Any) -> Any:
        return np.stack([self.parts(text).sum(axis=0) for text in texts])

    def parts(self, text: str) -> Any:
        seed = list(text.encode())
        vectors = np.random.default_rng(seed).standard_normal((len(text.split("\n")), self.dim))
        return (vectors / np.linalg.norm(vectors.sum(axis=0))).astype(np.float32)

    def encode_documents(self, texts: Any, *, progress: Any = None) -> Any:
        self.texts += texts
        made = []
        for text in texts:
            ends = np.cumsum([len(line) + 1 for line in text.split("\n")])
            passages = [
                SimpleNamespace(start=int(end) - len(line) - 1, end=int(end) - 1, vector=vector)
                for line, end, vector in zip(text.split("\n"), ends, self.parts(text), strict=True)
            ]
            counts = {"num_tokens": len(text.split()), "num_windows": 1, "num_truncated": 0}
            made.append(SimpleNamespace(vector=self.parts(text).sum(axis=0), passages=passages, **counts))
        return made


def lines(seed: int) -> str:
    generator = np.random.default_rng(seed)
    words = WORDS.split()
    count = int(generator.integers(1, 6))
    return "\n".join(" ".join(generator.choice(words, int(generator.integers(2, 12)))) for _ in range(count))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_results_are_those_of_numpy(tmp_path: Path, monkeypatch: Any) -> None:
    """Staged, merged, replaced and added alone: scores, order, pairs, contributions and places by one product each.

    Kept passages are rounded: of 512 random numbers each is off by 0.29 of a scale, all together by 0.01 of a passage.
    """
    monkeypatch.setattr(m2bert.search.bulk, "CHARACTERS_BETWEEN_WRITES", 1000)
    encoder = Wide()
    texts = {f"d{number}": lines(number) for number in range(120)}
    index = SearchIndex(tmp_path / "store", encoder)
    index.add({**texts, "d5": "another text", "twin": texts["d7"]})
    index.add({"d5": texts["d5"]})
    query = encoder.encode(["harbor"])[0]
    texts["twin"] = texts["d7"]
    parts = {name: encoder.parts(text) for name, text in texts.items()}
    scores = {name: float(vectors.sum(axis=0).astype(np.float64) @ query) for name, vectors in parts.items()}
    found = index.search("harbor", len(texts), passages=10, rank="whole")
    order = sorted(texts, key=lambda name: (-scores[name], name))
    assert [result.id for result in found] == order
    for result in found:
        assert result.score == pytest.approx(scores[result.id], abs=1e-6)
        rows, lines_there = parts[result.id], texts[result.id].split("\n")
        width = min(2, len(rows))
        sums = [rows[n : n + width].sum(axis=0) for n in range(len(rows) - width + 1)]
        cosines = [float(vector @ query / np.linalg.norm(vector)) for vector in sums]
        assert sorted(-hit.score for hit in result.passages) == [-hit.score for hit in result.passages]
        assert result.passages[0].score == pytest.approx(max(cosines), abs=2e-3)
        assert len(rows) < 5 or len(result.passages) > 1
        taken = []
        for hit in result.passages:
            first = ["\n".join(lines_there[n : n + width]) for n in range(len(sums))].index(hit.text)
            assert hit.score == pytest.approx(cosines[first], abs=2e-3)
            assert hit.contribution == pytest.approx(float(sums[first] @ query), abs=2e-3)
            taken += range(first, first + width)
        assert len(set(taken)) == len(taken)


def test_small_addition_is_not_staged(tmp_path: Path, monkeypatch: Any) -> None:
    written = []
    append = Staging.append
    monkeypatch.setattr(Staging, "append", lambda self, batch: (written.append(batch.num_rows), append(self, batch)))
    index = SearchIndex(tmp_path, BagOfWords())
    index.add({f"s{number}": story(50, number) for number in range(20)})
    assert written == []
    monkeypatch.setattr(m2bert.search.bulk, "CHARACTERS_BETWEEN_WRITES", 2000)
    index.add({f"t{number}": story(50, 100 + number) for number in range(20)})
    assert len(written) > 3 and 0 < sum(written) < 20  # the last group goes into the table right away
    assert len(index.stats(documents=True).documents) == 40


def test_one_more_document_does_not_write_the_store_again(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path, Wide())
    index.add({f"d{number}": lines(number) for number in range(1000)})
    before = size(tmp_path)
    assert before > 1000 * 512 * 4
    for number in range(3):
        index.add({"d7": lines(10_000 + number), f"new {number}": lines(20_000 + number)})
    assert size(tmp_path) - before < before / 10


def test_an_addition_asks_for_its_own_documents(tmp_path: Path, monkeypatch: Any) -> None:
    index = SearchIndex(tmp_path, BagOfWords())
    index.update(Corpus("one", [Document(f"d{n}", story(9, n), "one") for n in range(5)]))
    index.add({"d1": "river", "d2": "stone"})
    read = []
    states = LanceStore.states

    def noted(self: Any, *keys: Any, **options: Any) -> Any:
        found = states(self, *keys, **options)
        read.extend(found)
        return found

    monkeypatch.setattr(LanceStore, "states", noted)
    assert index.add({"d1": "paper", "new": "stone"}).updated == 1
    assert read == [("", "d1")]
    read.clear()
    assert index.update(Corpus("one", [Document("d1", "paper", "one"), Document("x", "x", "two")])).removed == 4
    assert read == [("one", "d1")]


def test_states_of_keys_and_of_a_source(tmp_path: Path) -> None:
    documents = [Document(f"it's {n % 7}", f"river {n}", f"from {n // 7}") for n in range(2100)]
    SearchIndex(tmp_path, BagOfWords()).add(documents)
    store = LanceStore.open(tmp_path)
    expected = {(item.source, item.id): StoredState(text_hash(item.text), 2, 1, 0) for item in documents}
    assert store.count() == 2100
    assert store.states() == expected
    assert store.states(source="from 3") == {key: expected[key] for key in expected if key[0] == "from 3"}
    asked = [*list(expected)[::2], ("from 3", "unknown"), ("nowhere", "it's 1")]
    assert store.states(asked) == {key: expected[key] for key in expected if key in set(asked)}
    assert store.states([]) == {} and store.states(source="nowhere") == {}


def test_words_of_small_steps_are_scored_like_those_of_one(tmp_path: Path) -> None:
    """Also beyond the step that tidies up; by BM25 of the texts, counted here."""
    texts = {f"d{n:03d}": " ".join(np.random.default_rng(n).choice(WORDS.split(), 5 + n)) for n in range(60)}
    index = SearchIndex(tmp_path / "steps", BagOfWords())
    names = list(texts)
    index.add({name: texts[name] for name in names[:30]} | {"d003": "thread"})
    for name in ["d003", *names[30:]]:
        index.add({name: texts[name]})
    table = lancedb.connect(str(tmp_path / "steps")).open_table("documents")
    assert table.version > VERSIONS_BETWEEN_TIDYING and table.stats()["fragment_stats"]["num_fragments"] < 22
    counts = {name: text.split().count("thread") for name, text in texts.items()}
    lengths = {name: len(text.split()) for name, text in texts.items()}
    holding = sum(count > 0 for count in counts.values())
    rarity = np.log(1 + (60 - holding + 0.5) / (holding + 0.5))
    mean = sum(lengths.values()) / 60
    expected = {
        name: rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * lengths[name] / mean))
        for name, count in counts.items()
        if count
    }
    rows = table.search("thread", query_type="fts", fts_columns="words").limit(60).to_arrow().to_pylist()
    assert {row["id"]: row["_score"] for row in rows} == pytest.approx(expected, rel=1e-5)
    found = {result.id: result.score for result in index.search("the threads", 60, rank="words")}
    assert found == pytest.approx({name: score / np.log(61) for name, score in expected.items()}, rel=1e-5)
    whole = SearchIndex(tmp_path / "whole", BagOfWords())
    whole.add(texts)
    one, other = (
        {result.id: asdict(result) for result in found.search("copper thread", 60)} for found in (index, whole)
    )
    assert list(one) == list(other) and len(one) == 60
    for name, result in one.items():
        assert result.pop("parts") == pytest.approx(other[name].pop("parts"), rel=1e-6)
        assert result.pop("score") == pytest.approx(other[name].pop("score"), rel=1e-6)
        assert result == other[name]


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from bag_of_words import BagOfWords
from tiny import story
import m2bert.search.bulk
from m2bert.search.index import SearchIndex
from m2bert.search.stores.staging import Staging

append = Staging.append
def announced(self, batch):
    append(self, batch)
    print("staged", flush=True)
Staging.append = announced
m2bert.search.bulk.CHARACTERS_BETWEEN_WRITES = 400
SearchIndex({store!r}, BagOfWords()).add({{f"s{{n}}": story(30 + n, seed=n) for n in range(60)}})
"""


def test_what_a_killed_process_has_staged_is_not_embedded_again(tmp_path: Path) -> None:
    code = CHILD.format(tests=str(SUPPORT), store=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT.parents[1])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline() == "staged\n"
        child.send_signal(signal.SIGKILL)
    staged = set()
    for file in (tmp_path / "staging").glob("*.arrow"):
        table = pa.ipc.open_file(file).read_all()
        assert "text" not in table.column_names
        staged |= set(table.column("text_hash").to_pylist())
    texts = {f"s{n}": story(30 + n, seed=n) for n in range(60)}
    assert 3 <= len(staged) < len(texts)

    class Noting(BagOfWords):
        def encode_documents(self, texts: Any, *, progress: Any = None) -> Any:
            embedded.extend(map(text_hash, texts))
            return super().encode_documents(texts)

    embedded: list[str] = []
    index = SearchIndex(tmp_path, Noting())
    index.add(texts)
    assert sorted(embedded) == sorted({text_hash(text) for text in texts.values()} - staged)
    assert {key[1]: state.text_hash for key, state in index.stats(documents=True).documents.items()} == {
        name: text_hash(text) for name, text in texts.items()
    }
    assert [path.name for path in (tmp_path / "staging").iterdir()] == ["lock"]
