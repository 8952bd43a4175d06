"""Evaluation: lets systems rank the documents of tasks, scores the rankings, and reports what they came from.

Nothing given to it is changed.
Test: tests/bench/test_evaluate.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from m2bert.bench.runs import save_run
from m2bert.bench.systems import BM25System, DocumentLengths, EncoderSystem, Fusion, Progress, Ranking, System
from m2bert.bench.tasks import RetrievalTask, choose_tasks, load_task
from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError
from m2bert.provenance import provenance
from m2bert.ranking.metrics import (
    TIE_RULE,
    largest_cutoff,
    load_trec_eval,
    mean_over_queries,
    score_run,
)
from m2bert.ranking.significance import Bucket, Comparison, Values, compare_systems, length_buckets

DEFAULT_METRICS = ("nDCG@10", "R@10")
REPORT_VERSION = 2


@dataclass(frozen=True)
class SystemResult:
    """One system on one task: means over queries (0..1), the values per query, seconds to rank.

    max_tokens: the longest text that it reads at once; None without such a limit.
    """

    name: str
    fingerprint: str
    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    seconds: float
    lengths: DocumentLengths | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class TaskResult:
    """One task: its size and fingerprint, and the systems in the order given.

    answer_tokens: query_id -> tokens of its longest relevant document, as the first encoder counts them; empty
    where nothing counts tokens.
    """

    task: str
    split: str
    data_fingerprint: str
    num_queries: int
    num_documents: int
    num_dropped_queries: int
    num_dropped_documents: int
    systems: list[SystemResult]
    answer_tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All tasks, how sure the differences are, and what is needed to repeat the numbers."""

    kind: str = field(default="evaluation", init=False)
    tasks: list[TaskResult]
    comparison: Comparison
    buckets: list[Bucket]
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
        save_run(path, self.to_dict(), who="evaluate")


def _silent(label: str, fraction: float) -> None:
    """Progress that nobody asked for."""


def evaluate_tasks(
    tasks: Iterable[RetrievalTask],
    systems: Sequence[System],
    *,
    fusions: Sequence[Fusion] = (),
    metrics: Sequence[str] = DEFAULT_METRICS,
    baseline: str | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Rank and score every task with every system, then with every fusion of them.

    Runs are cut at the largest cutoff of `metrics`, or where the fusions cut them. `baseline` names the system
    that the others are tested against. Raises M2BertError for an unknown metric, no task, no system, two systems
    of one name, a name that is none, and an embedding that is not finite (naming the text).
    """
    load_trec_eval()
    depth = max([largest_cutoff(metrics), *(fusion.depth for fusion in fusions)])
    check_names([system.name for system in systems], fusions, baseline)
    results = [_evaluate_task(task, systems, fusions, metrics, depth, on_progress or _silent) for task in tasks]
    if not results:
        raise M2BertError("evaluate: needs at least one task, got none")
    values = values_of(results)
    buckets = []
    if all(task.answer_tokens for task in results):
        buckets = length_buckets(values, {task.task: task.answer_tokens for task in results})
    settings = {
        "metrics": list(metrics),
        "depth": depth,
        "similarity": "cosine, over all documents",
        "tie_rule": TIE_RULE,
        "mean": "over queries within a task, then over tasks",
    }
    return Report(results, compare_systems(values, baseline), buckets, settings, **provenance())


def check_names(names: Sequence[str], fusions: Sequence[Fusion], baseline: str | None) -> None:
    """Raise M2BertError unless the systems and fusions have names of their own, and others name only them."""
    known = [*names, *(fusion.name for fusion in fusions)]
    if not names or len(set(known)) != len(known):
        raise M2BertError(f"evaluate: needs systems of different names, got {', '.join(known) or 'none'}")
    for fusion in fusions:
        if not set(fusion.members) <= set(names):
            raise M2BertError(f"evaluate: {fusion.name} needs {', '.join(fusion.members)}, got {', '.join(names)}")
    if baseline is not None and baseline not in known:
        raise M2BertError(f"evaluate: the baseline must be one of {', '.join(known)}, got {baseline!r}")


def values_of(tasks: Sequence[TaskResult]) -> Values:
    """{task: {system: {query_id: {metric: value}}}}, as m2bert.ranking.significance takes it."""
    return {task.task: {system.name: system.per_query for system in task.systems} for task in tasks}


def _evaluate_task(
    task: RetrievalTask,
    systems: Sequence[System],
    fusions: Sequence[Fusion],
    metrics: Sequence[str],
    depth: int,
    on_progress: Progress,
) -> TaskResult:
    results: list[SystemResult] = []
    rankings: dict[str, Ranking] = {}
    everything: list[System | Fusion] = [*systems, *fusions]
    for system in everything:
        began = time.perf_counter()
        ranking = system.fuse(rankings) if isinstance(system, Fusion) else system.rank(task, depth, on_progress)
        seconds = time.perf_counter() - began
        rankings[system.name] = ranking
        values = score_run(task.qrels, ranking.run, metrics)
        means = mean_over_queries(values)
        results.append(
            SystemResult(
                system.name,
                ranking.fingerprint,
                means,
                values,
                round(seconds, 3),
                ranking.lengths,
                ranking.max_tokens,
            )
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
        answer_tokens=_answer_tokens(task, rankings),
    )


def _answer_tokens(task: RetrievalTask, rankings: Mapping[str, Ranking]) -> dict[str, int]:
    tokens = next((ranking.tokens for ranking in rankings.values() if ranking.tokens is not None), None)
    if tokens is None:
        return {}
    return {query_id: max(tokens[doc_id] for doc_id in relevant) for query_id, relevant in task.qrels.items()}


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
    """Evaluate an encoder, and BM25 beside it, on tasks of a folder in LoCoV1's columns (see m2bert.bench.tasks).

    tasks: names, or ["all"]. All of them are read and checked before the first text is encoded.
    Raises M2BertError as m2bert.bench.tasks and :func:`evaluate_tasks` do.
    """
    largest_cutoff(metrics)
    loaded = load_tasks(data_dir, tasks, split, on_progress)
    systems: list[System] = [EncoderSystem(encoder)]
    if bm25:
        systems.append(BM25System())
    baseline = BM25System.name if bm25 else None
    return evaluate_tasks(loaded, systems, metrics=metrics, baseline=baseline, on_progress=on_progress)


def load_tasks(
    data_dir: Path | str, tasks: Sequence[str], split: str = "test", on_progress: Progress | None = None
) -> list[RetrievalTask]:
    """Read the named tasks of a folder, or ["all"] of them. Raises M2BertError as m2bert.bench.tasks does."""
    progress = on_progress or _silent
    loaded = []
    for name, files in choose_tasks(tasks, data_dir, split).items():
        progress(f"{name}: reading", 0.0)
        loaded.append(load_task(name, files, split))
        progress(f"{name}: reading", 1.0)
    return loaded
