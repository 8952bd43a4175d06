"""What a search gives: ranked documents, what each part added to their scores, and their best passages.

Tests: tests/search/test_index.py, tests/search/test_ranking.py, tests/search/test_results.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2bert.errors import M2BertError
from m2bert.ranking.parts import PASSAGES, WHOLE, WORDS
from m2bert.ranking.passages import pair_cosines
from m2bert.search.sections import place_of
from m2bert.search.stores import Found, Record

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


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

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; without shares, of which a long document has hundreds (`m2bert explain` has them)."""
        fields = asdict(replace(self, shares=[]))
        del fields["shares"]
        return {**fields, "parts": dict(self.parts)}


def shares_of(record: Record, query: NDArray[np.float32]) -> list[Share]:
    """What every passage adds to the cosine of `query (dim,)`, of unit norm, and the document, in their order.

    Passages are stored rounded: a value is off by less than 0.001, for which `m2bert explain` makes up.
    """
    if record.passages is None:
        return [Share(int(start), int(end), float(record.vector @ query)) for start, end in record.spans]
    values = record.passages.products(query).tolist()
    return [Share(int(start), int(end), value) for (start, end), value in zip(record.spans, values, strict=True)]


class SearchResults(list[SearchResult]):
    """Ranked documents, the best first, and the `query` they were found for."""

    def __init__(self, query: str, results: Iterable[SearchResult] = ()) -> None:
        super().__init__(results)
        self.query = query

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON: the query, and the results in order."""
        return {"query": self.query, "results": [result.to_dict() for result in self]}

    def to_arrow(self) -> pa.Table:
        """A row for each document: query, rank, id, source, score, score_whole, score_passages, score_words, num_tokens
        and passages.

        Scores are float64, that of a part null where it did not count; passages are structs of SearchHit's fields.
        """
        import pyarrow as pa

        hit = pa.struct(
            [("start", pa.int64()), ("end", pa.int64()), ("score", pa.float64()), ("contribution", pa.float64()),
             ("text", pa.string()), ("document_length", pa.int64()), ("place", pa.string())]
        )  # fmt: skip
        schema = pa.schema(
            [("query", pa.string()), ("rank", pa.int64()), ("id", pa.string()), ("source", pa.string()),
             ("score", pa.float64()), *((f"score_{part}", pa.float64()) for part in (WHOLE, PASSAGES, WORDS)),
             ("num_tokens", pa.int64()), ("passages", pa.list_(hit))]
        )  # fmt: skip
        rows = [
            {
                "query": self.query,
                **result.to_dict(),
                **{f"score_{part}": value for part, value in result.parts.items()},
            }
            for result in self
        ]
        return pa.Table.from_pylist(rows, schema=schema)

    def to_pandas(self) -> pd.DataFrame:
        """The table of :meth:`to_arrow` as a DataFrame. Raises M2BertError where pandas is not installed."""
        try:
            frame: pd.DataFrame = self.to_arrow().to_pandas()
        except ModuleNotFoundError as error:
            raise M2BertError("search: to_pandas needs pandas, which is not installed; pip install pandas") from error
        return frame


def results_of(query: str, found: Sequence[Found], vector: NDArray[np.float32] | None, passages: int) -> SearchResults:
    """What a store has found, with at most so many of each document's best passages; none without a query vector."""
    return SearchResults(
        query,
        (
            SearchResult(
                place, one.record.id, one.record.source, one.score, one.parts, one.record.num_tokens,
                [] if vector is None else hits_of(one.record, vector, passages),
                shares_of(one.record, vector) if vector is not None and passages else [],
            )
            for place, one in enumerate(found, start=1)
        ),
    )  # fmt: skip


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


def snippet(text: str, length: int) -> str:
    """The beginning of a passage on one line, without the frames of help texts, cut at a word."""
    words = [word for word in text.split() if word.strip("|-=_*#")]
    line = " ".join(words)
    length = max(length, 20)
    if len(line) <= length:
        return line
    return line[: length - 3].rsplit(" ", 1)[0] + "..."
