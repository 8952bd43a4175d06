"""Which documents of two lists, the first by the whole and the first by the words, may be among the best.

Numbers only: a document is the number of its row. Test: tests/search/test_candidates.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest

import numpy as np
from numpy.typing import NDArray

SHALLOW_UP_TO, MOST_GROWN = 100_000, 10


@dataclass(frozen=True)
class Listed:
    """The first rows of a ranking with their scores. `complete`: whether no other row has a score above 0.

    missed: what a row may have at most that was not looked at, if that is more than the least score here.
    """

    scores: Mapping[int, float]
    complete: bool
    missed: float = 0.0

    @property
    def bound(self) -> float:
        """What a row that is not listed has at most."""
        return 0.0 if self.complete else max(min(self.scores.values(), default=0.0), self.missed)


def depths(documents: int, listed: int, scored: int) -> tuple[int, int]:
    """How many to list by the whole, and to score exactly, given what a store of SHALLOW_UP_TO needs of both.

    The more documents there are, the more are as near as the best.
    """
    grown = min(max(documents / SHALLOW_UP_TO, 1.0), MOST_GROWN)
    return round(listed * grown), round(scored * grown**0.6)


def most_promising(near: Listed, words: Listed, weights: tuple[float, float], count: int) -> list[int]:
    """The `count` rows of the highest sum of both scores, ascending; a list that a row is not in gives its bound.

    weights: of the two lists.
    """
    rows = near.scores.keys() | words.scores.keys()
    bounds = near.bound, words.bound

    def sum_of(row: int) -> float:
        return weights[0] * near.scores.get(row, bounds[0]) + weights[1] * words.scores.get(row, bounds[1])

    return sorted(nlargest(count, rows, key=sum_of))


def undecided(rows: Sequence[int], others: NDArray[np.float64], words: Listed, weight: float, k: int) -> list[int]:
    """Those of `rows` not listed by the words that may be among the first k, depending on their words.

    others (rows,): what all parts but the words give each.
    """
    known = np.array([words.scores.get(row, 0.0) for row in rows])
    missing = np.array([row not in words.scores for row in rows], dtype=bool)
    if words.bound == 0 or not missing.any():
        return []
    least = others + weight * known
    reached = -np.inf if len(rows) <= k else np.partition(least, -k)[-k]
    return [row for row, open_ in zip(rows, missing & (others + weight * words.bound >= reached), strict=True) if open_]
