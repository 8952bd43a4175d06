"""Vectors of a document's passages in one byte a number, and how well its best passages match a query.

Passages are scored in pairs of neighbours: an answer may lie across a cut, and one passage alone is short. A pair's
vector is the sum of both; its score is the cosine of that with the query. A document of one passage is its own pair.
A leaf: numbers only.
Test: tests/ranking/test_passages.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2bert.errors import M2BertError

LARGEST_CODE = 127
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class QuantisedPassages:
    """What each passage of one document adds to its vector, rounded: passage i is codes[i] * scales[i].

    codes (passages, dim) int8. scales (passages,) float32: a passage's largest number by magnitude over 127, so that
    each number is off by at most half of it. pair_norms (pairs,) float32: lengths of the rounded pairs' vectors.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    pair_norms: NDArray[np.float32]

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> QuantisedPassages:
        """Of vectors (passages, dim) float32, finite. Raises M2BertError for another shape, or none at all."""
        if vectors.ndim != 2 or not len(vectors):
            raise M2BertError(f"passages: vectors must have shape (passages, dim), got {vectors.shape}")
        count = len(vectors)
        codes, scales = np.empty(vectors.shape, np.int8), np.empty(count, np.float32)
        norms = np.empty(num_pairs(count), np.float32)
        # Some rows at a time, and the next one for the last of their pairs: a long document has 500 MB of them.
        for start in range(0, len(norms), ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE + 1, count))
            scales[rows] = np.abs(vectors[rows]).max(axis=1) / np.float32(LARGEST_CODE)
            safe = np.maximum(scales[rows], np.finfo(np.float32).tiny)
            codes[rows] = np.rint(vectors[rows] / safe[:, None])
            rounded = codes[rows].astype(np.float32) * scales[rows, None]
            pairs = pair_sums(rounded, [len(rounded)])
            norms[start : start + len(pairs)] = np.linalg.norm(pairs, axis=1)
        return cls(codes, scales, norms)

    def to_bytes(self) -> bytes:
        """Little-endian: scales, pair norms, codes; the number of passages follows from the length (from_bytes)."""
        floats = [part.astype("<f4").tobytes() for part in (self.scales, self.pair_norms)]
        return b"".join([*floats, self.codes.tobytes()])

    @classmethod
    def from_bytes(cls, blob: bytes, dim: int) -> QuantisedPassages:
        """Of what to_bytes made of two passages or more. Raises M2BertError for another length."""
        count, rest = divmod(len(blob) + 4, dim + 8)
        if rest or count < 2:
            raise M2BertError(f"passages: {len(blob)} bytes are not those of passages of {dim} numbers")
        scales, norms = (
            np.frombuffer(blob, "<f4", size, place) for size, place in ((count, 0), (count - 1, 4 * count))
        )
        codes = np.frombuffer(blob, np.int8, offset=8 * count - 4)
        return cls(codes.reshape(count, dim), scales, norms)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The rounded vectors (passages, dim) float32."""
        return self.codes.astype(np.float32) * self.scales[:, None]

    def products(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products (passages, queries) with `queries (dim, queries)`, or (passages,) with one (dim,)."""
        scales = self.scales if queries.ndim == 1 else self.scales[:, None]
        result: NDArray[np.float32] = (self.codes.astype(np.float32) @ queries) * scales
        return result


def num_pairs(num_passages: int) -> int:
    """How many pairs of neighbours there are; one passage is a pair by itself."""
    return max(num_passages - 1, 1)


def pair_sums(rows: NDArray[np.float32], counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
    """Sums (pairs, ...) of neighbours of `rows (passages, ...)`, of documents of `counts` passages each."""
    counts = np.asarray(counts)
    ends = np.cumsum(counts)
    last = np.zeros(len(rows), dtype=bool)
    last[ends - 1] = True
    single = np.zeros(len(rows), dtype=bool)
    single[ends[counts == 1] - 1] = True
    following = np.zeros_like(rows)
    following[:-1] = rows[1:]
    following[single] = 0
    sums: NDArray[np.float32] = (rows + following)[~last | single]
    return sums


def best_pairs(
    products: NDArray[np.float32], pair_norms: NDArray[np.float32], counts: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.float32]:
    """The highest cosine (documents, queries) of a pair of passages of each document.

    products (passages, queries): inner products of all documents' passages with unit queries. pair_norms (pairs,).
    counts (documents,): passages of each, at least 1. A pair of length 0 scores 0.
    """
    cosines = pair_cosines(products, pair_norms, counts)
    pairs = np.maximum(np.asarray(counts) - 1, 1)
    starts = np.concatenate([[0], np.cumsum(pairs)[:-1]])
    best: NDArray[np.float32] = np.maximum.reduceat(cosines, starts, axis=0)
    return best


def pair_cosines(
    products: NDArray[np.float32], pair_norms: NDArray[np.float32], counts: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosines (pairs, queries) of all pairs; arguments as of best_pairs."""
    norms = np.where(pair_norms > 0, pair_norms, np.inf).astype(np.float32)
    cosines: NDArray[np.float32] = pair_sums(products, counts) / norms[:, None]
    return cosines
