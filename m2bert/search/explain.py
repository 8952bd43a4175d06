"""Why a document answers a query: what its whole, its passages and its words add to the score, and where they lie.

With mean or weighted pooling the cosine of the whole is a sum over passages (m2bert.encoders.embedder), so its curve is
exact: its values add up to it. The cosines of pairs of passages are a second curve, whose highest point is the part of
the passages; the words of the query that the document has add up to the part of the words. The paper pools at one
position and has no such decomposition; its needle study (section 5.1, table 15) asks the same question from outside.
Test: tests/search/test_explain.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError, TextError
from m2bert.provenance import provenance
from m2bert.ranking.parts import ALL, PASSAGES, WHOLE, WORDS, mixture_of
from m2bert.ranking.passages import QuantisedPassages, pair_cosines
from m2bert.search.sections import Section, place_of

if TYPE_CHECKING:
    from m2bert.search.index import SearchIndex

RUN_VERSION = 2


@dataclass(frozen=True)
class Contribution:
    """A stretch of the document, characters start to end, and its part of the cosine (negative: it speaks against).

    place: the page or heading it stands on or under; empty where the document has none.
    """

    start: int
    end: int
    value: float
    text: str
    place: str = ""


@dataclass(frozen=True)
class Explanation:
    """One query, one document. score: the sum of `parts`, what each part adds to it (m2bert.ranking.parts).

    cosine: of query and whole document, which the values of `contributions` add up to. pairs: cosine of the query and
    every two neighbouring passages; the highest is what the part of the passages is made of. words: what each word of
    the query adds, by its stem; empty for a text that is in no store, as a word's worth depends on the other documents.
    num_tokens: tokens of the document that were read, in num_windows windows; num_truncated were not.
    length: characters of the document. sections: its pages or headings.
    """

    query: str
    document: str
    model: str
    fingerprint: str
    score: float
    parts: dict[str, float]
    cosine: float
    length: int
    num_tokens: int
    num_windows: int
    num_truncated: int
    contributions: list[Contribution]
    pairs: list[Contribution]
    words: dict[str, float]
    sections: tuple[Section, ...] = ()

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
        values = [math.fsum(each.value for each in group) for group in groups]
        joined = ["".join(each.text for each in group) for group in groups]
        return [
            Contribution(group[0].start, group[-1].end, value, text, place_of(self.sections, group[0].start, text))
            for group, value, text in zip(groups, values, joined, strict=True)
        ]


def explain_text(
    encoder: Encoder, query: str, text: str, document: str = "text", sections: Sequence[Section] = ()
) -> Explanation:
    """Explain the score of one text, which `document` names, by its whole and its passages.

    sections: the text's pages or headings, for the places of its passages.

    Raises M2BertError for a query or text without words, and for a model that does not pool by the mean.
    """
    vector = _query_vector(encoder, query)
    try:
        embedded = encoder.encode_documents([text])[0]
    except TextError as error:
        raise M2BertError(f"explain: the document {document!r} {error.reason}") from error
    _check_passages(encoder, embedded.passages)
    spans = [(passage.start, passage.end) for passage in embedded.passages]
    shares = np.array([passage.vector for passage in embedded.passages])
    passages = QuantisedPassages.of(shares) if len(shares) > 1 else None
    cosine = float(np.asarray(embedded.vector, dtype=np.float64) @ vector)
    pairs = _pair_cosines(passages, vector, cosine)
    mixture = mixture_of(encoder).only(f"{WHOLE}+{PASSAGES}")
    parts = mixture.weighted({WHOLE: cosine, PASSAGES: max(pairs)})
    values = shares.astype(np.float64) @ vector
    return Explanation(
        query, document, encoder.name, encoder.fingerprint, math.fsum(parts.values()), parts, cosine, len(text),
        embedded.num_tokens, embedded.num_windows, embedded.num_truncated,
        _contributions(text, spans, values, sections), _contributions(text, _pairs(spans), pairs, sections), {},
        tuple(sections),
    )  # fmt: skip


def explain_stored(index: SearchIndex, query: str, document: str, source: str | None = None) -> Explanation:
    """Explain the score of a document of a store, from what is kept there; nothing is embedded but the query.

    Passages are stored rounded: what the roundings add up to is spread over the curve of the whole, by the passages'
    lengths, so that it adds up (a value is off by less than 0.001 for it). Raises M2BertError as :func:`explain_text`
    does, and for a document that is not in the store (or under several sources, when `source` does not say which).
    """
    record = index.document(document, source)
    encoder = index.embedder
    vector = _query_vector(encoder, query)
    _check_passages(encoder, record.spans)
    spans = [(int(start), int(end)) for start, end in record.spans]
    cosine = float(record.vector.astype(np.float64) @ vector)
    pairs = _pair_cosines(record.passages, vector, cosine)
    values = np.array([cosine])
    if record.passages is not None:
        vectors = record.passages.vectors.astype(np.float64)
        values, norms = vectors @ vector, np.linalg.norm(vectors, axis=1)
        values += (cosine - values.sum()) * norms / norms.sum()
    mixture = index.mixture.only(ALL)
    words = index.word_scores(query, record)
    scores = {WHOLE: cosine, PASSAGES: max(pairs), WORDS: math.fsum(words.values())}
    parts = mixture.weighted(scores)
    return Explanation(
        query, document, encoder.name, encoder.fingerprint, math.fsum(parts.values()), parts, cosine, len(record.text),
        record.num_tokens, record.num_windows, record.num_truncated,
        _contributions(record.text, spans, values, record.sections),
        _contributions(record.text, _pairs(spans), pairs, record.sections),
        {word: mixture.words * value for word, value in words.items()}, record.sections,
    )  # fmt: skip


def _query_vector(encoder: Encoder, query: str) -> NDArray[np.float64]:
    if not query.strip():
        raise M2BertError(f"explain: the query must be some words of text, got {query!r}; ask something")
    try:
        return np.asarray(encoder.encode([query])[0], dtype=np.float64)
    except TextError as error:
        raise M2BertError(f"explain: the query {query!r:.60} {error.reason}") from error


def _check_passages(encoder: Encoder, passages: Sized) -> None:
    if not len(passages):
        raise M2BertError(
            f"explain: {encoder.name} does not pool by the mean, so its score has no parts; use a model that does"
        )


def _pair_cosines(passages: QuantisedPassages | None, query: NDArray[np.float64], cosine: float) -> list[float]:
    """The cosine of each pair; of a document of one passage, its whole."""
    if passages is None:
        return [cosine]
    products = passages.products(query.astype(np.float32))
    found: list[float] = pair_cosines(products[:, None], passages.pair_norms, [len(products)])[:, 0].tolist()
    return found


def _pairs(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(first[0], second[1]) for first, second in pairwise(spans)] or list(spans)


def _contributions(
    text: str, spans: Sequence[tuple[int, int]], values: Iterable[float], sections: Sequence[Section]
) -> list[Contribution]:
    return [
        Contribution(start, end, float(value), text[start:end], place_of(sections, start, text[start:end]))
        for (start, end), value in zip(spans, values, strict=True)
    ]
