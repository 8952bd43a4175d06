"""Reciprocal rank fusion: several rankings of the same documents into one (Cormack, Clarke and Büttcher, SIGIR 2009).

Ranks are all it reads, so rankings whose scores have different units (cosines, BM25) may be mixed.
A leaf: ids and numbers only. Imports m2bert.errors. Test: tests/test_fusion.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    # Exact sums: the order of the rankings must not break ties between documents.
    scores = {document: math.fsum(parts) for document, parts in terms.items()}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
