"""What a server tells Prometheus: requests and their times, the queue, batches, tokens.

With several worker processes the numbers of all are added up, through the folder that PROMETHEUS_MULTIPROC_DIR names.
Test: tests/serve/test_app.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from m2bert.serve.scheduler import BatchRun, Scheduler

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PIECES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16384, 32768)
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The metrics of one process; tokens a second are `rate(m2bert_tokens_total[1m])`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("m2bert_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "m2bert_request_seconds", "Seconds from request to answer.", ["route"], registry=registry, buckets=SECONDS
        )
        self._waiting = Gauge(
            "m2bert_waiting_requests", "Requests in the queue.", registry=registry, multiprocess_mode="livesum"
        )
        self._waiting_tokens = Gauge(
            "m2bert_waiting_tokens", "Tokens in the queue.", registry=registry, multiprocess_mode="livesum"
        )
        self._pieces = Histogram(
            "m2bert_batch_pieces", "Texts or windows in a batch.", registry=registry, buckets=PIECES
        )
        self._batch_tokens = Histogram("m2bert_batch_tokens", "Tokens in a batch.", registry=registry, buckets=TOKENS)
        self._batch_seconds = Histogram(
            "m2bert_batch_seconds", "Seconds that a batch took.", registry=registry, buckets=SECONDS
        )
        self._tokens = Counter("m2bert_tokens", "Tokens that went through the model.", registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is its template, such as /documents/{id}."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def ran(self, run: BatchRun) -> None:
        """Count a batch."""
        self._pieces.observe(run.pieces)
        self._batch_tokens.observe(run.tokens)
        self._batch_seconds.observe(run.seconds)
        self._tokens.inc(run.tokens)

    def text(self, schedulers: Iterable[Scheduler]) -> bytes:
        """All of it in Prometheus' format; the queues are looked at now."""
        queues = list(schedulers)
        self._waiting.set(sum(each.waiting_requests for each in queues))
        self._waiting_tokens.set(sum(each.waiting_tokens for each in queues))
        registry = self._registry
        if MULTIPROCESS in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        made: bytes = generate_latest(registry)
        return made
