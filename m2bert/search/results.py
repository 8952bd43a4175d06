"""What a search gives: ranked documents, what each part added to their scores, and their best passages.

Tests: tests/search/test_index.py, tests/search/test_ranking.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2bert.ranking.passages import pair_cosines
from m2bert.search.stores import Record


@dataclass(frozen=True)
class SearchHit:
    """Two neighbouring passages of a document, or its only one, and how well they match.

    start, end: characters of the document, which has `document_length` of them. score: their cosine with the query.
    contribution: what they add to the cosine of the query and the whole document.
    """

    start: int
    end: int
    score: float
    contribution: float
    text: str
    document_length: int

    @property
    def position(self) -> float:
        """The middle of the passage as a fraction of the document, 0 to 1."""
        return (self.start + self.end) / 2 / self.document_length


@dataclass(frozen=True)
class Share:
    """A stretch of a document, characters start to end, and what it adds to the cosine with its whole."""

    start: int
    end: int
    value: float


@dataclass(frozen=True)
class SearchResult:
    """A ranked document. parts: what its whole, its passages and its words add to the score (m2bert.ranking.parts), of
    which it is the sum. passages: those that match best. shares: what every passage adds to the cosine of the query and
    the whole, in their order; none where passages were not asked for, and by words alone."""

    rank: int
    id: str
    source: str
    score: float
    parts: Mapping[str, float]
    num_tokens: int
    passages: list[SearchHit]
    shares: list[Share]


def shares_of(record: Record, query: NDArray[np.float32]) -> list[Share]:
    """What every passage adds to the cosine of `query (dim,)`, of unit norm, and the document, in their order.

    Passages are stored rounded: a value is off by less than 0.001, for which `m2bert explain` makes up.
    """
    if record.passages is None:
        return [Share(int(start), int(end), float(record.vector @ query)) for start, end in record.spans]
    values = record.passages.products(query).tolist()
    return [Share(int(start), int(end), value) for (start, end), value in zip(record.spans, values, strict=True)]


def hits_of(record: Record, query: NDArray[np.float32], most: int) -> list[SearchHit]:
    """At most `most` of the best pairs of passages that do not overlap, the best first; `query (dim,)` of unit norm."""
    spans, cosine = record.spans, float(record.vector @ query)
    if record.passages is None:
        start, end = (int(spans[0, 0]), int(spans[-1, 1])) if len(spans) else (0, len(record.text))
        return [SearchHit(start, end, cosine, cosine, record.text[start:end], len(record.text))][:most]
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
            text, share = record.text[start:end], float(products[first : first + 2].sum())
            hits.append(SearchHit(start, end, float(cosines[first]), share, text, len(record.text)))
    return hits


def snippet(text: str, length: int) -> str:
    """The beginning of a passage on one line, without the frames of help texts, cut at a word."""
    words = [word for word in text.split() if word.strip("|-=_*#")]
    line = " ".join(words)
    length = max(length, 20)
    if len(line) <= length:
        return line
    return line[: length - 3].rsplit(" ", 1)[0] + "..."
