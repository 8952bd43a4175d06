"""Where a document answers a query: the contribution of every passage to the score, along the document.

With mean or weighted pooling the score is a sum over passages (m2bert.encoders.embedder), so the curve is exact: its
values add up to the score. The paper pools at one position and has no such decomposition; its needle study (section
5.1, table 15) asks the same question from outside.
Test: tests/search/test_explain.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError, TextError
from m2bert.provenance import provenance

if TYPE_CHECKING:
    from m2bert.search.index import SearchIndex

RUN_VERSION = 1


@dataclass(frozen=True)
class Contribution:
    """A stretch of the document, characters start to end, and its part of the score (negative: it speaks against)."""

    start: int
    end: int
    value: float
    text: str


@dataclass(frozen=True)
class Explanation:
    """One query, one document. score: their cosine, which the values of `contributions` add up to.

    num_tokens: tokens of the document that were read, in num_windows windows; num_truncated were not.
    length: characters of the document.
    """

    query: str
    document: str
    model: str
    fingerprint: str
    score: float
    length: int
    num_tokens: int
    num_windows: int
    num_truncated: int
    contributions: list[Contribution]

    def to_dict(self) -> dict[str, Any]:
        """A run of kind "explanation", as plain data for JSON."""
        return {"kind": "explanation", "version": RUN_VERSION, **asdict(self), **provenance()}

    def merged(self, most: int) -> list[Contribution]:
        """At most `most` stretches of similar length: neighbours joined, their values added, so the sum stays."""
        if most < 1:
            raise M2BertError(f"explain: the number of stretches must be at least 1, got {most}")
        count = len(self.contributions)
        bounds = [number * count // min(most, count) for number in range(min(most, count) + 1)]
        groups = [self.contributions[first:last] for first, last in pairwise(bounds)]
        return [
            Contribution(
                group[0].start,
                group[-1].end,
                math.fsum(each.value for each in group),
                "".join(each.text for each in group),
            )
            for group in groups
        ]


def explain_text(encoder: Encoder, query: str, text: str, document: str = "text") -> Explanation:
    """Explain the score of one text, which `document` names.

    Raises M2BertError for a query or text without words, and for a model that does not pool by the mean.
    """
    vector = _query_vector(encoder, query)
    try:
        embedded = encoder.encode_documents([text])[0]
    except TextError as error:
        raise M2BertError(f"explain: the document {document!r} {error.reason}") from error
    spans = [(passage.start, passage.end) for passage in embedded.passages]
    shares = np.array([passage.vector for passage in embedded.passages])
    counts = (embedded.num_tokens, embedded.num_windows, embedded.num_truncated)
    return _explanation(encoder, query, document, text, vector, embedded.vector, spans, shares, counts)


def explain_stored(index: SearchIndex, query: str, document: str, source: str | None = None) -> Explanation:
    """Explain the score of a document of a store, from the passages kept there; nothing is embedded but the query.

    Raises M2BertError as :func:`explain_text` does, and for a document that is not in the store (or under several
    sources, when `source` does not say which).
    """
    record = index.document(document, source)
    encoder = index.embedder
    spans = [(int(start), int(end)) for start, end in record.spans]
    counts = (record.num_tokens, record.num_windows, record.num_truncated)
    vector = _query_vector(encoder, query)
    return _explanation(
        encoder, query, document, record.text, vector, record.vector, spans, record.passage_vectors, counts
    )


def _query_vector(encoder: Encoder, query: str) -> NDArray[np.float64]:
    if not query.strip():
        raise M2BertError(f"explain: the query must be some words of text, got {query!r}; ask something")
    try:
        return np.asarray(encoder.encode([query])[0], dtype=np.float64)
    except TextError as error:
        raise M2BertError(f"explain: the query {query!r:.60} {error.reason}") from error


def _explanation(
    encoder: Encoder,
    query: str,
    document: str,
    text: str,
    query_vector: NDArray[np.float64],
    vector: NDArray[np.float32],
    spans: Sequence[tuple[int, int]],
    shares: NDArray[np.float32],
    counts: tuple[int, int, int],
) -> Explanation:
    """shares: (len(spans), dim). The score comes from the document's vector, not from its passages."""
    if not len(spans):
        raise M2BertError(
            f"explain: {encoder.name} does not pool by the mean, so its score has no parts; use a model that does"
        )
    values = shares.astype(np.float64) @ query_vector
    contributions = [
        Contribution(start, end, float(value), text[start:end])
        for (start, end), value in zip(spans, values, strict=True)
    ]
    score = float(np.asarray(vector, dtype=np.float64) @ query_vector)
    return Explanation(query, document, encoder.name, encoder.fingerprint, score, len(text), *counts, contributions)
