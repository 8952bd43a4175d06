"""In front of all routes: who may come in, how much may wait, and the headers that every answer carries.

A request is counted from the moment its body is there, so that a slow sender holds no place.
Test: tests/serve/test_limits.py.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m2bert.serve.answers import refusal_answer
from m2bert.serve.limits import Refusal, busy, stopping
from m2bert.serve.service import Service

HEALTH, METRICS, ASSETS = "/health", "/metrics", "/page"
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Browsers ask for a password, and send it with everything the page fetches.
CHALLENGE = {"WWW-Authenticate": 'Basic realm="m2bert", charset="UTF-8"'}


class Gate:
    """ASGI middleware. token: None, or what requests must bring as a bearer token or a password. hosts: the names by
    which the server may be asked, None for any; they keep other sites' pages from asking a server on this machine by
    a name of their own."""

    def __init__(self, app: ASGIApp, service: Service, token: str | None, hosts: Collection[str] | None) -> None:
        self._app, self._service, self._hosts = app, service, hosts
        self._token = None if token is None else token.encode()
        self._working = self._receiving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _secure(MutableHeaders(scope=message), scope["path"])
            await send(message)

        try:
            await self._admit(scope, receive, send_on)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._service.metrics.answered(route, status, time.monotonic() - begun)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
            body = await self._body(headers, receive)
        except Refusal as refusal:
            answer = refusal_answer(refusal)
            if refusal.status == 401:
                answer.headers.update(CHALLENGE)
            await answer(scope, receive, send)
            return
        if body is None:  # gone before it had sent all
            return
        self._working += 1
        try:
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._working -= 1

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._hosts is not None and _host(headers) not in self._hosts:
            raise Refusal(421, "host", f"this server is asked as {' or '.join(self._hosts)}; use one of these names")
        path = scope["path"]
        if path == HEALTH:
            return
        if self._token is not None and not hmac.compare_digest(_credential(headers), self._token):
            raise Refusal(401, "token", "this server wants a token; send it as `Authorization: Bearer TOKEN`")
        if path == METRICS or path.startswith(ASSETS):
            return
        if self._service.stopping:
            raise stopping()
        most = self._service.limits.waiting_requests
        if self._working >= most:
            raise busy(f"{most} requests are being answered or wait")
        sent = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] in ("POST", "PUT", "PATCH") and sent != "application/json":
            raise Refusal(415, "media_type", "the body must be JSON; send it with `Content-Type: application/json`")

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body, or None where the client leaves before its end."""
        limits = self._service.limits
        most, seconds = limits.body_bytes, limits.body_seconds
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            raise _too_large(most)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    self._receiving += len(chunks[-1])
                    if size > most:
                        raise _too_large(most)
                    if self._receiving > limits.bodies_bytes:
                        raise busy(f"{limits.bodies_bytes:,} bytes of requests are being received")
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise Refusal(408, "slow", f"a body must be here in {seconds:g} seconds; send less at a time") from None
        finally:
            self._receiving -= size


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"a body may have {most:,} bytes; send less at a time")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body again, and then what comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_on() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_on


def _secure(headers: MutableHeaders, path: str) -> None:
    headers.update(SECURITY)
    headers.setdefault("Cache-Control", "no-cache" if path.startswith(ASSETS) else "no-store")


def _host(headers: Headers) -> str:
    """The name a server is asked by, without port and brackets."""
    host = headers.get("host", "").strip().lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name


def _credential(headers: Headers) -> bytes:
    """The bearer token, or the password of whoever came through a browser; empty without either."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode("latin-1")
    if kind.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""
