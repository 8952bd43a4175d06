"""BM25 with one fixed choice of settings, in benchmarks and in stores alike: words by m2bert.ranking.words, k1 = 1.2,
b = 0.75, the idf of Lucene (never negative).

Here it is a thin layer over bm25s; a store's index of words (LanceDB) has the same constants and gives the same scores
to rounding (tests/search/test_ranking.py). A leaf: text in, numbers out, no model.
Test: tests/ranking/test_bm25.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert.errors import M2BertError, missing_package
from m2bert.ranking.words import words_of

K1, B = 1.2, 0.75


def load_bm25s() -> Any:
    """The module bm25s; M2BertError if it is missing. A long run asks before it begins."""
    try:
        import bm25s
    except ImportError as error:
        raise missing_package("bm25", f"the package {error.name}", "evaluate") from error
    return bm25s


def word_scale(num_words: int, num_documents: int) -> float:
    """What a BM25 score is multiplied by so that it can be added to cosines: 1 / (sqrt(num_words) ln(1 + documents)).

    A word's idf is at most about ln(1 + documents), and chance adds up with the root of the number of words: divided by
    both, the spread of scores over the documents that do not answer is alike for short and long queries, in small and
    large stores. num_words: of the query, repeats counted; 0 counts as 1.
    """
    return 1.0 / (math.sqrt(max(num_words, 1)) * math.log1p(max(num_documents, 1)))


class BM25:
    """An index of documents, scored against queries word by word.

    documents: the texts; their order is the order of the columns of :meth:`score`.
    Raises M2BertError if there are no documents, or if bm25s is not installed.
    """

    def __init__(self, documents: Sequence[str], *, k1: float = K1, b: float = B) -> None:
        if not documents:
            raise M2BertError("bm25: needs at least one document, got none")
        tokens = [words_of(text) for text in documents]
        self.num_documents = len(tokens)
        self.k1, self.b = k1, b
        self._index: Any = None
        # bm25s divides by the mean length: documents of stop words alone would stop it.
        if any(tokens):
            self._index = load_bm25s().BM25(k1=k1, b=b, method="lucene", backend="numpy")
            self._index.index(tokens, show_progress=False)

    @property
    def fingerprint(self) -> str:
        """What a second run needs to repeat the scores, in words."""
        versions = f"bm25s {metadata.version('bm25s')}, PyStemmer {metadata.version('PyStemmer')}"
        return f"{versions}, idf of Lucene, k1={self.k1}, b={self.b}, words by m2bert.ranking.words"

    def score(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Scores (num_queries, num_documents) float32; 0 where a document has none of the query's words.

        score(d) = sum over the query's words of idf (k1 + 1) n / (n + k1 (1 - b + b length / mean length)), n times in
        d, which has `length` words (Robertson and Zaragoza 2009, equation 3.15).
        """
        scores = np.zeros((len(queries), self.num_documents), dtype=np.float32)
        if self._index is None or not queries:
            return scores
        for row, query in zip(scores, queries, strict=True):
            if words := words_of(query):
                row[:] = self._index.get_scores(words)
        return scores * np.float32(self.k1 + 1)
