"""What a store ranks by: every part by hand, the benchmark's ranking, and BM25 after any change of the store."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import lancedb
import lancedb.query
import numpy as np
import pytest
from bag_of_words import BagOfWords
from ranked_by_hand import (
    ODD,
    QUERIES,
    RANKS,
    WEIGHTS,
    best_pair,
    bm25_by_hand,
    by_hand,
    mixed_texts,
    scores_of,
    weights_of,
)
from tiny import story, tiny_embedder

import m2bert.search.stores.lance
from m2bert.bench.mixtures import MixedSystem, PartScores
from m2bert.bench.tasks import RetrievalTask
from m2bert.encoders.cache import CachedEncoder
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.ranking.bm25 import BM25, word_scale
from m2bert.ranking.parts import Mixture
from m2bert.ranking.words import words_of
from m2bert.search.documents import Document
from m2bert.search.index import SearchIndex


@pytest.fixture(scope="module")
def embedder() -> Any:
    return tiny_embedder()


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return mixed_texts()


@pytest.fixture(scope="module")
def index(tmp_path_factory: Any, embedder: Any, texts: dict[str, str]) -> SearchIndex:
    made = SearchIndex(tmp_path_factory.mktemp("ranking") / "store", embedder)
    made.add(texts)
    return made


@pytest.fixture(scope="module")
def expected(embedder: Any, texts: dict[str, str]) -> dict[str, Any]:
    return {query: by_hand(embedder, texts, query) for query in QUERIES[:3]}


@pytest.mark.parametrize("rank", RANKS)
def test_parts_are_those_worked_out_by_hand_and_add_up(index: SearchIndex, expected: Any, rank: str) -> None:
    weights = weights_of(rank)
    for query, scores in expected.items():
        results = index.search(query, 100, rank=rank)
        totals = {name: sum(weights[part] * own[part] for part in weights) for name, own in scores.items()}
        if rank == "words":
            totals = {name: total for name, total in totals.items() if total > 0}
            assert 0 < len(totals) <= 64
        assert [result.rank for result in results] == list(range(1, len(totals) + 1))
        assert {result.id: result.score for result in results} == pytest.approx(totals, abs=2e-6)
        assert [-result.score for result in results] == sorted(-result.score for result in results)
        for result in results:
            parts = {part: weight * scores[result.id][part] for part, weight in weights.items()}
            assert result.parts == pytest.approx(parts, abs=2e-6)
            assert sum(result.parts.values()) == pytest.approx(result.score, abs=1e-6)
        assert [result.id for result in index.search(query, 5, rank=rank)] == [result.id for result in results[:5]]


def test_documents_of_one_and_of_many_passages_are_ranked_together(index: SearchIndex, expected: Any) -> None:
    """So the tests beside this one see both; and the parts disagree, or ranking by all would show nothing."""
    counts = [len(index.document(f"d{n:02d}").spans) for n in range(12)]
    assert min(counts) == 1 and max(counts) > 4 and 2 in counts
    scores = expected[QUERIES[0]]
    orders = {part: sorted(scores, key=lambda name: -scores[name][part]) for part in WEIGHTS}
    assert len({tuple(order[:5]) for order in orders.values()}) == 3


@pytest.mark.parametrize("cached", [False, True])
def test_a_store_ranks_as_the_benchmark_does(
    tmp_path: Path, index: SearchIndex, embedder: Any, texts: dict[str, str], cached: bool
) -> None:
    queries = {f"q{n}": query for n, query in enumerate(QUERIES)}
    task = RetrievalTask("made up", "test", texts, queries, {name: {"d00": 1} for name in queries})
    encoder = CachedEncoder(embedder, tmp_path) if cached else embedder
    parts = PartScores(encoder)
    for rank in RANKS:
        run = MixedSystem(parts, rank).rank(task, len(texts), lambda *_: None).run
        for name, query in queries.items():
            benchmark = run[name]
            if rank == "words":
                benchmark = {document: score for document, score in benchmark.items() if score > 0}
            results = index.search(query, len(texts), passages=0, rank=rank)
            assert {result.id: result.score for result in results} == pytest.approx(benchmark, abs=1e-5)
            # In an order that is the benchmark's, but where it calls two documents equal.
            order = [benchmark[result.id] for result in results]
            assert order == pytest.approx(sorted(benchmark.values(), reverse=True), abs=1e-5)
            assert bool(results) == (rank != "words" or query != "is it not?")
            assert not results or np.ptp(order) > 1e-3


def test_hits_are_the_best_pairs_that_do_not_overlap(index: SearchIndex, embedder: Any, texts: dict[str, str]) -> None:
    query = QUERIES[0]
    vector = embedder.encode([query])[0]
    for result in index.search(query, 20):
        passages = embedder.encode_documents([texts[result.id]])[0].passages
        if len(passages) == 1:
            (hit,) = result.passages
            assert (hit.start, hit.end) == (0, len(texts[result.id]))
            assert [hit.score, hit.contribution] == pytest.approx([float(passages[0].vector @ vector)] * 2, abs=1e-5)
            continue
        pairs = list(pairwise(passages))
        cosines = [best_pair(vector, list(pair)) for pair in pairs]
        chosen: list[int] = []
        for first in sorted(range(len(pairs)), key=lambda n: -cosines[n]):
            if len(chosen) < 3 and all(abs(first - other) > 1 for other in chosen):
                chosen.append(first)
        assert [(hit.start, hit.end) for hit in result.passages] == [
            (pairs[n][0].start, pairs[n][1].end) for n in chosen
        ]
        assert [hit.score for hit in result.passages] == pytest.approx([cosines[n] for n in chosen], abs=1e-5)
        shares = [sum(float(each.vector @ vector) for each in pairs[n]) for n in chosen]
        assert [hit.contribution for hit in result.passages] == pytest.approx(shares, abs=0.01)
        assert result.parts["passages"] == pytest.approx(0.3 * result.passages[0].score, abs=1e-6)
        for hit in result.passages:
            assert hit.text == texts[result.id][hit.start : hit.end]
            assert hit.position == pytest.approx((hit.start + hit.end) / 2 / len(texts[result.id]))
    assert any(len(result.passages) == 3 for result in index.search(query, 64))
    assert all(len(result.passages) == 1 for result in index.search(query, passages=1))


def word_texts(count: int, seed: int = 0) -> dict[str, str]:
    generator = random.Random(seed)
    words = [f"{a}{b}ing" for a in "bdfgk" for b in ("oro", "ulu", "ime", "ax")] + ["the", "of", "7", "x_y"]
    return {f"w{n}": " ".join(generator.choices(words, k=generator.randint(1, 60))) for n in range(count)}


def check_words(index: SearchIndex, texts: Mapping[str, str], folder: Path) -> None:
    """The store's word scores are BM25's of these texts, and those of a store made of them at once."""
    fresh = SearchIndex(folder, BagOfWords())
    fresh.add([Document(name, text, "") for name, text in texts.items()])
    oracle = BM25(list(texts.values()))
    for query in ("boroing", "ululu buluing FIMEING the 7", "kaxing kaxing y", "abcdefghij" * 6, "2024 käse ÖL", "c"):
        scores = oracle.score([query])[0].astype(np.float64) * word_scale(len(words_of(query)), len(texts))
        benchmark = {name: float(score) for name, score in zip(texts, scores, strict=True) if score > 0}
        hand = bm25_by_hand(texts, words_of(query))
        assert {name for name, score in hand.items() if score > 0} == benchmark.keys()
        found = scores_of(index, query)
        assert found == pytest.approx(benchmark, rel=1e-5)
        assert found == pytest.approx(scores_of(fresh, query), rel=1e-6)


def test_words_are_bm25_of_what_is_there_after_every_change(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    texts = {**word_texts(40), **ODD}
    index.add(texts)
    check_words(index, texts, tmp_path / "first")
    more = {f"new {n}": text for n, text in enumerate(word_texts(25, seed=1).values())}
    index.add(more)
    texts |= more
    check_words(index, texts, tmp_path / "more")
    changed = {"w3": "boroing " * 9, "w4": "nothing of it", "new 1": texts["w5"]}
    index.add(changed)
    texts |= changed
    check_words(index, texts, tmp_path / "changed")
    gone = ["w3", "w7", "w8", "new 0", "new 2", *(f"w{n}" for n in range(20, 30))]
    assert index.delete(gone) == len(gone)
    texts = {name: text for name, text in texts.items() if name not in gone}
    check_words(index, texts, tmp_path / "fewer")
    check_words(SearchIndex(tmp_path / "store", BagOfWords()), texts, tmp_path / "opened")


def test_words_that_a_query_repeats_are_asked_for_once(tmp_path: Path, monkeypatch: Any) -> None:
    """The database goes through each word as often as it is named, at once: a query of 2 MB took 950 MB."""
    texts = word_texts(40)
    index = SearchIndex(tmp_path / "store", BagOfWords())
    index.add(texts)
    asked: list[str] = []
    plain = lancedb.query.MatchQuery

    def noted(words: str, *rest: Any, **options: Any) -> Any:
        asked.extend(words.split())
        return plain(words, *rest, **options)

    monkeypatch.setattr(lancedb.query, "MatchQuery", noted)
    query = "boroing kaxing boroing " * 2000 + "ululu"
    found = scores_of(index, query)
    hand, scale = bm25_by_hand(texts, words_of(query)), word_scale(4001 + 2000, len(texts))
    assert found == pytest.approx({name: scale * score for name, score in hand.items() if score > 0}, rel=1e-4)
    assert set(asked) == {"boro", "kax", "ululu"} and len(asked) < 10


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("abcdefghij" * 6, ["long"]),
        ("ABCDEFGHIJ" * 6, ["long"]),
        ("abcdefghij" * 5, []),
        ("2024", ["numbers"]),
        ("141 v2", ["numbers"]),
        ("length", ["lines"]),
        ("score", ["lines"]),
        ("max_token", ["lines"]),
        ("KÄSE", ["umlauts"]),
        ("kase ol cafe", []),
        ("東京", ["umlauts"]),
        ("c", ["single"]),
        ("r", ["single"]),
        ('under" AND (max*', ["lines"]),
    ],
)
def test_long_and_numbered_and_foreign_words_are_found_as_they_are(
    odd_index: SearchIndex, query: str, names: list[str]
) -> None:
    assert list(scores_of(odd_index, query)) == names


@pytest.fixture(scope="module")
def odd_index(tmp_path_factory: Any) -> SearchIndex:
    made = SearchIndex(tmp_path_factory.mktemp("odd") / "store", BagOfWords())
    made.add({**ODD, "other": "river stone"})
    return made


def test_scores_are_exact_beyond_the_candidates(tmp_path: Path, monkeypatch: Any) -> None:
    """Five documents near by their whole say the word once among many; twenty others say it more often."""
    monkeypatch.setattr(m2bert.search.stores.lance, "CANDIDATES", 5)
    monkeypatch.setattr(m2bert.search.stores.lance, "WORDS_LISTED", 5)
    encoder = BagOfWords(dim=64, passage_words=9)
    texts = {f"often {n:02d}": "copper " * (3 + n) + " ".join(f"x{n}y{m}" for m in range(20)) for n in range(20)}
    texts |= {f"near {n}": "winter harbor " * (8 + n) + "copper " + "market " * 20 for n in range(5)}
    texts |= {f"none {n:02d}": f"paper engine z{n}" for n in range(30)}
    index = SearchIndex(tmp_path, encoder)
    index.add(texts)
    query = "winter harbor copper"
    scores = by_hand(encoder, texts, query)
    totals = {name: sum(WEIGHTS[part] * own[part] for part in WEIGHTS) for name, own in scores.items()}
    for k in (1, 5, 9):
        results = index.search(query, k)
        assert len(results) == k
        for result in results:
            parts = {part: WEIGHTS[part] * scores[result.id][part] for part in WEIGHTS}
            assert result.parts == pytest.approx(parts, rel=1e-5, abs=2e-6)
            assert result.score == pytest.approx(totals[result.id], abs=2e-6)
    # A word that all the near ones have, and that others have more of: none of them is among its first nine.
    (vector,) = encoder.encode(["winter harbor market"])
    monkeypatch.setattr(encoder, "encode", lambda texts, **_: vector[None])
    near = {result.id: result.parts["words"] for result in index.search("copper", 9) if result.id.startswith("near")}
    first = [result.id for result in index.search("copper", 9, rank="words")]
    assert len(near) == 5 and not set(first) & set(near)
    copper = bm25_by_hand(texts, ["copper"])
    assert near == pytest.approx({name: 0.7 * copper[name] / math.log(1 + len(texts)) for name in near}, rel=1e-5)
    assert min(near.values()) > 0
    # Only as many candidates as there may be: with more of them the others are found too.
    assert len(index.search("copper", 55)) == 55


class Unloadable(BagOfWords):
    """Fails when it is asked for anything."""

    def encode(self, texts: Any, *, progress: Any = None) -> Any:
        raise AssertionError("a model was run")


def test_words_alone_load_no_model_and_find_only_documents_that_have_some(tmp_path: Path, monkeypatch: Any) -> None:
    SearchIndex(tmp_path / "store", BagOfWords()).add(
        {"a": "river stone", "b": "stone paper", "c": "engine", "d": "rivers, and rivers of the city"}
    )
    monkeypatch.setattr(Embedder, "__init__", lambda *_, **__: pytest.fail("a model was loaded"))
    for index in (SearchIndex(tmp_path / "store"), SearchIndex(tmp_path / "store", Unloadable())):
        found = index.search("the rivers", rank="words")
        assert [result.id for result in found] == ["d", "a"] and found[0].score > found[1].score > 0
        assert [result.passages for result in found] == [[], []]
        assert [list(result.parts) for result in found] == [["words"], ["words"]]
        assert {result.id for result in index.search("paper engine", rank="words")} == {"b", "c"}
        assert [result.id for result in index.search("paper engine stone", 1, rank="words")] == ["b"]
        assert index.search("the of", rank="words") == index.search("unheard", rank="words") == []
    assert SearchIndex(tmp_path / "store")._embedder is None


@pytest.mark.parametrize("rank", ["", "bm25", "whole+whole", "words+all", "passages,words", None, 3])
def test_ranks_that_there_are_not_are_refused_in_words(index: SearchIndex, rank: Any) -> None:
    with pytest.raises(M2BertError, match=r"^rank: must be all, whole, .*, or some of the parts joined by \+, got"):
        index.search("river", rank=rank)


@pytest.mark.parametrize("rank", ["terms", "whole+terms", "words+terms"])
def test_terms_are_refused_because_no_store_keeps_them(index: SearchIndex, rank: str) -> None:
    with pytest.raises(M2BertError, match=r"search: rank must do without terms, which are not kept in stores, got"):
        index.search("river", rank=rank)


def test_weights_are_those_of_the_encoder(tmp_path: Path) -> None:
    encoder: Any = BagOfWords(dim=64, passage_words=3)
    texts = {"a": "river stone paper engine market", "b": "river harbor", "c": "stone stone"}
    index = SearchIndex(tmp_path, encoder)
    index.add(texts)
    scores = by_hand(encoder, texts, "river stone")
    encoder.mixture = Mixture(0.25, 0.0, 2.0)
    for result in index.search("river stone"):
        own = scores[result.id]
        assert result.parts == pytest.approx({"whole": 0.25 * own["whole"], "words": 2 * own["words"]}, abs=1e-6)
    encoder.mixture = Mixture(terms=0.5)
    with pytest.raises(M2BertError, match=r"the mixture of 'bag-of-words' must not weigh terms, .*got 0\.5"):
        index.search("river stone")


def test_scores_are_exact_where_vectors_have_an_index(tmp_path: Path, monkeypatch: Any) -> None:
    """The index names candidates alone; it is made where there are rows enough, and again where too many are new."""
    monkeypatch.setattr(m2bert.search.stores.lance_indexes, "INDEXED_FROM", 300)
    monkeypatch.setattr(m2bert.search.stores.lance, "CANDIDATES", 30)
    encoder = BagOfWords(dim=64)
    texts = {f"d{n:03d}": story(20, seed=n) for n in range(299)}
    index = SearchIndex(tmp_path, encoder)
    table = lancedb.connect(str(tmp_path)).open_table

    def unindexed() -> list[int]:
        opened = table("documents")
        names = [one.name for one in opened.list_indices() if one.columns == ["vector"]]
        return [opened.index_stats(name).num_unindexed_rows for name in names]

    rows = []
    for first, last in ((0, 299), (299, 300), (300, 310), (310, 460)):
        texts |= (more := {f"d{n:03d}": story(20, seed=n) for n in range(first, last)})
        index.add(more)
        rows.append(unindexed())
    assert rows == [[], [0], [10], [0]]
    cosines = dict(zip(texts, encoder.encode(list(texts.values())) @ encoder.encode(["copper"])[0], strict=True))
    results = index.search("copper", 10, rank="whole")
    assert {one.id: one.score for one in results} == pytest.approx({x.id: float(cosines[x.id]) for x in results})
    best = sorted(cosines.values(), reverse=True)[:10]
    assert [one.score for one in results] == pytest.approx([float(x) for x in best])  # of thirty candidates
