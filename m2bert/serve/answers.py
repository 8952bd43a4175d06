"""From work to answers: in a thread that a client's leaving ends, as JSON, errors in words without paths or traces.

Test: tests/serve/test_app.py, tests/serve/test_limits.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from m2bert.errors import M2BertError, MissingError, StoreError
from m2bert.serve.limits import HungUpError, Refusal
from m2bert.serve.scheduled import Ticket
from m2bert.serve.service import Service

HUNG_UP = 499  # nginx's status for a client that left; nobody reads it
Made = TypeVar("Made")
logger = logging.getLogger("m2bert.serve")


class JsonAnswer(Response):
    """JSON by orjson, which takes numpy's arrays and writes float32 in the fewest digits."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        made: bytes = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        return made


def service_of(request: Request) -> Service:
    """The service of the application that got a request."""
    service: Service = request.app.state.service
    return service


async def in_thread(request: Request, work: Callable[[], Made]) -> Made:
    """What `work` returns, from a thread; if the client hangs up, what it waits for is given up: HungUpError."""
    ticket, limiter = Ticket(), request.app.state.limiter

    def held() -> Made:
        with ticket.held():
            ticket.check()
            return work()

    running = asyncio.ensure_future(_in_worker(held, limiter))
    leaving = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            ticket.cancel()
        return await running
    finally:
        leaving.cancel()


async def _in_worker(work: Callable[[], Made], limiter: CapacityLimiter) -> Made:
    return await to_thread.run_sync(work, limiter=limiter)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def refusal_answer(refusal: Refusal) -> Response:
    """A refusal in the shape of OpenAI's errors."""
    status = refusal.status
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    error = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return JsonAnswer({"error": error}, status, headers)


def refusal_of(error: Exception, request: Request) -> Refusal:
    """How an error is told: in its own words where a user can mend it, else that the log says more."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return Refusal(422, "invalid", describe(error.errors()))
    if isinstance(error, StoreError):
        logger.error("%s", error)
        return Refusal(503, "store", "the store cannot be read or written now; the server's log says why")
    if isinstance(error, M2BertError):
        message = str(error)
        for store in service_of(request).stores.values():
            message = store.without_paths(message)
        missing = isinstance(error, MissingError)
        return Refusal(404 if missing else 422, "not_found" if missing else "invalid", message)
    if isinstance(error, HTTPException):
        line = f"{request.method} {request.url.path[:80]}"
        return Refusal(error.status_code, "http", f"{line}: {error.detail}; GET /docs lists what there is")
    return Refusal(500, "internal", "the server failed at this; its log says why")


def describe(errors: Sequence[Mapping[str, Any]]) -> str:
    """Everything that is wrong with a body or a query string, in one sentence."""
    parts = []
    for error in errors:
        where = ".".join(str(part) for part in error["loc"][1:])
        words = str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == "json_invalid":
            where, words = "", f"the body is not JSON ({error['ctx']['error']} at character {where})"
        parts.append(f"{where}: {words}" if where else words)
    return "; ".join(dict.fromkeys(parts)) + "; GET /docs shows what is taken"


async def answer_error(request: Request, error: Exception) -> Response:
    """The handler of all exceptions."""
    if isinstance(error, HungUpError):
        return Response(status_code=HUNG_UP)
    return refusal_answer(refusal_of(error, request))
