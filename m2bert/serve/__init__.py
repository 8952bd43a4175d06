"""A server and a page over encoders and stores: embeddings, reranking and search over HTTP (extra `.[serve]`).

    request -> gate (limits, token, headers) -> route, in a thread -> scheduler (batches of a token budget) -> encoder

The shapes of the answers are in docs/serving.md.
"""

from __future__ import annotations

from m2bert._lazy import lazy_names

_PUBLIC = {
    "Limits": "m2bert.serve.limits",
    "ScheduledEncoder": "m2bert.serve.scheduled",
    "Scheduler": "m2bert.serve.scheduler",
    "Service": "m2bert.serve.service",
    "create_app": "m2bert.serve.app",
    "run_server": "m2bert.serve.running",
}
__all__ = list(_PUBLIC)
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
