"""What a search gives: ranked documents, what each part added to their scores, and their best passages.

Tests: tests/search/test_index.py, tests/search/test_ranking.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2bert.ranking.passages import pair_cosines
from m2bert.search.sections import place_of
from m2bert.search.stores import Record


@dataclass(frozen=True)
class SearchHit:
    """Two neighbouring passages of a document, or its only one, and how well they match.

    start, end: characters of the document, which has `document_length` of them. score: their cosine with the query.
    contribution: what they add to the cosine of the query and the whole document. place: the page or heading they
    stand on or under, "page 12" or "page 12 to page 13"; empty where the document has none.
    """

    start: int
    end: int
    score: float
    contribution: float
    text: str
    document_length: int
    place: str = ""

    @property
    def position(self) -> float:
        """The middle of the passage as a fraction of the document, 0 to 1."""
        return (self.start + self.end) / 2 / self.document_length


@dataclass(frozen=True)
class SearchResult:
    """A ranked document. parts: what its whole, its passages and its words add to the score (m2bert.ranking.parts), of
    which it is the sum. passages: those that match best."""

    rank: int
    id: str
    source: str
    score: float
    parts: Mapping[str, float]
    num_tokens: int
    passages: list[SearchHit]


def hits_of(record: Record, query: NDArray[np.float32], most: int) -> list[SearchHit]:
    """At most `most` of the best pairs of passages that do not overlap, the best first; `query (dim,)` of unit norm."""
    spans, cosine = record.spans, float(record.vector @ query)
    if record.passages is None:
        start, end = (int(spans[0, 0]), int(spans[-1, 1])) if len(spans) else (0, len(record.text))
        return [_hit(record, start, end, cosine, cosine)][:most]
    products = record.passages.products(query)
    cosines = pair_cosines(products[:, None], record.passages.pair_norms, [len(products)])[:, 0]
    hits: list[SearchHit] = []
    taken: set[int] = set()
    for first in np.argsort(-cosines, kind="stable").tolist():
        if len(hits) == most:
            break
        if not taken & {first, first + 1}:
            taken |= {first, first + 1}
            start, end = int(spans[first, 0]), int(spans[first + 1, 1])
            share = float(products[first : first + 2].sum())
            hits.append(_hit(record, start, end, float(cosines[first]), share))
    return hits


def _hit(record: Record, start: int, end: int, cosine: float, share: float) -> SearchHit:
    text = record.text[start:end]
    return SearchHit(start, end, cosine, share, text, len(record.text), place_of(record.sections, start, text))
