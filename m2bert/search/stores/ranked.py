"""From two lists of candidates to the k best documents, with exact scores of every part; the same in every store.

Numbers only: a document is the number of its row. Test: tests/search/test_ranking.py, tests/search/test_stores.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2bert.errors import M2BertError
from m2bert.ranking.parts import PASSAGES, WHOLE, WORDS, Mixture
from m2bert.search.stores import Found, Record
from m2bert.search.stores.candidates import Listed, most_promising, undecided
from m2bert.search.stores.columns import SCORED, dense_scores

if TYPE_CHECKING:
    import pyarrow as pa

# Documents listed by the whole and by the words; and how many of them, the most promising by what the lists say, have
# their exact scores computed; LanceDB takes more in larger stores (docs/retrieval.md, docs/scaling.md: time, recall).
CANDIDATES, WORDS_LISTED, SCORED_EXACTLY = 400, 3000, 150


def best_of(
    vector: NDArray[np.float32] | None,
    k: int,
    mixture: Mixture,
    lists: tuple[Listed, Listed],
    scale: float,
    taken: Callable[[Sequence[int], Sequence[str]], pa.Table],
    matching: Callable[[Sequence[int]], Mapping[int, float]],
    records: Callable[[Sequence[int]], Mapping[int, Record]],
    scored: int = SCORED_EXACTLY,
) -> list[Found]:
    """The k documents of the highest scores, best first, ties by key, with what each part that counts adds.

    vector (dim,) float32 of unit norm; None where only words count. lists: rows by the whole, and by the words, whose
    scores times `scale` are the part. taken: reads columns of rows, which ascend, in their order. matching: what the
    words give to rows that the list of words may have left out. records: reads rows, which ascend, as a whole, and
    raises StoreError for one that is not what was written. scored: how many candidates have their scores computed.
    """
    near, words = lists
    weights = mixture.whole + mixture.passages, mixture.words * scale
    rows = most_promising(near, words, weights, max(k, scored))
    if not rows:
        return []
    scores: dict[str, NDArray[np.float64]] = {WORDS: np.zeros(len(rows))}
    if vector is not None:
        # No more columns than scores need: every one takes as long to read again.
        table = taken(rows, SCORED if mixture.passages > 0 else SCORED[:1])
        try:
            whole, passages = dense_scores(table, vector[None])
        except M2BertError:
            records(rows)  # to say which it is
            raise
        scores[WHOLE], scores[PASSAGES] = whole[:, 0], passages[:, 0]
    rest = undecided(rows, mixture.combined(scores), words, weights[1], k)
    bm25 = {**words.scores, **(matching(rest) if rest else {})}
    scores[WORDS] = np.array([bm25.get(row, 0.0) for row in rows], dtype=np.float64) * scale
    added = mixture.weighted(scores)
    total = np.nan_to_num(mixture.combined(scores), nan=np.inf)  # damage, which `records` then tells
    best = _first(total, k, lambda tied: taken([rows[place] for place in tied], ["source", "id"]))
    read = records([rows[place] for place in best])
    found = [Found({part: float(values[place]) for part, values in added.items()}, read[rows[place]]) for place in best]
    order = sorted(range(len(best)), key=lambda i: (-total[best[i]], found[i].record.key))
    return [found[i] for i in order]


def _first(total: NDArray[np.float64], k: int, keys_of: Callable[[list[int]], pa.Table]) -> list[int]:
    """The places, ascending, of the k highest numbers; of those level with the last, the ones of the first keys."""
    if len(total) <= k:
        return list(range(len(total)))
    least = np.partition(total, -k)[-k]
    best, tied = np.flatnonzero(total > least).tolist(), np.flatnonzero(total == least).tolist()
    if len(best) + len(tied) > k:
        keys = keys_of(tied)
        pairs = list(zip(keys["source"].to_pylist(), keys["id"].to_pylist(), strict=True))
        tied = [tied[i] for i in sorted(range(len(tied)), key=pairs.__getitem__)[: k - len(best)]]
    return sorted([*best, *tied])
