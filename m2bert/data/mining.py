"""Hard negatives of labelled pairs: the best-scored documents that do not answer a query, by BM25 or any other score.

May import numpy, m2bert.bm25 and m2bert.data. Test: tests/test_mining.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from m2bert.bm25 import BM25
from m2bert.data.contrast import LabelledSource

NONE = -1
QUERIES_AT_ONCE = 64
# Token ids of queries and documents -> for each query, scores (num_documents,); -inf: not a candidate.
Scorer = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Iterable[np.ndarray]]


def bm25_scorer(tokenizer: Any) -> Scorer:
    """BM25 over the decoded texts; documents that share no word with a query are no candidates.

    Raises M2BertError, when used, without the packages bm25s and PyStemmer.
    """

    def score(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        index = BM25(_texts(tokenizer, documents))
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            for row in index.score(_texts(tokenizer, queries[start : start + QUERIES_AT_ONCE])):
                yield np.where(row > 0, row, -np.inf)

    return score


def _texts(tokenizer: Any, rows: Sequence[np.ndarray]) -> list[str]:
    return [str(tokenizer.decode(row.tolist())) for row in rows]


def mine(
    sources: Sequence[LabelledSource], scorer: Scorer, *, depth: int, pool: int, rng: np.random.Generator
) -> np.ndarray:
    """Negatives (num_queries, depth) int64 of every query of `sources`, best-scored first, -1 where there are no more.

    Queries and documents are numbered as in their PairData, of which `sources` are the parts. Each data set is mined
    by itself, among `pool` of its documents at most. A document that answers the query, under this or another number,
    is never among its negatives.
    """
    mined = np.full((len(sources[0].data.queries), depth), NONE, dtype=np.int64)
    for source in sources:
        store = source.data.documents
        documents = np.asarray(source.documents)
        if len(documents) > pool:
            documents = np.sort(rng.choice(documents, pool, replace=False))
        texts = [store.document(int(document)) for document in documents]
        keys = [text.tobytes() for text in texts]
        numbers = sorted(number for several in source.queries.values() for number in several)
        queries = [source.data.queries.document(number) for number in numbers]
        for number, query, scores in zip(numbers, queries, scorer(queries, texts), strict=True):
            answers = {store.document(answer).tobytes() for answer in source.answers[query.tobytes()]}
            order = (i for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf)
            found: list[int] = []
            for i in order:
                if len(found) == depth:
                    break
                if keys[i] not in answers:
                    found.append(int(documents[i]))
            mined[number, : len(found)] = found
    return mined
