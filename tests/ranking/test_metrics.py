"""Metrics against values worked out by hand and a second, independent implementation."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest

from m2bert.errors import M2BertError
from m2bert.ranking.metrics import largest_cutoff, mean_over_queries, parse_metric, run_from_scores, score_run

# The files of TREC: query, 0, document, relevance; query, Q0, document, rank, score, system.
QRELS_FILE = """
q1 0 a 2
q1 0 b 1
q1 0 c 0
q2 0 e 1
q2 0 f 1
"""
RUN_FILE = """
q1 Q0 c 1 3.0 x
q1 Q0 a 2 2.0 x
q1 Q0 d 3 1.0 x
q1 Q0 b 4 0.5 x
q2 Q0 e 1 9.0 x
q2 Q0 a 2 8.0 x
"""


def parse(text, column, number):
    table = {}
    for line in text.split("\n"):
        if line:
            parts = line.split()
            table.setdefault(parts[0], {})[parts[2]] = number(parts[column])
    return table


QRELS, RUN = parse(QRELS_FILE, 3, int), parse(RUN_FILE, 4, float)


def test_metrics_match_values_worked_out_by_hand():
    values = score_run(QRELS, RUN, ["nDCG@10", "nDCG@1", "nDCG@3", "R@1", "R@3", "R@10", "RR@1", "RR@10"])
    # q1 ranks c (0), a (2), d (unjudged), b (1); the ideal order is a, b.
    third, fifth = 1 / math.log2(3), 1 / math.log2(5)
    assert values["q1"] == pytest.approx(
        {
            "nDCG@10": (2 * third + 1 * fifth) / (2 + 1 * third),
            "nDCG@1": 0.0,
            "nDCG@3": (2 * third) / (2 + 1 * third),
            "R@1": 0.0,
            "R@3": 0.5,
            "R@10": 1.0,
            "RR@1": 0.0,
            "RR@10": 0.5,
        },
        abs=1e-9,
    )
    # q2 finds one of its two documents, at rank 1.
    assert values["q2"] == pytest.approx(
        {
            "nDCG@10": 1 / (1 + third),
            "nDCG@1": 1.0,
            "nDCG@3": 1 / (1 + third),
            "R@1": 0.5,
            "R@3": 0.5,
            "R@10": 0.5,
            "RR@1": 1.0,
            "RR@10": 1.0,
        },
        abs=1e-9,
    )
    assert mean_over_queries(values)["RR@10"] == pytest.approx(0.75, abs=1e-12)


def plain_scores(qrels, run, k):
    """nDCG@k, R@k, RR@k of one query by the definitions, with the stated tie rule."""
    order = sorted(sorted(run, reverse=True), key=lambda doc_id: -np.float32(run[doc_id]))[:k]
    gains = [qrels.get(doc_id, 0) for doc_id in order]
    ideal = sorted(qrels.values(), reverse=True)[:k]

    def dcg(values):
        return sum(value / math.log2(rank + 1) for rank, value in enumerate(values, 1))

    num_relevant = sum(value >= 1 for value in qrels.values())
    first = next((rank for rank, gain in enumerate(gains, 1) if gain >= 1), None)
    return (
        dcg(gains) / dcg(ideal),
        sum(gain >= 1 for gain in gains) / num_relevant,
        1 / first if first else 0.0,
    )


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_metrics_match_a_second_implementation_with_many_ties(k):
    rng = random.Random(k)
    documents = [f"d{i}" for i in range(120)]
    qrels, run = {}, {}
    for query in range(40):
        judged = rng.sample(documents, rng.randint(1, 30))
        qrels[f"q{query}"] = {doc_id: rng.randint(0, 2) for doc_id in judged} | {judged[0]: 1}
        run[f"q{query}"] = {doc_id: float(rng.randint(0, 6)) for doc_id in rng.sample(documents, rng.randint(1, 120))}
    values = score_run(qrels, run, [f"nDCG@{k}", f"R@{k}", f"RR@{k}"])
    for query_id, row in values.items():
        assert list(row.values()) == pytest.approx(plain_scores(qrels[query_id], run[query_id], k), abs=1e-9)


def test_equal_scores_are_ranked_by_descending_document_id():
    values = score_run({"q": {"a": 1}}, {"q": {"a": 0.5, "b": 0.5, "c": 0.5}}, ["RR@10"])
    assert values["q"]["RR@10"] == pytest.approx(1 / 3)
    values = score_run({"q": {"c": 1}}, {"q": {"a": 0.5, "b": 0.5, "c": 0.5}}, ["RR@10"])
    assert values["q"]["RR@10"] == 1.0


def test_scores_that_differ_only_beyond_float32_are_equal():
    near, apart = ({"q": {"a": 1 + step, "b": 1.0}} for step in (1e-9, 1e-6))
    assert score_run({"q": {"a": 1}}, near, ["RR@10"])["q"]["RR@10"] == 0.5
    assert score_run({"q": {"a": 1}}, apart, ["RR@10"])["q"]["RR@10"] == 1.0


def test_worse_rankings_score_less():
    """Negative control: nothing found, and the best two swapped, must not pass for the right ranking."""
    right = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    swapped = {"q": {"a": 2.0, "b": 3.0, "c": 1.0}}
    best, damaged, nothing = (
        score_run({"q": {"a": 1}}, run, ["nDCG@10"])["q"]["nDCG@10"] for run in (right, swapped, {"q": {}})
    )
    assert best == 1.0
    assert damaged == pytest.approx(1 / math.log2(3), abs=1e-9)
    assert nothing == 0.0


def test_a_query_missing_from_the_run_counts_as_zero():
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}}
    for run in ({"q1": {"a": 1.0}}, {"q1": {"a": 1.0}, "q2": {}}):
        values = score_run(qrels, run, ["nDCG@10", "RR@10"])
        assert mean_over_queries(values) == {"nDCG@10": 0.5, "RR@10": 0.5}
    assert mean_over_queries(score_run(qrels, {}, ["R@10"])) == {"R@10": 0.0}


def test_scoring_edits_nothing():
    qrels, run = copy.deepcopy(QRELS), copy.deepcopy(RUN)
    score_run(qrels, run, ["nDCG@1", "RR@1"])
    assert (qrels, run) == (QRELS, RUN)


def test_cut_run_keeps_the_metrics_of_the_whole_one():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (30, 200)).astype(np.float32)
    queries, documents = [f"q{i}" for i in range(30)], [f"d{i}" for i in rng.permutation(200)]
    qrels = {query: {documents[i]: 1 for i in rng.integers(0, 200, 20)} for query in queries}
    metrics = ["nDCG@10", "R@10", "RR@10"]
    whole, cut = (run_from_scores(scores, queries, documents, depth) for depth in (200, 10))
    assert {len(row) for row in cut.values()} == {10}
    assert score_run(qrels, cut, metrics) == score_run(qrels, whole, metrics)
    assert mean_over_queries(score_run(qrels, whole, metrics))["R@10"] > 0


def test_run_from_scores_leaves_out_what_does_not_exceed_the_floor():
    run = run_from_scores(np.array([[0.0, 2.0, 1.0]]), ["q"], ["a", "b", "c"], 10, above=0.0)
    assert run == {"q": {"b": 2.0, "c": 1.0}}
    assert list(run["q"]) == ["b", "c"]


@pytest.mark.parametrize("metric", ["nDCG", "nDCG@0", "ndcg@10", "MAP@10", "R@-1", "R@ten", ""])
def test_unknown_metric_is_refused_with_the_known_ones(metric):
    with pytest.raises(M2BertError, match=r"nDCG@k, R@k, RR@k"):
        parse_metric(metric)


@pytest.mark.parametrize(
    ("qrels", "run", "message"),
    [
        ({}, {}, "at least one query"),
        ({"q": {"a": 0}}, {}, "'q' of qrels has no relevant document"),
        ({"q": {}}, {}, "'q' of qrels has no relevant document"),
        ({"q": {"a": 1}}, {"p": {"a": 1.0}}, "'p' of the run is not in qrels"),
        ({"q": {"a": 1}}, {"q": {"a": math.nan}}, "got nan for document 'a', query 'q'"),
        ({"q": {"a": 1}}, {"q": {"a": math.inf}}, "got inf for document 'a', query 'q'"),
    ],
)
def test_what_trec_eval_would_pass_over_is_refused(qrels, run, message):
    with pytest.raises(M2BertError, match=message):
        score_run(qrels, run, ["nDCG@10"])


def test_bad_scores_are_refused():
    with pytest.raises(M2BertError, match=r"got nan for document 'b', query 'q'"):
        run_from_scores(np.array([[0.0, np.nan]]), ["q"], ["a", "b"], 10)
    with pytest.raises(M2BertError, match=r"shape \(queries, documents\) = \(1, 2\), got \(2, 1\)"):
        run_from_scores(np.zeros((2, 1)), ["q"], ["a", "b"], 10)
    with pytest.raises(M2BertError, match="at least one metric"):
        largest_cutoff([])


def test_ndcg_agrees_with_scikit_learn():
    """A second library with code of its own. No equal scores: it averages over ties where trec_eval goes by id."""
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = np.random.default_rng(3)
    ids = [f"d{number:02d}" for number in range(40)]
    relevance = rng.choice([0, 0, 0, 0, 1, 2], size=(25, 40))
    relevance[:, 0] = 1
    scores = np.stack([rng.permutation(40) for _ in range(25)]).astype(np.float64)
    qrels = {f"q{number}": dict(zip(ids, row.tolist(), strict=True)) for number, row in enumerate(relevance)}
    run = {f"q{number}": dict(zip(ids, row.tolist(), strict=True)) for number, row in enumerate(scores)}
    values = score_run(qrels, run, ["nDCG@1", "nDCG@10", "nDCG@100"])
    for number in range(25):
        for k in (1, 10, 100):
            theirs = metrics.ndcg_score(relevance[[number]], scores[[number]], k=k)
            assert values[f"q{number}"][f"nDCG@{k}"] == pytest.approx(theirs, abs=1e-9)
            # Negative control: the ranking turned round has another value.
            other = metrics.ndcg_score(relevance[[number]], -scores[[number]], k=100)
        assert values[f"q{number}"]["nDCG@100"] != pytest.approx(other, abs=1e-6)


def test_metrics_agree_with_ir_measures():
    """Its RR is MS MARCO's code. R@k comes to the same trec_eval by another way of asking."""
    measures = pytest.importorskip("ir_measures", reason="needs ir_measures")
    generator = random.Random(5)
    ids = [f"d{number}" for number in range(60)]
    qrels = {f"q{n}": dict.fromkeys(generator.sample(ids, 3), 1) for n in range(30)}
    run = {query: {doc: generator.random() for doc in generator.sample(ids, 50)} for query in qrels}
    values = score_run(qrels, run, ["RR@10", "R@10", "nDCG@10"])
    for provider, names in ((measures.providers.MsMarcoProvider(), ["RR@10"]), (measures, ["R@10", "nDCG@10"])):
        wanted = [measures.parse_measure(name) for name in names]
        theirs = {(each.query_id, str(each.measure)): each.value for each in provider.iter_calc(wanted, qrels, run)}
        assert len(theirs) == 30 * len(names)
        for (query, name), value in theirs.items():
            assert values[query][name] == pytest.approx(value, abs=1e-9)
