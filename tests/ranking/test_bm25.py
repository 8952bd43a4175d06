"""BM25 against its formula on a corpus small enough to count by hand, and against published scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import Stemmer

from m2bert.bench.tasks import find_tasks, load_task
from m2bert.errors import M2BertError
from m2bert.ranking.bm25 import BM25, word_scale
from m2bert.ranking.metrics import mean_over_queries, run_from_scores, score_run

DOCUMENTS = ["alpha beta beta", "alpha gamma", "delta gamma gamma gamma delta"]


def weight(tf, df, length, *, k1=1.2, b=0.75):
    """Lucene's BM25 of one word in one of the three DOCUMENTS, whose mean length is 10 / 3."""
    idf = math.log(1 + (3 - df + 0.5) / (df + 0.5))
    return idf * (k1 + 1) * tf / (tf + k1 * (1 - b + b * length / (10 / 3)))


def test_bm25_matches_the_formula():
    scores = BM25(DOCUMENTS).score(["beta gamma", "alpha", "alpha alpha"])
    expected = [
        [weight(2, 1, 3), weight(1, 2, 2), weight(3, 2, 5)],
        [weight(1, 2, 3), weight(1, 2, 2), 0.0],
        [2 * weight(1, 2, 3), 2 * weight(1, 2, 2), 0.0],
    ]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_bm25_uses_the_settings_it_is_given():
    scores = BM25(DOCUMENTS, k1=0.9, b=0.4).score(["beta"])
    assert scores[0, 0] == pytest.approx(weight(2, 1, 3, k1=0.9, b=0.4), rel=1e-6)
    assert scores[0, 0] != pytest.approx(weight(2, 1, 3), rel=1e-3)


def test_bm25_folds_case_stems_and_drops_stop_words():
    index = BM25(["The RUNNERS were running", "A walker walked"])
    scores = index.score(["runs", "WALKING", "the", "a is of"])
    assert (scores[0, 0] > 0, scores[0, 1]) == (True, 0.0)
    assert (scores[1, 0], scores[1, 1] > 0) == (0.0, True)
    assert not scores[2:].any()


@pytest.mark.parametrize("documents", [["the of", "a"], ["", ""], ["!"]])
def test_bm25_of_documents_without_words_is_zero(documents):
    scores = BM25(documents).score(["cat", "the"])
    assert scores.shape == (2, len(documents))
    assert not scores.any()


def test_bm25_of_queries_without_known_words_is_zero():
    scores = BM25(DOCUMENTS).score(["", "the", "unheard", "beta"])
    assert scores.any(axis=1).tolist() == [False, False, False, True]
    assert BM25(DOCUMENTS).score([]).shape == (0, 3)


def test_bm25_scores_do_not_depend_on_the_order_of_documents():
    forward, backward = BM25(DOCUMENTS).score(["beta gamma"]), BM25(DOCUMENTS[::-1]).score(["beta gamma"])
    assert forward.any()
    np.testing.assert_array_equal(forward, backward[:, ::-1])


def test_bm25_is_silent_and_names_its_settings(capsys):
    index = BM25(DOCUMENTS)
    index.score(["beta"])
    assert capsys.readouterr() == ("", "")
    assert "k1=1.2, b=0.75" in index.fingerprint
    assert "k1=0.9, b=0.4" in BM25(DOCUMENTS, k1=0.9, b=0.4).fingerprint


def test_the_scale_of_words_is_by_their_root_and_the_logarithm_of_the_documents():
    """Values from a table of logarithms: ln 2 = 0.693147, ln 1001 = 6.908755."""
    assert word_scale(4, 1) == pytest.approx(0.5 / 0.693147, rel=1e-6)
    assert word_scale(9, 1000) == pytest.approx(1 / 3 / 6.908755, rel=1e-6)
    assert word_scale(0, 0) == word_scale(1, 1)  # neither divides by nothing


def test_bm25_refuses_an_empty_corpus():
    with pytest.raises(M2BertError, match="at least one document"):
        BM25([])


@pytest.mark.parametrize(("name", "published"), [("qmsum", 0.866), ("qmsum_query", 0.542), ("stackoverflow", 0.499)])
def test_published_scores_are_reproduced_with_the_published_words(shared_dir, monkeypatch, name, published):
    """They are of bm25s with its own words, k1 = 0.9, b = 0.4: reading, ranking and metrics around BM25 are right."""
    bm25s, stemmer = pytest.importorskip("bm25s"), Stemmer.Stemmer("english")

    def published_words(text):
        return bm25s.tokenize(text, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)[0]

    monkeypatch.setattr("m2bert.ranking.bm25.words_of", published_words)
    task = load_task(name, find_tasks(shared_dir / "data" / "loco")[name])
    scores = BM25(list(task.corpus.values()), k1=0.9, b=0.4).score(list(task.queries.values()))
    run = run_from_scores(scores, list(task.queries), list(task.corpus), 10, above=0.0)
    mean = mean_over_queries(score_run(task.qrels, run, ["nDCG@10"]))["nDCG@10"]
    assert mean == pytest.approx(published, abs=5.1e-4)
