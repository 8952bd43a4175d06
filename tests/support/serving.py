"""Servers for tests: documents, a service behind a real socket, and a client that sends what it likes."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tiny import story

from m2bert.search.documents import Document
from m2bert.search.sections import Section
from m2bert.serve.app import create_app
from m2bert.serve.running import listen, make_server
from m2bert.serve.service import Service

EVIL = "<script>alert(1)</script>\" ' & \u202egpj.exe"
NOTES = "/home/somebody/notes"
EVIL_TEXT = (
    "river <script>document.title = 'run'</script> \" ' <b>stone</b> \u202eright to left\u202c "
    "<img src=x onerror=alert(1)> "
)
DOCUMENTS = [
    *(Document(f"text {number}.txt", story(20 + 10 * number, seed=number), NOTES) for number in range(4)),
    Document("long.txt", story(1500, seed=9), NOTES, tuple(Section(2000 * n, f"page {n + 1}") for n in range(4))),
    Document(EVIL, EVIL_TEXT + story(600, seed=10), "<i>other</i>"),
]


@dataclass(frozen=True)
class Answer:
    """What a server said; names of headers in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


def ask(url: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None) -> Answer:
    """One request; `body` is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(url, data, sent | (headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(answer.status, _lowered(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, _lowered(error.headers), error.read())


def _lowered(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@contextmanager
def served(service: Service, **options: Any) -> Iterator[str]:
    """The address of a service that answers, without the last slash."""
    app = create_app(service, **options)
    server = make_server(lambda: app)
    with listen("127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            deadline = time.monotonic() + 120
            while ask(url + "/health").status != 200:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield url
        finally:
            server.should_exit = True
            thread.join()
