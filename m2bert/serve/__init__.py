"""A server and a page over encoders and stores: embeddings, reranking and search over HTTP (extra `.[serve]`).

    request -> gate (limits, token, headers) -> route, in a thread -> scheduler (batches of a token budget) -> encoder

The shapes of the answers are in docs/serving.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
if TYPE_CHECKING:
    from m2bert.serve.app import create_app as create_app
    from m2bert.serve.limits import Limits as Limits
    from m2bert.serve.running import run_server as run_server
    from m2bert.serve.scheduled import ScheduledEncoder as ScheduledEncoder
    from m2bert.serve.scheduler import Scheduler as Scheduler
    from m2bert.serve.service import Service as Service
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
