"""BM25, the lexical baseline beside every number: a thin layer over bm25s with one fixed choice of settings.

k1 = 0.9, b = 0.4, English stop words, Snowball stemmer, the idf of Lucene (never negative). A leaf: text in, numbers
out, no model.
Test: tests/ranking/test_bm25.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert.errors import M2BertError


def load_bm25s() -> tuple[Any, Any]:
    """The modules (bm25s, Stemmer); M2BertError if one is missing. A long run asks before it begins."""
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise M2BertError(
            f"bm25: needs the package {error.name}; run pip install '.[evaluate]' in the project's folder"
        ) from error
    return bm25s, Stemmer


def _tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Stemmed lower-case words of two characters or more, no stop words; empty where nothing is left."""
    bm25s, snowball = load_bm25s()
    stemmer = snowball.Stemmer("english")
    tokens: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    return tokens


class BM25:
    """An index of documents, scored against queries word by word.

    documents: the texts; their order is the order of the columns of :meth:`score`.
    Raises M2BertError if there are no documents, or if bm25s or PyStemmer is not installed.
    """

    def __init__(self, documents: Sequence[str], *, k1: float = 0.9, b: float = 0.4) -> None:
        if not documents:
            raise M2BertError("bm25: needs at least one document, got none")
        tokens = _tokenize(documents)
        self.num_documents = len(tokens)
        self.k1, self.b = k1, b
        self._index: Any = None
        # bm25s divides by the mean length: documents of stop words alone would stop it.
        if any(tokens):
            bm25s, _ = load_bm25s()
            self._index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
            self._index.index(tokens, show_progress=False)

    @property
    def fingerprint(self) -> str:
        """What a second run needs to repeat the scores, in words."""
        versions = f"bm25s {metadata.version('bm25s')}, PyStemmer {metadata.version('PyStemmer')}"
        return f"{versions}, method lucene, k1={self.k1}, b={self.b}, stop words en, stemmer Snowball english"

    def score(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Scores (num_queries, num_documents) float32; 0 where a document has none of the query's words."""
        scores = np.zeros((len(queries), self.num_documents), dtype=np.float32)
        if self._index is None or not queries:
            return scores
        for row, words in zip(scores, _tokenize(queries), strict=True):
            if words:
                row[:] = self._index.get_scores(words)
        return scores
