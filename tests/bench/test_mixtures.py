"""Systems that rank by parts: each part against its sum by hand, their weights, and that a task is encoded once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_of_words import BagOfWords
from tiny import story, tiny_embedder

import m2bert.bench.mixtures
from m2bert.bench.mixtures import MixedSystem, PartScores
from m2bert.bench.tasks import RetrievalTask
from m2bert.encoders.protocol import EncodedDocument, Passage
from m2bert.errors import M2BertError
from m2bert.ranking.parts import Mixture
from m2bert.search.index import SearchIndex

# Words that are their own stems, so that a space divides them. Passages end at a bar.
CORPUS = {
    "one": "kat dog kat kat",
    "long": "rok tin rok|kat dog|elm fig elm kat|tin tin dog rok rok rok",
    "two": "fig fig elm kat|dog elm",
    "other": "elm elm fig dog rok tin rok elm elm",
}
QUERIES = {"q1": "kat dog", "q2": "elm", "q3": "rok rok fig", "none": "the of"}
TASK = RetrievalTask("birds", "test", CORPUS, QUERIES, {query: {"one": 1} for query in QUERIES})
WORDS = sorted({word for text in [*CORPUS.values(), *QUERIES.values()] for word in text.replace("|", " ").split()})


def counts(text: str) -> np.ndarray:
    return np.array([text.replace("|", " ").split().count(word) for word in WORDS], dtype=np.float64)


class Cutting(BagOfWords):
    """Counts of words; a document's passages are divided by bars, and add up to its vector."""

    name, fingerprint = "cutting", "cut0"

    def __init__(self) -> None:
        super().__init__(max_tokens=100)
        self.encoded: list[str] = []

    def vector(self, text: str) -> np.ndarray:
        found = counts(text)
        return (found / np.linalg.norm(found)).astype(np.float32)

    def encode_documents(self, texts: Any, *, passages: bool = True, progress: Any = None) -> Any:
        self.encoded += texts
        found = super().encode_documents(texts, passages=False, progress=progress)
        return [self._with_passages(text, one) for text, one in zip(texts, found, strict=True)]

    def encode(self, texts: Any, *, progress: Any = None) -> Any:
        self.encoded += texts
        return super().encode(texts, progress=progress)

    def _with_passages(self, text: str, one: EncodedDocument) -> EncodedDocument:
        norm = np.linalg.norm(counts(text))
        parts = [Passage(0, 1, (counts(part) / norm).astype(np.float32)) for part in text.split("|")]
        return EncodedDocument(one.vector, parts, len(text.split()), 1 + len(parts), 2 if len(parts) > 2 else 0)


def silent(label: str, fraction: float) -> None:
    """No progress."""


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def wholes_by_hand() -> np.ndarray:
    return np.array([[cosine(counts(q), counts(d)) for d in CORPUS.values()] for q in QUERIES.values()])


def pairs_by_hand(*, rounded: bool) -> np.ndarray:
    """The best two neighbours of each document, their numbers rounded to the 127th part of each one's largest."""

    def passages(text: str) -> list[np.ndarray]:
        found = [counts(part) for part in text.split("|")]
        return [np.round(x / x.max() * 127) * x.max() / 127 for x in found] if rounded else found

    def best(query: str, text: str) -> float:
        own = passages(text)
        if len(own) == 1:
            return cosine(counts(query), counts(text))
        return max(cosine(counts(query), first + second) for first, second in pairwise(own))

    return np.array([[best(query, text) for text in CORPUS.values()] for query in QUERIES.values()])


def words_by_hand() -> np.ndarray:
    """BM25 by its textbook formula, k1 = 1.2 and b = 0.75, over the root of the query's words and ln(1 + documents)."""
    texts = [text.replace("|", " ").split() for text in CORPUS.values()]
    mean = sum(map(len, texts)) / len(texts)

    def weight(word: str, text: Sequence[str]) -> float:
        having, times = sum(word in other for other in texts), text.count(word)
        idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        return idf * 2.2 * times / (times + 1.2 * (0.25 + 0.75 * len(text) / mean))

    found = []
    for query in QUERIES.values():
        own = [word for word in query.split() if word not in ("the", "of")]
        scale = math.sqrt(max(len(own), 1)) * math.log(1 + len(texts))
        found.append([sum(weight(word, text) for word in own) / scale for text in texts])
    return np.array(found)


def run_of(scores: np.ndarray) -> dict[str, dict[str, float]]:
    return {query: dict(zip(CORPUS, map(float, row), strict=True)) for query, row in zip(QUERIES, scores, strict=True)}


def ranked(system: MixedSystem, task: RetrievalTask = TASK) -> dict[str, dict[str, float]]:
    return system.rank(task, 10, silent).run


def assert_ranks(found: dict[str, dict[str, float]], scores: np.ndarray) -> None:
    """The run has these scores, highest first."""
    for query, row in run_of(scores).items():
        assert found[query] == pytest.approx(row, abs=2e-6)
        assert list(found[query].values()) == sorted(found[query].values(), reverse=True)


def test_each_part_is_its_sum_by_hand() -> None:
    found = PartScores(Cutting()).of(TASK, ["whole", "passages", "words"], silent)
    np.testing.assert_allclose(found["whole"], wholes_by_hand(), atol=1e-6)
    np.testing.assert_allclose(found["passages"], pairs_by_hand(rounded=True), atol=2e-6)
    np.testing.assert_allclose(found["passages"], pairs_by_hand(rounded=False), atol=0.01)
    np.testing.assert_allclose(found["words"], words_by_hand(), atol=1e-6)
    differs = np.abs(found["passages"] - found["whole"]).max(axis=0)
    assert differs[0] == differs[3] == 0.0, "one passage is the whole"
    assert differs[1] > 0.1 and np.ptp(found["words"]) > 0.3 and not found["words"][3].any()


def test_ranks_are_weighted_sums_of_the_parts() -> None:
    encoder: Any = Cutting()
    encoder.mixture = Mixture(whole=0.5, passages=0.25, words=2.0)
    whole, pairs, words = wholes_by_hand(), pairs_by_hand(rounded=True), words_by_hand()
    scores = PartScores(encoder)
    for rank, name, expected, weights in [
        ("all", "cutting", 0.5 * whole + 0.25 * pairs + 2 * words, "whole 0.5, passages 0.25, words 2"),
        ("whole", "cutting, whole", whole, "whole 1"),
        ("passages", "cutting, passages", pairs, "passages 1"),
        ("words", "cutting, words", words, "words 1"),
        ("words+whole", "cutting, words+whole", 0.5 * whole + 2 * words, "whole 0.5, words 2"),
        ("whole+passages", "cutting, whole+passages", 0.5 * whole + 0.25 * pairs, "whole 0.5, passages 0.25"),
    ]:
        system = MixedSystem(scores, rank)
        ranking = system.rank(TASK, 10, silent)
        assert (system.name, ranking.fingerprint) == (name, f"cut0, {weights}")
        assert_ranks(ranking.run, expected)
        assert ranking.max_tokens == 100 and ranking.lengths is not None and ranking.tokens is not None
    assert ranking.lengths.num_truncated == 1 and ranking.lengths.tokens_lost == 2
    assert ranking.tokens == {"one": 4, "long": 12 + 2, "two": 5, "other": 9}
    first = MixedSystem(scores).rank(TASK, 1, silent).run
    assert [list(row) for row in first.values()] == [list(row)[:1] for row in ranked(MixedSystem(scores)).values()]


def test_an_encoder_without_a_mixture_has_the_default_one() -> None:
    system = MixedSystem(PartScores(Cutting()))
    expected = 0.7 * wholes_by_hand() + 0.3 * pairs_by_hand(rounded=True) + 0.7 * words_by_hand()
    assert_ranks(ranked(system), expected)


def test_systems_of_one_encoder_encode_a_task_once() -> None:
    encoder = Cutting()
    scores = PartScores(encoder)
    systems = [MixedSystem(scores, rank) for rank in ("words", "all", "whole", "passages", "whole+words")]
    texts = [*QUERIES.values(), *CORPUS.values()]
    assert systems[0].rank(TASK, 10, silent).lengths is None and encoder.encoded == []
    for system in systems:
        ranked(system)
    assert encoder.encoded == texts
    other = RetrievalTask("more", "test", {"x": "tin dog"}, {"q": "dog"}, {"q": {"x": 1}})
    for system in systems[1:]:
        assert ranked(system, other)["q"]["x"] > 0
    assert encoder.encoded == [*texts, "dog", "tin dog"]
    assert_ranks(ranked(systems[2]), wholes_by_hand())
    assert len(encoder.encoded) == 2 * len(texts) + 2, "only the last task is kept"


@pytest.mark.parametrize("passages", [0, 1])
def test_a_peer_without_passages_ranks_by_its_whole(passages: int) -> None:
    class Peer(BagOfWords):
        name = "peer"

        def encode_documents(self, texts: Any, *, passages: bool = True, progress: Any = None) -> Any:
            return super().encode_documents(texts, passages=bool(wanted), progress=progress)

    wanted, task = passages, RetrievalTask("birds", "test", {k: v.replace("|", " ") for k, v in CORPUS.items()},
                                           QUERIES, TASK.qrels)  # fmt: skip
    scores = PartScores(Peer())
    runs = [ranked(MixedSystem(scores, rank), task) for rank in ("whole", "passages", "whole+passages")]
    for run in runs:
        assert_ranks(run, wholes_by_hand())


def test_groups_of_documents_give_the_same_and_tell_how_far_they_are(monkeypatch: Any) -> None:
    seen: dict[str, list[float]] = {}
    monkeypatch.setattr(m2bert.bench.mixtures, "DOCUMENTS_ENCODED_AT_ONCE", 3)
    system = MixedSystem(PartScores(Cutting()), "whole+passages")
    ranking = system.rank(TASK, 10, lambda label, done: seen.setdefault(label, []).append(done))
    assert_ranks(ranking.run, 0.7 * wholes_by_hand() + 0.3 * pairs_by_hand(rounded=True))
    assert seen == {"birds: cutting, queries": [1.0], "birds: cutting, documents": [0.25, 0.5, 0.75, 1.0]}
    assert ranking.tokens is not None and ranking.tokens["other"] == 9


def test_scores_are_those_of_a_store(tmp_path: Path) -> None:
    """Two implementations of one definition: bm25s and matrices here, a database there."""
    embedder = tiny_embedder()
    corpus = {f"d{number}": story(10 + 90 * number, seed=number) for number in range(6)}
    queries = {"q1": "copper harbor in winter", "q2": "a ladder, a window", "q3": "market"}
    task = RetrievalTask("tales", "test", corpus, queries, {query: {"d0": 1} for query in queries})
    index = SearchIndex(tmp_path / "store", embedder)
    index.add(corpus)
    scores = PartScores(embedder)
    for rank in ("all", "whole", "passages", "words", "passages+words"):
        run = ranked(MixedSystem(scores, rank), task)
        for query, text in queries.items():
            stored = {result.id: result.score for result in index.search(text, 6, rank=rank)}
            assert {key: value for key, value in run[query].items() if key in stored} == pytest.approx(stored, abs=1e-5)
            assert max(stored.values()) > 0.05 and list(stored) == list(run[query])[: len(stored)]
            assert len(stored) == 6 or rank == "words"


def test_terms_are_inner_products_of_sparse_vectors() -> None:
    class Sparse(Cutting):
        """Pieces are words; their weights are 1, 2, 3, ... by the alphabet."""

        def encode_sparse(self, texts: Any) -> Any:
            from m2bert.encoders.protocol import SparseVector

            found = [np.array([WORDS.index(word) * 10 for word in sorted({*text.replace("|", " ").split()})])
                     for text in texts]  # fmt: skip
            return [SparseVector(x.astype(np.int32), (1 + x / 10).astype(np.float32)) for x in found]

    def by_hand(query: str, text: str) -> float:
        shared = {*query.split()} & {*text.replace("|", " ").split()}
        return sum((1.0 + WORDS.index(word)) ** 2 for word in shared)

    encoder: Any = Sparse()
    encoder.mixture = Mixture(whole=1.0, passages=0.0, words=0.0, terms=0.5)
    expected = np.array([[by_hand(query, text) for text in CORPUS.values()] for query in QUERIES.values()])
    assert np.ptp(expected) > 10
    scores = PartScores(encoder)
    assert_ranks(ranked(MixedSystem(scores, "terms")), expected)
    assert_ranks(ranked(MixedSystem(scores)), wholes_by_hand() + 0.5 * expected)


def test_texts_that_cannot_be_compared_are_named() -> None:
    class Picky(Cutting):
        def vector(self, text: str) -> np.ndarray:
            if text == CORPUS["two"]:
                raise M2BertError("Picky: dislikes it")
            return super().vector(text) * (np.nan if text == bad else 1)

    bad = ""
    with pytest.raises(M2BertError, match=r"document of birds 'two' cannot be encoded\. Picky: dislikes it"):
        ranked(MixedSystem(PartScores(Picky())))
    bad = QUERIES["q2"]
    with pytest.raises(M2BertError, match="query of birds 'q2' is not finite"):
        ranked(MixedSystem(PartScores(Picky())))
    with pytest.raises(M2BertError, match=r"rank: must be all, .* got 'best'"):
        MixedSystem(PartScores(Cutting()), "best")
