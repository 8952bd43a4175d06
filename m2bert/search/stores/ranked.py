"""From two lists of candidates to the k best documents, with exact scores of every part; the same in every store.

Numbers only: a document is the number of its row. Test: tests/search/test_ranking.py, tests/search/test_stores.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2bert.ranking.parts import PASSAGES, WHOLE, WORDS, Mixture
from m2bert.search.stores.candidates import Listed, most_promising, undecided
from m2bert.search.stores.columns import SCORED, dense_scores

if TYPE_CHECKING:
    import pyarrow as pa

# Documents listed by the whole and by the words; and how many of them, the most promising by what the lists say, have
# their exact scores computed; more in larger stores (docs/retrieval.md, docs/scaling.md have the time and the recall).
CANDIDATES, WORDS_LISTED, SCORED_EXACTLY = 400, 3000, 150


def best_rows(
    vector: NDArray[np.float32] | None,
    k: int,
    mixture: Mixture,
    lists: tuple[Listed, Listed],
    scale: float,
    taken: Callable[[Sequence[int], Sequence[str]], pa.Table],
    matching: Callable[[Sequence[int]], Mapping[int, float]],
    scored: int = SCORED_EXACTLY,
) -> list[tuple[int, dict[str, float]]]:
    """The k rows of the highest scores, best first, ties by key, with what each part that counts adds.

    vector (dim,) float32 of unit norm; None where only words count. lists: rows by the whole, and by the words, whose
    scores times `scale` are the part. taken: reads columns of rows, in their order. matching: what the words give to
    rows that the list of words may have left out. scored: how many candidates have their scores computed.
    """
    near, words = lists
    weights = mixture.whole + mixture.passages, mixture.words * scale
    rows = most_promising(near, words, weights, max(k, scored))
    if not rows:
        return []
    table = taken(rows, ["source", "id", *([] if vector is None else SCORED)])
    scores: dict[str, NDArray[np.float64]] = {WORDS: np.zeros(len(rows))}
    if vector is not None:
        scores[WHOLE], scores[PASSAGES] = dense_scores(table, vector, len(vector))
    rest = undecided(rows, mixture.combined(scores), words, weights[1], k)
    bm25 = {**words.scores, **(matching(rest) if rest else {})}
    scores[WORDS] = np.array([bm25.get(row, 0.0) for row in rows], dtype=np.float64) * scale
    added, total = mixture.weighted(scores), mixture.combined(scores)
    keys = list(zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True))
    order = sorted(range(len(keys)), key=lambda i: (-total[i], keys[i]))[:k]
    return [(rows[i], {part: float(values[i]) for part, values in added.items()}) for i in order]
