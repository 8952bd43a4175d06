"""Retrieval metrics over qrels and a run, computed by trec_eval's own code (pytrec-eval-terrier).

    qrels   {query_id: {doc_id: relevance}}    integer, relevant if >= 1
    run     {query_id: {doc_id: score}}        higher is better

nDCG@k  gain = relevance, discount log2(rank + 1), divided by the best possible DCG@k
R@k     relevant documents among the first k, over all relevant documents
RR@k    1 / rank of the first relevant document, 0 if it is not among the first k

Tie rule (trec_eval's): scores are compared in float32; equal scores are ranked by document id, in descending byte
order of UTF-8. Nothing is edited. A query that is missing from the run counts as 0, never as absent. A leaf: ids and
numbers only.
Test: tests/ranking/test_metrics.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert.errors import M2BertError, missing_package

Run = dict[str, dict[str, float]]
TIE_RULE = "score descending in float32, then document id descending (trec_eval)"
_TREC_NAMES = {"nDCG": "ndcg_cut", "R": "recall", "RR": "recip_rank"}


def parse_metric(metric: str) -> tuple[str, int]:
    """("nDCG", 10) of "nDCG@10". Raises M2BertError for another name, listing the known ones."""
    match = re.fullmatch(r"(nDCG|RR|R)@([1-9][0-9]*)", metric)
    if match is None:
        known = ", ".join(f"{name}@k" for name in _TREC_NAMES)
        raise M2BertError(f"metrics: a metric must be one of {known} with k >= 1, got {metric!r}")
    return match[1], int(match[2])


def largest_cutoff(metrics: Sequence[str]) -> int:
    """The depth to which a run must be filled for these metrics to be exact."""
    if not metrics:
        raise M2BertError("metrics: name at least one metric, such as nDCG@10")
    return max(parse_metric(metric)[1] for metric in metrics)


def run_from_scores(
    scores: NDArray[np.floating],
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    depth: int,
    *,
    above: float = -math.inf,
) -> Run:
    """The first `depth` documents of each query, cut by the tie rule.

    scores: (num_queries, num_documents), finite. Only scores > `above` are kept: with 0, BM25 does not
    retrieve documents that share no word with the query. Raises M2BertError if the shape or a score is wrong.
    """
    if scores.shape != (len(query_ids), len(doc_ids)):
        shape = (len(query_ids), len(doc_ids))
        raise M2BertError(f"metrics: scores must have shape (queries, documents) = {shape}, got {scores.shape}")
    compared = np.asarray(scores, dtype=np.float32)
    if not np.isfinite(compared).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(compared))[0])
        raise _not_finite(query_ids[row], doc_ids[column], float(compared[row, column]))
    # Python orders text by code point, which is the byte order of its UTF-8.
    by_id = sorted(range(len(doc_ids)), key=lambda i: doc_ids[i], reverse=True)
    tie_rank = np.empty(len(doc_ids), dtype=np.int64)
    tie_rank[by_id] = np.arange(len(doc_ids))
    run: Run = {}
    for query_id, row_scores in zip(query_ids, compared, strict=True):
        order = np.lexsort((tie_rank, -row_scores))[:depth]
        run[query_id] = {doc_ids[i]: float(row_scores[i]) for i in order if row_scores[i] > above}
    return run


def _not_finite(query_id: str, doc_id: str, score: float) -> M2BertError:
    return M2BertError(
        f"metrics: every score must be finite, got {score} for document {doc_id!r}, query {query_id!r}; "
        "look for what made it before ranking"
    )


def _check(qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]]) -> None:
    """Raise for what trec_eval would pass over in silence."""
    if not qrels:
        raise M2BertError("metrics: qrels must hold at least one query, got none")
    for query_id, relevances in qrels.items():
        if not any(relevance >= 1 for relevance in relevances.values()):
            raise M2BertError(f"metrics: query {query_id!r} of qrels has no relevant document; remove it")
    for query_id, scores in run.items():
        if query_id not in qrels:
            raise M2BertError(f"metrics: query {query_id!r} of the run is not in qrels; score one task only")
        for doc_id, score in scores.items():
            if not math.isfinite(score):
                raise _not_finite(query_id, doc_id, score)


def load_trec_eval() -> Any:
    """The pytrec_eval module; M2BertError if it is missing. A long run asks before it begins."""
    try:
        import pytrec_eval
    except ImportError as error:
        raise missing_package("metrics", "pytrec-eval-terrier", "evaluate") from error
    return pytrec_eval


def score_run(
    qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]], metrics: Sequence[str]
) -> dict[str, dict[str, float]]:
    """{query_id: {metric: value in 0..1}} for every query of qrels, in its order.

    Raises M2BertError for an unknown metric, a query of qrels without a relevant document, a query of the run
    that is not in qrels, a score that is not finite, or a missing pytrec-eval-terrier.
    """
    largest_cutoff(metrics)
    _check(qrels, run)
    parsed = {metric: parse_metric(metric) for metric in metrics}
    names = {_TREC_NAMES[name] if name == "RR" else f"{_TREC_NAMES[name]}.{k}" for name, k in parsed.values()}
    evaluator = load_trec_eval().RelevanceEvaluator({q: dict(r) for q, r in qrels.items()}, names)
    found = evaluator.evaluate({q: {d: float(s) for d, s in scores.items()} for q, scores in run.items()})
    values: dict[str, dict[str, float]] = {}
    for query_id in qrels:
        trec = found.get(query_id, {})
        values[query_id] = {metric: _value(trec, name, k) for metric, (name, k) in parsed.items()}
    return values


def _value(trec: Mapping[str, float], name: str, k: int) -> float:
    """One metric of trec_eval's answer; its reciprocal rank has no cutoff, so ranks beyond k become 0."""
    if name == "RR":
        reciprocal = float(trec.get("recip_rank", 0.0))
        return reciprocal if reciprocal * (k + 0.5) >= 1.0 else 0.0
    return float(trec.get(f"{_TREC_NAMES[name]}_{k}", 0.0))


def mean_over_queries(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{metric: mean over all queries}, summed exactly so that the order of queries does not matter."""
    names = list(next(iter(values.values()), {}))
    return {name: math.fsum(row[name] for row in values.values()) / len(values) for name in names}
