"""How long the texts of tasks are, in characters and in tokens (the paper's figure 5, and its table 10 set right).

The paper's table 10 calls lengths tokens that its code counts in characters; both are given here.
Test: tests/bench/test_lengths.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from m2bert.bench.tasks import RetrievalTask
from m2bert.errors import M2BertError
from m2bert.provenance import provenance

RUN_VERSION = 1
# Half a power of two per bin: 16 to 1,048,576.
EDGES = [round(2 ** (half / 2)) for half in range(8, 41)]

CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""Texts to their numbers of tokens, without special tokens."""


@dataclass(frozen=True)
class LengthSummary:
    """Lengths of one kind of text in one unit: number of texts, mean, percentiles 5, 25, 50, 75, 95, the largest, and
    a histogram: counts of texts from EDGES[i] (included) to EDGES[i + 1]; shorter ones count in the first bin."""

    count: int
    mean: float
    percentiles: list[float]
    largest: int
    histogram: list[int]


@dataclass(frozen=True)
class TaskLengths:
    """One task: summaries by kind of text ("documents", "queries") and unit ("characters", "tokens")."""

    task: str
    split: str
    data_fingerprint: str
    documents: dict[str, LengthSummary]
    queries: dict[str, LengthSummary]


def summarise(lengths: Sequence[int]) -> LengthSummary:
    """Summary of at least one length. Raises M2BertError without any."""
    if not len(lengths):
        raise M2BertError("lengths: needs at least one text, got none")
    values = np.asarray(lengths, dtype=np.int64)
    counts, _ = np.histogram(np.clip(values, EDGES[0], EDGES[-1]), EDGES)
    percentiles = [float(value) for value in np.percentile(values, [5, 25, 50, 75, 95])]
    return LengthSummary(len(values), float(values.mean()), percentiles, int(values.max()), counts.tolist())


def measure_lengths(
    tasks: Iterable[RetrievalTask],
    count_tokens: CountTokens | None = None,
    tokenizer: str | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """A run of kind "lengths". Without `count_tokens` lengths are in characters alone; `tokenizer` names it."""
    found = []
    for task in tasks:
        summaries: dict[str, dict[str, LengthSummary]] = {}
        for place, (kind, texts) in enumerate((("documents", task.corpus), ("queries", task.queries))):
            if on_progress is not None:
                on_progress(f"{task.name}: lengths", place / 2)
            summaries[kind] = {"characters": summarise([len(text) for text in texts.values()])}
            if count_tokens is not None:
                summaries[kind]["tokens"] = summarise(count_tokens(list(texts.values())))
        if on_progress is not None:
            on_progress(f"{task.name}: lengths", 1.0)
        found.append(asdict(TaskLengths(task.name, task.split, task.fingerprint, **summaries)))
    if not found:
        raise M2BertError("lengths: needs at least one task, got none")
    return {
        "kind": "lengths", "version": RUN_VERSION, "tasks": found, "edges": EDGES,
        "settings": {"tokenizer": tokenizer, "special_tokens": "not counted"}, **provenance(),
    }  # fmt: skip
