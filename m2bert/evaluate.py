"""Evaluation: ranks each task's documents by an encoder and by BM25, and scores the rankings.

Joins tasks, encoders, bm25 and metrics; an encoder is whatever has the few attributes of :class:`Encoder`.
Nothing given to it is changed. Imported by cli/evaluate.py. Test: tests/test_evaluate.py.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import m2bert
from m2bert.bm25 import BM25, load_bm25s
from m2bert.errors import M2BertError
from m2bert.metrics import (
    TIE_RULE,
    Run,
    largest_cutoff,
    load_trec_eval,
    mean_over_queries,
    run_from_scores,
    score_run,
)
from m2bert.tasks import RetrievalTask, choose_tasks, load_task

DEFAULT_METRICS = ("nDCG@10", "R@10")
REPORT_VERSION = 1
# Documents handed to the encoder at once: enough to fill batches of equal length, few enough that the passage
# vectors of a large pool, which are not needed here, never lie in memory together.
DOCUMENTS_AT_ONCE = 256
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "bm25s", "PyStemmer", "pytrec-eval-terrier")

Progress = Callable[[str, float], None]
"""Called with a label ("qmsum: documents") and the fraction of it that is done, 0 to 1."""


class EncodedDocument(Protocol):
    """What evaluation reads of m2bert.embedding.DocumentEmbedding."""

    @property
    def vector(self) -> NDArray[np.float32]: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_windows(self) -> int: ...
    @property
    def num_truncated(self) -> int: ...


class Encoder(Protocol):
    """A text encoder: m2bert.embedding.Embedder, or any object with these members.

    encode: texts -> (len(texts), dim) float32. encode_documents: the same with token counts.
    `progress` is called with (tokens done, tokens in all).
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    def encode(
        self, texts: list[str], *, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]: ...
    def encode_documents(
        self, texts: list[str], *, progress: Callable[[int, int], None] | None = None
    ) -> Sequence[EncodedDocument]: ...


@dataclass(frozen=True)
class DocumentLengths:
    """Lengths of a task's documents in the encoder's tokens, and what did not fit.

    num_windowed: documents read in more than one window. num_truncated: documents that lost text,
    tokens_lost tokens of it altogether.
    """

    mean_tokens: float
    max_tokens: int
    num_windowed: int
    num_truncated: int
    tokens_lost: int


@dataclass(frozen=True)
class SystemResult:
    """One system on one task: means over queries (0..1), the values per query, seconds to rank."""

    name: str
    fingerprint: str
    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    seconds: float
    lengths: DocumentLengths | None = None


@dataclass(frozen=True)
class TaskResult:
    """One task: its size and fingerprint, and the systems in the order given."""

    task: str
    split: str
    data_fingerprint: str
    num_queries: int
    num_documents: int
    num_dropped_queries: int
    num_dropped_documents: int
    systems: list[SystemResult]


@dataclass(frozen=True)
class Report:
    """All tasks, and what is needed to repeat the numbers."""

    tasks: list[TaskResult]
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    created: str

    def means(self) -> dict[str, dict[str, float]]:
        """{system: {metric: mean over tasks, each task counting once}}."""
        means: dict[str, dict[str, float]] = {}
        for system in self.tasks[0].systems:
            rows = [
                other.metrics for task in self.tasks for other in task.systems if other.name == system.name
            ]
            means[system.name] = {
                name: math.fsum(row[name] for row in rows) / len(rows) for name in system.metrics
            }
        return means

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `version` is raised whenever a field changes its meaning."""
        return {"version": REPORT_VERSION, **asdict(self), "means": self.means()}

    def save(self, path: Path | str) -> None:
        """Write the report as JSON; a reader sees either the old file or the whole new one."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(
                json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            partial.replace(path)
        except OSError as error:
            raise M2BertError(
                f"evaluate: cannot write {path} ({error.strerror}); choose another place"
            ) from error


@dataclass(frozen=True)
class Ranking:
    """A run, what made it (enough to know it again), and for encoders the documents' lengths."""

    run: Run
    fingerprint: str
    lengths: DocumentLengths | None = None


class System(Protocol):
    """Anything that ranks a task's documents to a depth: an encoder, BM25, a mixture."""

    @property
    def name(self) -> str: ...
    def rank(self, task: RetrievalTask, depth: int, on_progress: Progress) -> Ranking: ...


def _silent(label: str, fraction: float) -> None:
    """Progress that nobody asked for."""


def _unit_rows(
    vectors: NDArray[np.floating], ids: Sequence[str], what: str, encoder: Encoder
) -> NDArray[np.float64]:
    """Rows scaled to length 1, in float64 so that equal vectors give equal scores wherever they stand."""
    where = f"evaluate: embedding by {encoder.name} of {what}"
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise M2BertError(
            f"{where}: must have shape ({len(ids)}, dim), got {vectors.shape}; mend the encoder"
        )
    rows = np.asarray(vectors, dtype=np.float64)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = ids[int(np.argmin(finite))]
        raise M2BertError(
            f"{where} {bad!r} is not finite; encode that text alone to find the cause. Nothing was scored"
        )
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise M2BertError(
            f"{where} {ids[int(np.argmin(norms))]!r} is zero, which has no direction to compare"
        )
    unit: NDArray[np.float64] = rows / norms
    return unit


class EncoderSystem:
    """Ranks by the cosine of embeddings, over all documents, exactly."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    @property
    def name(self) -> str:
        return self.encoder.name

    def rank(self, task: RetrievalTask, depth: int, on_progress: Progress) -> Ranking:
        """Queries first: they are quick, and a broken encoder shows itself at once."""
        query_ids, doc_ids = list(task.queries), list(task.corpus)
        label = f"{task.name}: {self.name}, queries"
        encoded = self.encoder.encode(
            list(task.queries.values()), progress=_part(on_progress, label, 0.0, 1.0)
        )
        queries = _unit_rows(np.asarray(encoded), query_ids, f"query of {task.name}", self.encoder)
        documents, lengths = self._encode_documents(task, on_progress)
        run = run_from_scores(queries @ documents.T, query_ids, doc_ids, depth)
        return Ranking(run, self.encoder.fingerprint, lengths)

    def _encode_documents(
        self, task: RetrievalTask, on_progress: Progress
    ) -> tuple[NDArray[np.float64], DocumentLengths]:
        """Unit embeddings (num_documents, dim) in corpus order, and the documents' lengths."""
        doc_ids, texts = list(task.corpus), list(task.corpus.values())
        vectors, counts = [], []
        for start in range(0, len(texts), DOCUMENTS_AT_ONCE):
            chosen = slice(start, start + DOCUMENTS_AT_ONCE)
            share = len(texts[chosen]) / len(texts)
            part = _part(on_progress, f"{task.name}: {self.name}, documents", start / len(texts), share)
            encoded = self.encoder.encode_documents(texts[chosen], progress=part)
            stacked = np.stack([document.vector for document in encoded])
            vectors.append(_unit_rows(stacked, doc_ids[chosen], f"document of {task.name}", self.encoder))
            counts += [
                (document.num_tokens, document.num_windows, document.num_truncated) for document in encoded
            ]
        tokens, windows, lost = np.array(counts).T
        lengths = DocumentLengths(
            mean_tokens=float(tokens.mean()),
            max_tokens=int(tokens.max()),
            num_windowed=int((windows > 1).sum()),
            num_truncated=int((lost > 0).sum()),
            tokens_lost=int(lost.sum()),
        )
        return np.concatenate(vectors), lengths


def _part(on_progress: Progress, label: str, start: float, share: float) -> Callable[[int, int], None]:
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


def evaluate_tasks(
    tasks: Iterable[RetrievalTask],
    systems: Sequence[System],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    on_progress: Progress | None = None,
) -> Report:
    """Rank and score every task with every system.

    Runs are cut at the largest cutoff of `metrics`. Raises M2BertError for an unknown metric, no task, no
    system, two systems of one name, and an embedding that is not finite (naming the text).
    """
    load_trec_eval()
    depth = largest_cutoff(metrics)
    names = [system.name for system in systems]
    if not names or len(set(names)) != len(names):
        raise M2BertError(f"evaluate: needs systems of different names, got {', '.join(names) or 'none'}")
    results = [_evaluate_task(task, systems, metrics, depth, on_progress or _silent) for task in tasks]
    if not results:
        raise M2BertError("evaluate: needs at least one task, got none")
    settings = {
        "metrics": list(metrics),
        "depth": depth,
        "similarity": "cosine, over all documents",
        "tie_rule": TIE_RULE,
        "mean": "over queries within a task, then over tasks",
    }
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Report(results, settings, _versions(), _machine(), created)


def _evaluate_task(
    task: RetrievalTask, systems: Sequence[System], metrics: Sequence[str], depth: int, on_progress: Progress
) -> TaskResult:
    results = []
    for system in systems:
        began = time.perf_counter()
        ranking = system.rank(task, depth, on_progress)
        seconds = time.perf_counter() - began
        values = score_run(task.qrels, ranking.run, metrics)
        means = mean_over_queries(values)
        results.append(
            SystemResult(system.name, ranking.fingerprint, means, values, round(seconds, 3), ranking.lengths)
        )
    return TaskResult(
        task=task.name,
        split=task.split,
        data_fingerprint=task.fingerprint,
        num_queries=len(task.queries),
        num_documents=len(task.corpus),
        num_dropped_queries=task.num_dropped_queries,
        num_dropped_documents=task.num_dropped_documents,
        systems=results,
    )


def evaluate_loco(
    data_dir: Path | str,
    tasks: Sequence[str],
    encoder: Encoder,
    *,
    bm25: bool = True,
    split: str = "test",
    metrics: Sequence[str] = DEFAULT_METRICS,
    on_progress: Progress | None = None,
) -> Report:
    """Evaluate an encoder, and BM25 beside it, on tasks of a folder in LoCoV1's columns (see m2bert.tasks).

    tasks: names, or ["all"]. All of them are read and checked before the first text is encoded.
    Raises M2BertError as m2bert.tasks and :func:`evaluate_tasks` do.
    """
    largest_cutoff(metrics)
    loaded = [load_task(name, files, split) for name, files in choose_tasks(tasks, data_dir, split).items()]
    systems: list[System] = [EncoderSystem(encoder)]
    if bm25:
        systems.append(BM25System())
    return evaluate_tasks(loaded, systems, metrics=metrics, on_progress=on_progress)


def _versions() -> dict[str, str]:
    """Versions of what made the numbers; packages that are not installed are left out."""
    versions = {"m2bert": m2bert.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _machine() -> dict[str, Any]:
    return {"system": platform.platform(), "processor": platform.machine(), "cpu_count": os.cpu_count()}
