"""The system that stores are searched by, over all documents of a task: whole, passages and words, weighted.

    PartScores      what each part says of every query and document of a task; kept for the systems that share it
    MixedSystem     ranks by some of the parts

Test: tests/bench/test_mixtures.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert.bench.systems import (
    DOCUMENTS_ENCODED_AT_ONCE,
    DocumentLengths,
    Progress,
    Ranking,
    encode_named,
    lengths_of,
    part_of,
    unit_rows,
)
from m2bert.bench.tasks import RetrievalTask
from m2bert.encoders.protocol import EncodedDocument, Encoder
from m2bert.ranking.bm25 import BM25, load_bm25s, word_scale
from m2bert.ranking.metrics import run_from_scores
from m2bert.ranking.parts import ALL, PASSAGES, TERMS, WHOLE, WORDS, mixture_of
from m2bert.ranking.passages import QuantisedPassages, best_pairs
from m2bert.ranking.words import words_of

Matrix = NDArray[np.float64]


class PartScores:
    """What the parts say of a task, for one encoder: matrices (queries, documents) of the last task asked for."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._task: RetrievalTask | None = None
        self._scores: dict[str, Matrix] = {}
        self._counts: NDArray[np.int64] | None = None

    def of(self, task: RetrievalTask, parts: Sequence[str], on_progress: Progress) -> dict[str, Matrix]:
        """The matrices of `parts`. Raises M2BertError as the encoder does, naming the text."""
        if self._task is not task:
            self._task, self._scores, self._counts = task, {}, None
        if not self._scores.keys() >= {WHOLE, PASSAGES} & set(parts):
            self._score_vectors(task, on_progress)
        if WORDS in parts and WORDS not in self._scores:
            self._scores[WORDS] = word_scores(task)
        if TERMS in parts and TERMS not in self._scores:
            self._scores[TERMS] = self._score_terms(task)
        return {part: self._scores[part] for part in parts}

    @property
    def lengths(self) -> tuple[DocumentLengths, dict[str, int]] | None:
        """Lengths of the last task's documents; None where only words were asked for."""
        if self._counts is None or self._task is None:
            return None
        read, _, lost = self._counts.T
        return lengths_of(self._counts), dict(zip(self._task.corpus, (read + lost).tolist(), strict=True))

    def _score_vectors(self, task: RetrievalTask, on_progress: Progress) -> None:
        """Queries first: they are quick, and a broken encoder shows itself at once."""
        name, ids = self.encoder.name, list(task.queries)
        what, texts = f"query of {task.name}", list(task.queries.values())
        progress = part_of(on_progress, f"{task.name}: {name}, queries", 0.0, 1.0)
        queries = unit_rows(
            np.asarray(encode_named(self.encoder.encode, texts, ids, what, progress)), ids, what, self.encoder
        )
        whole, best, counts = [], [], []
        doc_ids, what, texts = list(task.corpus), f"document of {task.name}", list(task.corpus.values())
        for start in range(0, len(texts), DOCUMENTS_ENCODED_AT_ONCE):
            chosen = slice(start, start + DOCUMENTS_ENCODED_AT_ONCE)
            share = len(texts[chosen]) / len(texts)
            progress = part_of(on_progress, f"{task.name}: {name}, documents", start / len(texts), share)
            encoded = encode_named(self.encoder.encode_documents, texts[chosen], doc_ids[chosen], what, progress)
            vectors = unit_rows(np.stack([one.vector for one in encoded]), doc_ids[chosen], what, self.encoder)
            whole.append(queries @ vectors.T)
            best.append(_passage_scores(encoded, queries, whole[-1]))
            counts += [(one.num_tokens, one.num_windows, one.num_truncated) for one in encoded]
        self._scores[WHOLE], self._scores[PASSAGES] = np.concatenate(whole, axis=1), np.concatenate(best, axis=1)
        self._counts = np.asarray(counts, dtype=np.int64)

    def _score_terms(self, task: RetrievalTask) -> Matrix:
        encoder: Any = self.encoder
        documents = encoder.encode_sparse(list(task.corpus.values()))
        starts = np.cumsum([0, *(len(row.indices) for row in documents[:-1])])
        indices = np.concatenate([row.indices for row in documents])
        values = np.concatenate([row.values for row in documents]).astype(np.float64)
        rows = []
        for query in encoder.encode_sparse(list(task.queries.values())):
            whole = np.zeros(max(int(indices.max()), int(query.indices.max())) + 1)
            whole[query.indices] = query.values
            rows.append(np.add.reduceat(whole[indices] * values, starts))
        return np.stack(rows)


def word_scores(task: RetrievalTask) -> Matrix:
    """Scaled BM25 (queries, documents), as stores have it."""
    queries = list(task.queries.values())
    scores = BM25(list(task.corpus.values())).score(queries).astype(np.float64)
    scales = [word_scale(len(words_of(query)), len(task.corpus)) for query in queries]
    return scores * np.asarray(scales)[:, None]


def _passage_scores(encoded: Sequence[EncodedDocument], queries: Matrix, whole: Matrix) -> Matrix:
    """Best pairs (queries, documents), as stores round them; a document of fewer than two passages has its whole."""
    scores, transposed = whole.copy(), queries.T.astype(np.float32)
    for number, one in enumerate(encoded):
        if len(one.passages) > 1:
            rounded = QuantisedPassages.of(np.stack([passage.vector for passage in one.passages]))
            products = rounded.products(transposed)
            scores[:, number] = best_pairs(products, rounded.pair_norms, [len(products)])[0]
    return scores


class MixedSystem:
    """Ranks by the parts that `rank` names (m2bert.ranking.parts), weighted by the encoder's mixture.

    scores: shared by the systems of one encoder, so that it encodes a task once.
    """

    def __init__(self, scores: PartScores, rank: str = ALL) -> None:
        self.scores, self.rank_by = scores, rank
        self.encoder = scores.encoder
        self.mixture = mixture_of(self.encoder).only(rank)
        if self.mixture.words > 0:
            load_bm25s()

    @property
    def name(self) -> str:
        return self.encoder.name if self.rank_by == ALL else f"{self.encoder.name}, {self.rank_by}"

    def rank(self, task: RetrievalTask, depth: int, on_progress: Progress) -> Ranking:
        """See m2bert.bench.systems.System."""
        scores = self.scores.of(task, self.mixture.used, on_progress)
        run = run_from_scores(self.mixture.combined(scores), list(task.queries), list(task.corpus), depth)
        weights = ", ".join(f"{part} {getattr(self.mixture, part):g}" for part in self.mixture.used)
        lengths, tokens = self.scores.lengths or (None, None)
        return Ranking(run, f"{self.encoder.fingerprint}, {weights}", lengths, tokens, self.encoder.max_tokens)
