"""Which weights of whole, passages, words and terms rank best: a grid over tasks, and what that choice is worth.

A choice is judged on tasks that had no part in it: each task in turn is ranked by the weights that are best on the mean
of all others (leave one out). The weights that are kept are those best on the mean of all.
Test: tests/bench/test_tuning.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from m2bert.bench.mixtures import PartScores
from m2bert.bench.systems import Progress
from m2bert.bench.tasks import RetrievalTask
from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError
from m2bert.files import whole_file
from m2bert.provenance import provenance
from m2bert.ranking.metrics import mean_over_queries, run_from_scores, score_run
from m2bert.ranking.parts import FILE, PARTS, TERMS, Mixture

METRIC = "nDCG@10"
# Of whole and passages together, whose weights add up to 1, the share of the passages.
PASSAGE_SHARES = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)
WORD_WEIGHTS = (0.0, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4)
TERM_WEIGHTS = (0.0, 0.25, 0.5)

Values = Mapping[Mixture, Sequence[float]]
"""By mixture: the metric of every task."""


def grid(*, terms: bool) -> list[Mixture]:
    """All mixtures that are tried."""
    weights = product(PASSAGE_SHARES, WORD_WEIGHTS, TERM_WEIGHTS if terms else (0.0,))
    return [Mixture(round(1 - share, 9), share, words, extra) for share, words, extra in weights]


def best_of(values: Values, leave_out: int | None = None) -> Mixture:
    """The mixture of the highest mean, of equal ones the first; without the task at `leave_out`."""

    def mean(mixture: Mixture) -> float:
        return math.fsum(value for task, value in enumerate(values[mixture]) if task != leave_out)

    return max(values, key=mean)


def left_out_mean(values: Values) -> float:
    """The mean over tasks, each ranked by the mixture that is best on the others."""
    count = len(next(iter(values.values())))
    return math.fsum(values[best_of(values, task)][task] for task in range(count)) / count


def tune_mixture(tasks: Sequence[RetrievalTask], encoder: Encoder, on_progress: Progress) -> dict[str, Any]:
    """Try every mixture on every task. Returns a run of kind "mixture": what is best, alone and left out.

    Raises M2BertError for fewer than 3 tasks, and as encoders do.
    """
    if len(tasks) < 3:
        raise M2BertError(f"mixture: needs at least 3 tasks, one of which is left out in turn, got {len(tasks)}")
    terms = _has_terms(encoder)
    mixtures, parts = grid(terms=terms), [part for part in PARTS if terms or part != TERMS]
    alone = {part: Mixture().only(part) for part in parts}
    values: dict[Mixture, list[float]] = {mixture: [] for mixture in [*mixtures, *alone.values()]}
    scores = PartScores(encoder)
    for task in tasks:
        found = scores.of(task, parts, on_progress)
        for number, mixture in enumerate(values):
            values[mixture].append(_metric(task, mixture.combined(found)))
            on_progress(f"{task.name}: mixtures", (number + 1) / len(values))
    with_terms = {mixture: values[mixture] for mixture in mixtures}
    without = {mixture: row for mixture, row in with_terms.items() if mixture.terms == 0}
    best = best_of(without)
    names = [task.name for task in tasks]
    return {
        "kind": "mixture",
        "metric": METRIC,
        "model": encoder.name,
        "fingerprint": encoder.fingerprint,
        "tasks": {task.name: [len(task.queries), len(task.corpus), task.fingerprint] for task in tasks},
        "best": asdict(best),
        "best_mean": _mean(without[best]),
        "left_out_mean": left_out_mean(without),
        "alone": {part: _mean(values[mixture]) for part, mixture in alone.items()},
        "best_with_terms": asdict(best_of(with_terms)),
        "best_mean_with_terms": _mean(with_terms[best_of(with_terms)]),
        "left_out_mean_with_terms": left_out_mean(with_terms),
        "grid": [[asdict(mixture), _mean(row)] for mixture, row in with_terms.items()],
        "by_task": {
            name: {"best": without[best][i], **{part: values[mixture][i] for part, mixture in alone.items()}}
            for i, name in enumerate(names)
        },
        **provenance(),
    }


def save_mixture(run: Mapping[str, Any], folder: Path | str) -> None:
    """Write the best weights of a run into a model's folder, where Embedder finds them."""
    with whole_file(Path(folder) / FILE, who="mixture") as file:
        file.write((json.dumps(run["best"]) + "\n").encode())


def _has_terms(encoder: Any) -> bool:
    """Whether the encoder makes sparse vectors: an Embedder has the method, and needs a model with term weights."""
    if not hasattr(encoder, "encode_sparse"):
        return False
    try:
        encoder.encode_sparse([])
    except M2BertError:
        return False
    return True


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _metric(task: RetrievalTask, scores: Any) -> float:
    run = run_from_scores(scores, list(task.queries), list(task.corpus), 10)
    return mean_over_queries(score_run(task.qrels, run, (METRIC,)))[METRIC]
