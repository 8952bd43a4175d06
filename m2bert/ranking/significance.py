"""How sure a table of scores is: bootstrap intervals, a paired test against a baseline, means by document length.

    values   {task: {system: {query_id: {metric: value in 0..1}}}}    every system with the same queries

Queries are the unit that is drawn. Within a task all systems and metrics share the draws, so that differences are
paired; the draws of a task depend on its name and the seed alone, not on what else is in the run. Over tasks, each
task counts once. No correction is made for comparing many systems. A leaf: numbers only.
Test: tests/ranking/test_significance.py.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2bert.errors import M2BertError

Values = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
RESAMPLES = 10_000
SEED = 0
METHOD = (
    f"95 % intervals: percentile bootstrap over queries within tasks, {RESAMPLES:,} resamples; p: two-sided paired "
    f"randomisation test, {RESAMPLES:,} sign flips, not corrected for the number of comparisons; seed {SEED}"
)
LENGTH_BUCKETS = ((0, 2048, "<2k"), (2048, 8192, "2-8k"), (8192, 32768, "8-32k"), (32768, math.inf, ">32k"))
"""Lower bound (included), upper bound (excluded) in tokens, and name, as in the paper's table 22."""

# Draws made at once: a block of a task with 2,000 queries takes 16 MB.
_BLOCK = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; against the baseline the difference of means and p (None for itself)."""

    mean: float
    low: float
    high: float
    difference: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Estimates {system: {metric: Estimate}} over all tasks, and the same for every task."""

    baseline: str | None
    overall: dict[str, dict[str, Estimate]]
    tasks: dict[str, dict[str, dict[str, Estimate]]]
    method: str = METHOD


@dataclass(frozen=True)
class Bucket:
    """Queries whose answer has a length in one range: their number, and the means over them by system."""

    name: str
    num_queries: int
    means: dict[str, dict[str, float]]


def compare_systems(
    values: Values, baseline: str | None = None, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Comparison:
    """Estimates for every system and metric, per task and over tasks.

    Raises M2BertError if the baseline is not among the systems, or if systems differ in their queries.
    """
    if not values:
        raise M2BertError("significance: needs at least one task, got none")
    systems = list(next(iter(values.values())))
    if baseline is not None and baseline not in systems:
        raise M2BertError(f"significance: the baseline must be one of {', '.join(systems)}, got {baseline!r}")
    columns: list[tuple[str, str]] = []
    per_task, observed, drawn, flipped = {}, [], [], []
    for task, by_system in values.items():
        columns, matrix = _matrix(task, by_system, systems)
        reference = matrix[:, [columns.index((baseline or name, metric)) for name, metric in columns]]
        means = matrix.mean(axis=0)
        draws = np.concatenate(list(_resampled_means(matrix, task, resamples, seed)))
        flips = np.concatenate(list(_flipped_means(matrix - reference, task, resamples, seed)))
        difference = (matrix - reference).mean(axis=0)
        per_task[task] = _estimates(columns, means, draws, difference, flips, baseline)
        observed.append((means, difference))
        drawn.append(draws)
        flipped.append(flips)
    means, difference = (np.mean([pair[place] for pair in observed], axis=0) for place in (0, 1))
    draws, flips = np.mean(drawn, axis=0), np.mean(flipped, axis=0)
    return Comparison(baseline, _estimates(columns, means, draws, difference, flips, baseline), per_task)


def _matrix(
    task: str, by_system: Mapping[str, Mapping[str, Mapping[str, float]]], systems: Sequence[str]
) -> tuple[list[tuple[str, str]], NDArray[np.float64]]:
    """Columns (system, metric), and the values (num_queries, num_columns)."""
    if list(by_system) != list(systems):
        raise M2BertError(
            f"significance: {task} must have the systems {', '.join(systems)}, got {', '.join(by_system)}"
        )
    queries = sorted(by_system[systems[0]])
    for name, rows in by_system.items():
        if sorted(rows) != queries or not queries:
            raise M2BertError(f"significance: {name} must be scored on the same queries of {task} as {systems[0]}")
    columns = [(name, metric) for name in systems for metric in by_system[name][queries[0]]]
    table = [[by_system[name][query][metric] for name, metric in columns] for query in queries]
    return columns, np.asarray(table, dtype=np.float64)


def _blocks(task: str, resamples: int, seed: int, purpose: int) -> Iterator[tuple[int, np.random.Generator]]:
    """Sizes of blocks that add up to `resamples`, and the generator to draw them with."""
    generator = np.random.default_rng([seed, purpose, zlib.crc32(task.encode())])
    for start in range(0, resamples, _BLOCK):
        yield min(_BLOCK, resamples - start), generator


def _resampled_means(
    matrix: NDArray[np.float64], task: str, resamples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Means (block, num_columns) over queries drawn with replacement."""
    num_queries = len(matrix)
    for size, generator in _blocks(task, resamples, seed, 0):
        drawn = generator.integers(0, num_queries, (size, num_queries)) + num_queries * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_queries).reshape(size, num_queries)
        yield counts @ matrix / num_queries


def _flipped_means(
    differences: NDArray[np.float64], task: str, resamples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Mean differences (block, num_columns) with the two systems swapped at random for each query."""
    for size, generator in _blocks(task, resamples, seed, 1):
        signs = generator.integers(0, 2, (size, len(differences)), dtype=np.int8) * 2.0 - 1.0
        yield signs @ differences / len(differences)


def _estimates(
    columns: Sequence[tuple[str, str]],
    means: NDArray[np.float64],
    draws: NDArray[np.float64],
    difference: NDArray[np.float64],
    flips: NDArray[np.float64],
    baseline: str | None,
) -> dict[str, dict[str, Estimate]]:
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    # A flip that equals the observation up to rounding counts as extreme.
    extreme = (np.abs(flips) >= np.abs(difference) - 1e-12).sum(axis=0)
    p = (extreme + 1) / (len(flips) + 1)
    found: dict[str, dict[str, Estimate]] = {}
    for number, (name, metric) in enumerate(columns):
        against = baseline is not None and name != baseline
        found.setdefault(name, {})[metric] = Estimate(
            float(means[number]),
            float(low[number]),
            float(high[number]),
            float(difference[number]) if against else None,
            float(p[number]) if against else None,
        )
    return found


def length_buckets(values: Values, answer_tokens: Mapping[str, Mapping[str, int]]) -> list[Bucket]:
    """Means over the queries of all tasks together, by the length of the answer; empty ranges are left out.

    answer_tokens: {task: {query_id: tokens of the longest relevant document}}.
    """
    buckets = []
    for low, high, label in LENGTH_BUCKETS:
        rows: dict[str, list[Mapping[str, float]]] = {}
        for task, by_system in values.items():
            inside = [query for query, tokens in answer_tokens[task].items() if low <= tokens < high]
            for name, by_query in by_system.items():
                rows.setdefault(name, []).extend(by_query[query] for query in inside)
        num_queries = len(next(iter(rows.values())))
        if num_queries:
            means = {
                name: {metric: math.fsum(row[metric] for row in found) / num_queries for metric in found[0]}
                for name, found in rows.items()
            }
            buckets.append(Bucket(label, num_queries, means))
    return buckets
