"""How much a server takes on, and how it refuses more: Limits, and the refusals that become answers.

Test: tests/serve/test_limits.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What is answered with 408, 413, 422 or 429 instead of being tried.

    body_bytes: of one request; bodies_bytes: of all that are being received; body_seconds: in which one must be here,
    so that whoever sends it drop by drop is not waited for. texts: in one request. characters: of one text.
    waiting_requests, waiting_tokens: at once, over all clients. threads: requests that are worked on at once; all
    others wait, and count as waiting.
    """

    body_bytes: int = 32 * 2**20
    bodies_bytes: int = 256 * 2**20
    body_seconds: float = 120.0
    texts: int = 2048
    characters: int = 2_000_000
    waiting_requests: int = 256
    waiting_tokens: int = 1_000_000
    threads: int = 64


class Refusal(Exception):
    """An answer that is not what was asked for: the HTTP status, what is wrong, and what to do.

    retry_after: seconds, where the same request may succeed later.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class HungUpError(Exception):
    """Nobody waits for this any more."""


def busy(what: str) -> Refusal:
    """Too much is waiting."""
    return Refusal(429, "busy", f"{what}; wait a little and send it again", retry_after=1)


def stopping() -> Refusal:
    """The server finishes what it has and takes nothing new."""
    return Refusal(503, "stopping", "the server is stopping; send it again when it is back", retry_after=5)
