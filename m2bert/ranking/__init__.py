"""Scores to rankings to metrics: BM25, fusion, nDCG, significance. Ids, texts and numbers only, never a model."""

from __future__ import annotations

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
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
