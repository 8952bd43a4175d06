"""Fusion: several rankings of the same documents into one, by their scores or by their ranks.

By scores (the default of hybrids): each ranking's scores are brought to 0 .. 1 and added up, a convex combination
with equal weights (Bruch, Gai and Ingber, ACM TOIS 2023); a ranking that is sure of its first documents weighs more
there. By ranks: reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009), for rankings whose scores mean
nothing. A leaf: ids and numbers only.
Test: tests/ranking/test_fusion.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from m2bert.errors import M2BertError

Id = TypeVar("Id", str, tuple[str, str])

RRF_K = 60
"""The constant of the paper; larger values flatten the advantage of the first ranks."""


def reciprocal_rank_fusion(rankings: Iterable[Sequence[Id]], k: float = RRF_K) -> list[tuple[Id, float]]:
    """Documents of all rankings with their fused score, best first; equal scores by id, ascending.

    rankings: each a list of document ids, or of pairs of source and id, best first; a document missing from one gets
    nothing from it.
    score(d) = sum over the rankings that hold d of 1 / (k + rank), rank counted from 1.
    Raises M2BertError if a ranking names a document twice or k is negative.
    """
    if k < 0:
        raise M2BertError(f"fusion: k must be 0 or more, got {k}; the usual value is {RRF_K}")
    terms: dict[Id, list[float]] = {}
    for ranking in rankings:
        if len(set(ranking)) != len(ranking):
            twice = next(document for document in ranking if ranking.count(document) > 1)
            raise M2BertError(f"fusion: a ranking must name a document once, got {twice!r} again; remove repeats")
        for rank, document in enumerate(ranking, 1):
            terms.setdefault(document, []).append(1.0 / (k + rank))
    return _added_up(terms)


def score_fusion(rankings: Iterable[Mapping[Id, float]]) -> list[tuple[Id, float]]:
    """Documents of all rankings with their fused score, best first; equal scores by id, ascending.

    rankings: each the scores of its documents, by id or by pair of source and id; whatever their unit, more is better.
    score(d) = sum over the rankings that hold d of (s(d) - lowest) / (highest - lowest), 1 where all scores are equal:
    a document missing from one counts as its last there.
    Raises M2BertError if a score is not finite.
    """
    terms: dict[Id, list[float]] = {}
    for ranking in rankings:
        if not ranking:
            continue
        lowest, highest = min(ranking.values()), max(ranking.values())
        for document, score in ranking.items():
            if not math.isfinite(score):
                raise M2BertError(f"fusion: a score must be finite, got {score} for {document!r}; leave it out")
            share = (score - lowest) / (highest - lowest) if highest > lowest else 1.0
            terms.setdefault(document, []).append(share)
    return _added_up(terms)


def _added_up(terms: Mapping[Id, list[float]]) -> list[tuple[Id, float]]:
    # Exact sums: the order of the rankings must not break ties between documents.
    scores = {document: math.fsum(parts) for document, parts in terms.items()}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
