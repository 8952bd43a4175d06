"""The application: all routes behind the gate, over one Service.

Test: tests/serve/test_app.py.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from anyio import CapacityLimiter, create_task_group, to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

import m2bert
from m2bert.errors import M2BertError
from m2bert.serve import embeddings, pages, rerank, searching
from m2bert.serve.answers import JsonAnswer, answer_error, service_of
from m2bert.serve.gate import ASSETS, HEALTH, METRICS, Gate
from m2bert.serve.limits import HungUpError, Refusal
from m2bert.serve.service import Service

logger = logging.getLogger("m2bert.serve")


def create_app(
    service: Service, *, writable: bool = False, token: str | None = None, hosts: Collection[str] | None = None
) -> FastAPI:
    """An ASGI application that serves `service`, and closes it when it ends.

    writable: whether documents may be added and deleted. token, hosts: see m2bert.serve.gate.Gate.
    """
    app = FastAPI(
        title="m2bert", version=m2bert.__version__, description="Embeddings, reranking and search in long documents.",
        docs_url=None, redoc_url=None, lifespan=_lifespan,
    )  # fmt: skip
    app.state.service, app.state.writable = service, writable
    app.add_middleware(Gate, service=service, token=token, hosts=hosts)
    kinds: tuple[Any, ...] = (Refusal, HungUpError, M2BertError, RequestValidationError, HTTPException, Exception)
    for kind in kinds:
        app.add_exception_handler(kind, answer_error)
    for router in (embeddings.router, rerank.router, searching.router, pages.router):
        app.include_router(router)
    app.get(HEALTH, tags=["server"], summary="200 when the models answer, else 503")(_health)
    app.get(METRICS, tags=["server"], summary="What Prometheus reads")(_metrics)
    app.mount(ASSETS, StaticFiles(directory=pages.PAGE / "assets"))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    app.state.limiter = CapacityLimiter(service.limits.threads)
    async with create_task_group() as group:
        group.start_soon(_probe, service)
        yield
    await to_thread.run_sync(service.close)


async def _probe(service: Service) -> None:
    try:
        await to_thread.run_sync(service.probe)
    except M2BertError:
        logger.exception("a model does not answer; %s says so", HEALTH)


async def _health(request: Request) -> Response:
    """For load balancers: nothing but whether requests should be sent here."""
    service = service_of(request)
    if service.ready:
        return JsonAnswer({"status": "ready"})
    return JsonAnswer({"status": "stopping" if service.stopping else "starting"}, 503)


async def _metrics(request: Request) -> Response:
    """Requests, times, queue, batches and tokens in Prometheus' text format."""
    service = service_of(request)
    text = service.metrics.text(model.scheduler for model in service.models.values())
    return Response(text, media_type=service.metrics.content_type)
