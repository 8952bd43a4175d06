"""What can be evaluated: encoders, BM25 and fusions of them, each ranking the documents of a task.

An encoder is whatever has the members of m2bert.encoders.protocol.Encoder; no model is imported here.
Test: tests/bench/test_evaluate.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2bert.bench.tasks import RetrievalTask
from m2bert.encoders.protocol import Encoder
from m2bert.encoders.windows import groups_of_characters
from m2bert.errors import M2BertError
from m2bert.ranking.bm25 import BM25, load_bm25s
from m2bert.ranking.fusion import RRF_K, reciprocal_rank_fusion, score_fusion
from m2bert.ranking.metrics import Run, run_from_scores

# Enough to fill batches of equal length, few enough that a document that is refused is soon found.
DOCUMENTS_ENCODED_AT_ONCE = 256

CHUNKS = {"mean": ", mean of chunks", "max": ", best chunk"}
"""How documents longer than an encoder may be read in pieces, and what that adds to the system's name."""

Encoded = TypeVar("Encoded")
Progress = Callable[[str, float], None]
"""Called with a label ("qmsum: documents") and the fraction of it that is done, 0 to 1."""


@dataclass(frozen=True)
class DocumentLengths:
    """Lengths of a task's documents in the encoder's tokens, whether read or not, and what did not fit.

    num_windowed: documents read in more than one window. num_truncated: documents that lost text,
    tokens_lost tokens of it altogether.
    """

    mean_tokens: float
    max_tokens: int
    num_windowed: int
    num_truncated: int
    tokens_lost: int


@dataclass(frozen=True)
class Ranking:
    """A run, what made it (enough to know it again), and for encoders the documents' lengths.

    tokens: document id -> its tokens, whether read or not; None where nothing counts tokens. max_tokens: the longest
    text that is read at once; None where there is no such limit.
    """

    run: Run
    fingerprint: str
    lengths: DocumentLengths | None = None
    tokens: Mapping[str, int] | None = None
    max_tokens: int | None = None


class System(Protocol):
    """Anything that ranks a task's documents to a depth: an encoder, BM25, a mixture."""

    @property
    def name(self) -> str: ...
    def rank(self, task: RetrievalTask, depth: int, on_progress: Progress) -> Ranking: ...


def unit_rows(vectors: NDArray[np.floating], ids: Sequence[str], what: str, encoder: Encoder) -> NDArray[np.float64]:
    """Rows scaled to length 1, in float64 so that equal vectors give equal scores wherever they stand."""
    where = f"evaluate: embedding by {encoder.name} of {what}"
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise M2BertError(f"{where}: must have shape ({len(ids)}, dim), got {vectors.shape}; mend the encoder")
    rows = np.asarray(vectors, dtype=np.float64)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = ids[int(np.argmin(finite))]
        raise M2BertError(
            f"{where} {bad!r} is not finite; encode that text alone to find the cause. Nothing was scored"
        )
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise M2BertError(f"{where} {ids[int(np.argmin(norms))]!r} is zero, which has no direction to compare")
    unit: NDArray[np.float64] = rows / norms
    return unit


def encode_named(
    encode: Callable[..., Encoded],
    texts: Sequence[str],
    ids: Sequence[str],
    what: str,
    progress: Callable[[int, int], None],
) -> Encoded:
    """encode(texts); if the encoder refuses, find the text it refuses alone and name it by its id."""
    try:
        return encode(texts, progress=progress)
    except M2BertError:
        low, high = 0, len(texts)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                encode(texts[low:middle])
                low = middle
            except M2BertError:
                high = middle
        try:
            encode(texts[low:high])
        except M2BertError as error:
            raise M2BertError(f"evaluate: {what} {ids[low]!r} cannot be encoded. {error}") from error
        raise


class EncoderSystem:
    """Ranks by the cosine of embeddings, over all documents, exactly.

    chunks: None encodes every document as one text. "mean" and "max" divide it with the encoder's
    `split(text) -> list[str]` into pieces that are read whole, and compare the query with the mean of the pieces'
    unit embeddings, or with the best piece.
    """

    def __init__(self, encoder: Encoder, chunks: str | None = None) -> None:
        if chunks not in (None, *CHUNKS):
            raise M2BertError(f"evaluate: chunks must be one of {', '.join(CHUNKS)} or None, got {chunks!r}")
        self.encoder, self.chunks = encoder, chunks

    @property
    def name(self) -> str:
        return self.encoder.name + (CHUNKS[self.chunks] if self.chunks else "")

    def rank(self, task: RetrievalTask, depth: int, on_progress: Progress) -> Ranking:
        """Queries first: they are quick, and a broken encoder shows itself at once."""
        query_ids, doc_ids = list(task.queries), list(task.corpus)
        label = f"{task.name}: {self.name}, queries"
        part = part_of(on_progress, label, 0.0, 1.0)
        what = f"query of {task.name}"
        encoded = encode_named(self.encoder.encode, list(task.queries.values()), query_ids, what, part)
        queries = unit_rows(np.asarray(encoded), query_ids, what, self.encoder)
        pieces, starts, counts = self._encode_documents(task, on_progress)
        if self.chunks == "mean":
            pieces = unit_rows(np.add.reduceat(pieces, starts), doc_ids, f"document of {task.name}", self.encoder)
        scores = queries @ pieces.T
        if self.chunks == "max":
            scores = np.maximum.reduceat(scores, starts, axis=1)
        run = run_from_scores(scores, query_ids, doc_ids, depth)
        tokens = {doc_id: int(read + lost) for doc_id, (read, _, lost) in zip(doc_ids, counts, strict=True)}
        return Ranking(run, self.encoder.fingerprint, lengths_of(counts), tokens, self.encoder.max_tokens)

    def _encode_documents(
        self, task: RetrievalTask, on_progress: Progress
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Unit embeddings (num_pieces, dim) in corpus order, the first piece of every document, and by document
        its tokens read, windows and tokens lost."""
        split: Callable[[str], list[str]] = self.encoder.split if self.chunks else _whole  # type: ignore[attr-defined]
        pieces = [split(text) for text in task.corpus.values()]
        starts = np.cumsum([0, *map(len, pieces[:-1])])
        ids = [doc_id for doc_id, own in zip(task.corpus, pieces, strict=True) for _ in own]
        texts = [piece for own in pieces for piece in own]
        what = f"document of {task.name}"
        vectors, counts = [], []
        encode = partial(self.encoder.encode_documents, passages=False)
        for start, stop in groups_of_characters(texts, sys.maxsize, DOCUMENTS_ENCODED_AT_ONCE):
            chosen = slice(start, stop)
            share = len(texts[chosen]) / len(texts)
            part = part_of(on_progress, f"{task.name}: {self.name}, documents", start / len(texts), share)
            encoded = encode_named(encode, texts[chosen], ids[chosen], what, part)
            stacked = np.stack([document.vector for document in encoded])
            vectors.append(unit_rows(stacked, ids[chosen], what, self.encoder))
            counts += [(document.num_tokens, document.num_windows, document.num_truncated) for document in encoded]
        return np.concatenate(vectors), starts, np.add.reduceat(np.array(counts, dtype=np.int64), starts)


def _whole(text: str) -> list[str]:
    return [text]


def lengths_of(counts: NDArray[np.int64]) -> DocumentLengths:
    tokens, windows, lost = counts.T
    return DocumentLengths(
        mean_tokens=float((tokens + lost).mean()),
        max_tokens=int((tokens + lost).max()),
        num_windowed=int((windows > 1).sum()),
        num_truncated=int((lost > 0).sum()),
        tokens_lost=int(lost.sum()),
    )


def part_of(on_progress: Progress, label: str, start: float, share: float) -> Callable[[int, int], None]:
    """An encoder's progress callback for one part of the work under `label`."""

    def progress(done: int, total: int) -> None:
        on_progress(label, start + share * (done / total if total else 1.0))

    return progress


class BM25System:
    """Ranks by BM25; documents that share no word with the query are not retrieved."""

    name = "BM25"

    def __init__(self) -> None:
        load_bm25s()

    def rank(self, task: RetrievalTask, depth: int, on_progress: Progress) -> Ranking:
        """Word counts of the task's own documents decide the idf, as in any index of them."""
        label = f"{task.name}: BM25"
        on_progress(label, 0.0)
        index = BM25(list(task.corpus.values()))
        scores = index.score(list(task.queries.values()))
        on_progress(label, 1.0)
        run = run_from_scores(scores, list(task.queries), list(task.corpus), depth, above=0.0)
        return Ranking(run, index.fingerprint)


FUSIONS = {"scores": "", "ranks": ", by rank"}
"""How rankings may be fused (m2bert.ranking.fusion), and what that adds to the system's name."""


@dataclass(frozen=True)
class Fusion:
    """Systems of the same run fused by their scores or their ranks, named; each gives its first `depth` documents."""

    name: str
    members: tuple[str, ...]
    depth: int = 1000
    by: str = "scores"

    def __post_init__(self) -> None:
        if self.by not in FUSIONS:
            raise M2BertError(f"evaluate: rankings are fused by {' or '.join(FUSIONS)}, got {self.by!r}")

    def fuse(self, rankings: Mapping[str, Ranking]) -> Ranking:
        """The fused ranking; queries come in the order of the first member's run."""
        runs = [rankings[name].run for name in self.members]
        run = {query_id: dict(self._fused([run[query_id] for run in runs])) for query_id in runs[0]}
        how = "fusion of scores" if self.by == "scores" else f"reciprocal rank fusion, k={RRF_K}"
        return Ranking(run, f"{how}, first {self.depth} of {' and '.join(self.members)}")

    def _fused(self, scores: Sequence[Mapping[str, float]]) -> list[tuple[str, float]]:
        first = [dict(islice(own.items(), self.depth)) for own in scores]
        return score_fusion(first) if self.by == "scores" else reciprocal_rank_fusion([list(own) for own in first])
