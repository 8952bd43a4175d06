"""Bad clients of every kind at once are answered as documented, and the script that sends them notices what is not.

By hand with 500 clients for a minute: scripts/attack_server.py, figures in docs/serving.md.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving import ask

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "attack_server.py"
spec = importlib.util.spec_from_file_location("attack_server", SCRIPT)
assert spec is not None and spec.loader is not None
attack_server: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(attack_server)


def test_good_requests_are_good(url: str) -> None:
    """The searches among them went to an address that there is not."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    asked = {attack_server.good(random.Random(seed)) for seed in range(40)}
    answers = {}
    for data in asked:
        with socket.create_connection((host, port), timeout=60) as connection:
            connection.sendall(data)
            answers[data] = connection.makefile("rb").readline()
    assert {answer for answer in answers.values()} == {b"HTTP/1.1 200 OK\r\n"}, answers
    paths = {data.split()[1].partition(b"?")[0] for data in asked}
    assert paths == {b"/", b"/health", b"/search", b"/v1/embeddings", b"/v1/rerank"}


def test_bad_clients_get_documented_answers(url: str) -> None:
    seen = asyncio.run(attack_server.attack(url, clients=24, seconds=2.0))
    assert seen["wrong"] == {}
    assert {"200", "400", "413", "415", "422"} <= set(seen["statuses"]), seen
    assert ask(url + "/health").status == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Internal Server Error\r\ncontent-security-policy: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-security-policy: x\r\n\r\nTraceback (most recent call last)",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
    ],
)
def test_other_answers_are_noticed(answer: bytes) -> None:
    seen = attack_server.Attack("http://127.0.0.1:1", 0)
    asyncio.run(seen.judge(b"GET /", answer))
    assert len(seen.wrong) == 1
