"""Evaluation: lets systems rank the documents of tasks, scores the rankings, and reports what they came from.

Nothing given to it is changed. Imports m2bert.systems, metrics, tasks, errors. Test: tests/test_evaluate.py.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import m2bert
from m2bert.errors import M2BertError
from m2bert.metrics import (
    TIE_RULE,
    largest_cutoff,
    load_trec_eval,
    mean_over_queries,
    score_run,
)
from m2bert.systems import BM25System, DocumentLengths, Encoder, EncoderSystem, Progress, System
from m2bert.tasks import RetrievalTask, choose_tasks, load_task

DEFAULT_METRICS = ("nDCG@10", "R@10")
REPORT_VERSION = 1
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "bm25s", "PyStemmer", "pytrec-eval-terrier")


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
            rows = [other.metrics for task in self.tasks for other in task.systems if other.name == system.name]
            means[system.name] = {name: math.fsum(row[name] for row in rows) / len(rows) for name in system.metrics}
        return means

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `version` is raised whenever a field changes its meaning."""
        return {"version": REPORT_VERSION, **asdict(self), "means": self.means()}

    def save(self, path: Path | str) -> None:
        """Write the report as JSON; a reader sees either the old file or the whole new one."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise M2BertError(f"evaluate: cannot write {path} ({error.strerror}); choose another place") from error


def _silent(label: str, fraction: float) -> None:
    """Progress that nobody asked for."""


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
    progress = on_progress or _silent
    loaded = []
    for name, files in choose_tasks(tasks, data_dir, split).items():
        progress(f"{name}: reading", 0.0)
        loaded.append(load_task(name, files, split))
        progress(f"{name}: reading", 1.0)
    systems: list[System] = [EncoderSystem(encoder)]
    if bm25:
        systems.append(BM25System())
    return evaluate_tasks(loaded, systems, metrics=metrics, on_progress=progress)


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
