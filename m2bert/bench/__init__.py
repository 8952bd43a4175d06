"""The benchmark: LoCoV1 and tasks like it, what is scored on them, and the studies around it.

    tasks -> systems (encoders, BM25, fusions) -> evaluate -> runs (JSON) -> report, plots

Studies: needle (one answer in a haystack), encode_time, lengths, clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2bert._lazy import lazy_names

_PUBLIC = {
    "BM25System": "m2bert.bench.systems",
    "EncoderSystem": "m2bert.bench.systems",
    "Fusion": "m2bert.bench.systems",
    "RetrievalTask": "m2bert.bench.tasks",
    "as_mteb_model": "m2bert.bench.mteb_adapter",
    "as_mteb_search": "m2bert.bench.mteb_adapter",
    "as_mteb_task": "m2bert.bench.mteb_adapter",
    "evaluate_tasks": "m2bert.bench.evaluate",
    "load_task": "m2bert.bench.tasks",
}
__all__ = list(_PUBLIC)
if TYPE_CHECKING:
    from m2bert.bench.evaluate import evaluate_tasks as evaluate_tasks
    from m2bert.bench.mteb_adapter import (
        as_mteb_model as as_mteb_model,
        as_mteb_search as as_mteb_search,
        as_mteb_task as as_mteb_task,
    )
    from m2bert.bench.systems import BM25System as BM25System, EncoderSystem as EncoderSystem, Fusion as Fusion
    from m2bert.bench.tasks import RetrievalTask as RetrievalTask, load_task as load_task
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
