"""Connections that end: whoever does not send a request, or never comes to the end of its head, is hung up on.

uvicorn waits for ever for the first request of a connection, and keeps whatever head it is sent.
Test: tests/serve/test_limits.py.
"""

from __future__ import annotations

from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# The head of a request is the work of a moment; a browser's is some 2 KB.
SECONDS_FOR_HEAD = 20.0
BYTES_OF_HEAD = 64 * 1024


class PatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools, with a bound on the time and the bytes of a request's head."""

    _waiting: TimerHandle | None = None
    _bytes_of_head = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._waiting is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()
        self._bytes_of_head += len(data)
        super().data_received(data)
        # What was received may have ended the head, and the rest of it is body.
        if self._waiting is not None and self._bytes_of_head > BYTES_OF_HEAD:
            self._hang_up()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._bytes_of_head = 0
        self._waiting = self.loop.call_later(SECONDS_FOR_HEAD, self._hang_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _hang_up(self) -> None:
        self._stop_waiting()
        self.transport.abort()
