"""Scores to rankings to metrics: BM25, fusion, nDCG, significance. Ids, texts and numbers only, never a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2bert._lazy import lazy_names

_PUBLIC = {
    "BM25": "m2bert.ranking.bm25",
    "compare_systems": "m2bert.ranking.significance",
    "reciprocal_rank_fusion": "m2bert.ranking.fusion",
    "run_from_scores": "m2bert.ranking.metrics",
    "score_fusion": "m2bert.ranking.fusion",
    "score_run": "m2bert.ranking.metrics",
}
__all__ = list(_PUBLIC)
if TYPE_CHECKING:
    from m2bert.ranking.bm25 import BM25 as BM25
    from m2bert.ranking.fusion import reciprocal_rank_fusion as reciprocal_rank_fusion, score_fusion as score_fusion
    from m2bert.ranking.metrics import run_from_scores as run_from_scores, score_run as score_run
    from m2bert.ranking.significance import compare_systems as compare_systems
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
