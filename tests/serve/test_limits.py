"""Limits answer at once and say what to do; whoever hangs up gives the place back; who may ask at all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from serving import Answer, ask, served
from tiny import tiny_embedder

from m2bert.serve import connections
from m2bert.serve.limits import Limits
from m2bert.serve.service import Service

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
LIMITS = Limits(body_bytes=2000, texts=3, characters=300, waiting_requests=2, waiting_tokens=50)


class Held:
    """An embedder whose batches wait until they are let, once `hold` is set."""

    def __init__(self) -> None:
        self._embedder = tiny_embedder()
        self.held, self.running = threading.Event(), threading.Event()
        self.let = threading.Event()
        self.ran = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def run(self, batch: Any) -> None:
        self.ran += len(batch)
        if self.held.is_set():
            self.running.set()
            assert self.let.wait(20)
        self._embedder.run(batch)


@pytest.fixture()
def held() -> Held:
    return Held()


@pytest.fixture()
def service(held: Held) -> Service:
    service = Service(LIMITS)
    service.add_model(held)
    return service


@pytest.fixture()
def url(service: Service, held: Held) -> Iterator[str]:
    with served(service) as address:
        held.held.set()
        try:
            yield address
        finally:
            held.let.set()


def embed(url: str, text: str) -> Answer:
    return ask(url + "/v1/embeddings", {"input": text})


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b" " * 2001, 413, "a body may have 2,000 bytes; send less at a time"),
        ({"input": ["a"] * 4}, 422, "input may hold 3 texts, got 4; send some at a time"),
        ({"input": ["a", "b" * 301]}, 422, "a text may have 300 characters, text 1 has 301; divide it"),
        (b'{"input": }', 422, "the body is not JSON (Expecting value at character 10)"),
    ],
)
def test_a_request_that_is_too_large_is_refused(url: str, body: Any, status: int, words: str) -> None:
    answer = ask(url + "/v1/embeddings", body)
    assert answer.status == status and words in answer.error["message"]


def test_a_body_of_unknown_length_is_cut_off(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        client.sendall(b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b" " * 1024 + b"\r\n")
        client.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-", b""),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /hea", b"HTTP/1.1 200"),
        (b"GET /" + b"a" * 70_000, b""),
        (HEAD + b"Content-Length: 9\r\n\r\n{", b"HTTP/1.1 408"),
        (HEAD + b"Content-Length: 1500\r\n\r\n" + b" " * 1200, b"HTTP/1.1 429"),
    ],
)
def test_who_does_not_go_on_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, sent: bytes, answer: bytes) -> None:
    """Nothing, half a head, half a second head, a head without end, half a body, and more bodies than there is room."""
    monkeypatch.setattr(connections, "SECONDS_FOR_HEAD", 0.3)
    service = Service(replace(LIMITS, body_seconds=0.3, bodies_bytes=1000))
    service.add_model(tiny_embedder())
    with served(service) as url, connected(url) as client:
        client.sendall(sent)
        got = b""
        with suppress(ConnectionResetError):
            while part := client.recv(4096):
                got += part
        assert got.startswith(answer) and bool(got) == bool(answer)
        assert ask(url + "/health").status == 200


def test_a_full_house_is_told_at_once(url: str, held: Held, service: Service) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, url, "river")
        held.running.wait(20)
        second = pool.submit(embed, url, "stone")
        wait_until(lambda: service.models["unnamed"].scheduler.waiting_requests == 1)
        third = embed(url, "paper")
        assert third.status == 429 and third.headers["retry-after"] == "1"
        assert third.error["message"].startswith("2 requests are being answered or wait; wait a little")
        assert (ask(url + "/health").status, ask(url + "/metrics").status) == (200, 200)
        held.let.set()
        assert (first.result().status, second.result().status) == (200, 200)
    assert embed(url, "paper").status == 200


def test_a_full_queue_of_tokens_is_told(held: Held) -> None:
    service = Service(replace(LIMITS, waiting_requests=10))
    service.add_model(held)
    with served(service) as url, ThreadPoolExecutor(2) as pool:
        held.held.set()
        first = pool.submit(embed, url, "river " * 40)
        held.running.wait(20)
        second = pool.submit(embed, url, "stone " * 40)
        wait_until(lambda: service.models["unnamed"].scheduler.waiting_tokens == 42)
        third = embed(url, "paper " * 20)
        held.let.set()
        assert third.status == 429 and third.headers["retry-after"] == "1"
        assert third.error["message"].startswith("42 tokens wait, and with 22 more they are over 50")
        assert (first.result().status, second.result().status) == (200, 200)


def test_whoever_hangs_up_gives_the_place_back(url: str, held: Held, service: Service) -> None:
    scheduler = service.models["unnamed"].scheduler
    host, port = url.removeprefix("http://").split(":")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(embed, url, "river")
        held.running.wait(20)
        with socket.create_connection((host, int(port))) as client:
            body = json.dumps({"input": ["stone", "paper"]}).encode()
            head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            wait_until(lambda: scheduler.waiting_requests == 1)
        wait_until(lambda: scheduler.waiting_requests == 0)
        before = held.ran
        answers = []

        def ask_again() -> None:
            """Until the place is free: the gate hears of the hang-up a moment after the queue."""
            while not answers or (answers[-1].status == 429 and len(answers) < 1000):
                answers.append(embed(url, "light"))

        second = threading.Thread(target=ask_again)
        second.start()
        wait_until(lambda: scheduler.waiting_requests == 1)
        held.let.set()
        second.join()
        assert (first.result().status, answers[-1].status) == (200, 200)
    assert held.ran == before + 1  # what was given up never ran


def test_a_stop_finishes_what_was_accepted(service: Service, held: Held) -> None:
    with ThreadPoolExecutor(1) as pool:
        with served(service) as url:
            held.held.set()
            answer = pool.submit(embed, url, "river")
            held.running.wait(20)
            service.stopping = True
            late = embed(url, "stone")
            assert late.status == 503 and "the server is stopping" in late.error["message"]
            assert ask(url + "/health").json == {"status": "stopping"}
            threading.Timer(0.2, held.let.set).start()
        assert answer.result().status == 200
    assert not service.models["unnamed"].scheduler.answers


def test_health_waits_for_the_model(held: Held) -> None:
    service = Service()
    service.add_model(held)
    assert not service.ready
    service.probe()
    assert service.ready
    service.close()
    assert not service.ready


def test_other_content_is_refused(url: str) -> None:
    answer = ask(url + "/v1/embeddings", b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status == 415 and "send it with `Content-Type: application/json`" in answer.error["message"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    service = Service()
    service.add_model(tiny_embedder())
    with served(service, token="päss word", hosts=("127.0.0.1", "localhost", "::1")) as address:
        yield address


@pytest.mark.parametrize(
    ("credential", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Bearer ", 401),
        ("Basic ///", 401),
        ("Basic dTp3cm9uZw==", 401),
        ("Bearer p\u00c3\u00a4ss word", 200),  # its UTF-8 bytes
        ("Basic dTpww6RzcyB3b3Jk", 200),
    ],
)
def test_a_token_is_asked_for(guarded: str, credential: str | None, status: int) -> None:
    headers = {} if credential is None else {"Authorization": credential}
    answer = ask(guarded + "/v1/models", headers=headers)
    assert answer.status == status
    assert ask(guarded + "/docs", headers=headers).status == status
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Basic")
        assert "send it as `Authorization: Bearer TOKEN`" in answer.error["message"]
    assert ask(guarded + "/health", headers=headers).status == 200


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:80", 200), ("[::1]:80", 200), ("evil.example", 421), ("", 421)]
)
def test_a_server_on_this_machine_is_asked_by_its_own_name(guarded: str, host: str, status: int) -> None:
    assert ask(guarded + "/health", headers={"Host": host}).status == status
