"""Bad clients of every kind at once: `python scripts/attack_server.py http://127.0.0.1:8080`, 500 for a minute.

Start the server first, for instance `m2bert serve STORE --port 8080`. Each client does one thing after another,
drawn at random: sends texts, searches, sends what is refused, hangs up in the middle, sends a body drop by drop, or
connects and says nothing. Prints how often each status came, what was answered that is not documented or holds a
traceback or a file of the server, and the server's memory (its /metrics) after a tenth of the time, four times on the
way, and at the end. Ends with 1 where something undocumented was answered, a request was never answered, or memory grew
by over --megabytes.
Test: tests/serve/test_attack_server.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

# docs/serving.md; 400 is what the HTTP parser says of what is no HTTP.
DOCUMENTED = {200, 400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 429, 503}
LEAKS = re.compile(rb"Traceback|site-packages|File \"|from __future__|root:x:")
SECONDS_TO_ANSWER = 120.0
WORDS = ["river", "stone", "light", "paper", "engine", "market", "garden", "winter", "signal", "harbor"]
EMBED, SEARCH = "/v1/embeddings", "/search"


def request(method: str, path: str, body: Any = None, kind: str = "application/json") -> bytes:
    """One request that ends its connection."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def good(generator: random.Random) -> bytes:
    """A request that makes sense."""
    text = " ".join(generator.choices(WORDS, k=generator.choice([3, 30, 300])))
    query = text[:40].replace(" ", "+")
    return generator.choice([
        request("POST", EMBED, {"input": text}), request("GET", f"{SEARCH}?query={query}"), request("GET", "/health"),
        request("GET", f"/?q={query}"), request("POST", "/v1/rerank", {"query": text[:40], "documents": [text, "x"]}),
    ])  # fmt: skip


def bad(generator: random.Random) -> bytes:
    """A request that is to be refused, or to be answered without harm."""
    return generator.choice([
        request("POST", EMBED, b'{"input": '), request("POST", EMBED, {"input": 5}),
        request("POST", EMBED, {"input": ["a"] * 5000}), request("POST", EMBED, b"x", "text/plain"),
        request("POST", EMBED, {"input": "a", "model": "../../etc/passwd"}), request("GET", "/../../etc/passwd"),
        request("GET", f"{SEARCH}?query="), request("GET", f"{SEARCH}?query=a&k=99999999999999999999"),
        request("GET", f"{SEARCH}?query=a&where=%27%3B--"), request("DELETE", "/documents/x"),
        request("GET", "/page/..%2f..%2fapp.py"), generator.randbytes(200),
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        request("POST", EMBED).replace(b"Length: 0", b"Length: 99999999999"),
    ])  # fmt: skip


class Attack:
    """Clients, and what they are told."""

    def __init__(self, url: str, seconds: float) -> None:
        self.host, self.port = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80
        self.until = time.monotonic() + seconds
        self.statuses: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    async def client(self, seed: int) -> None:
        """One thing after another until the time is over."""
        generator = random.Random(seed)
        while time.monotonic() < self.until:
            try:
                await self.one(generator)
            except OSError as error:
                self.statuses[type(error).__name__] += 1
                await asyncio.sleep(0.05)

    async def one(self, generator: random.Random) -> None:
        """One connection."""
        what = generator.choice(["good"] * 4 + ["bad"] * 4 + ["leave", "drops", "silent"])
        reader, writer = await asyncio.open_connection(self.host, self.port)
        data = bad(generator) if what == "bad" else good(generator)
        try:
            if what in ("good", "bad"):
                writer.write(data)
                await self.judge(data, await asyncio.wait_for(reader.read(), SECONDS_TO_ANSWER))
                return
            self.statuses[what] += 1
            end = min(self.until, time.monotonic() + generator.uniform(0, 5))
            for byte in [] if what == "silent" else data[:-1]:
                writer.write(bytes([byte]))
                if what == "drops":
                    await asyncio.sleep(0.05)
                if time.monotonic() > end or writer.is_closing():
                    return
            if what == "silent":
                await asyncio.sleep(max(end - time.monotonic(), 0))
        except TimeoutError:
            self.wrong[f"no answer in {SECONDS_TO_ANSWER:g} s to {data[:60]!r}"] += 1
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def judge(self, sent: bytes, answer: bytes) -> None:
        """Count a status; note an answer that is not documented, tells too much, or lacks its headers."""
        if not answer:
            self.statuses["hung up on"] += 1
            return
        status = int(answer[9:12])
        self.statuses[str(status)] += 1
        if status not in DOCUMENTED:
            self.wrong[f"{status} to {sent[:60]!r}"] += 1
        if LEAKS.search(answer):
            self.wrong[f"{answer[:200]!r} to {sent[:60]!r}"] += 1
        if status != 400 and b"content-security-policy" not in answer.lower():
            self.wrong[f"{status} without security headers to {sent[:60]!r}"] += 1

    async def megabytes(self) -> float:
        """The server's resident memory."""
        for _ in range(50):
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                writer.write(request("GET", "/metrics"))
                found = re.search(rb"process_resident_memory_bytes ([\d.e+]+)", await reader.read())
                writer.close()
                if found:
                    return float(found[1]) / 2**20
            await asyncio.sleep(0.2)
        raise SystemExit("attack_server: the server's /metrics do not tell its memory; is it one process that runs?")


async def attack(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Run it all; what was seen."""
    made = Attack(url, seconds)
    running = [asyncio.create_task(made.client(seed)) for seed in range(clients)]
    memory = []
    for share in (0.1, *4 * (0.2,)):
        await asyncio.sleep(share * seconds)
        memory.append(await made.megabytes())
    await asyncio.gather(*running)
    memory.append(await made.megabytes())
    return {"statuses": dict(sorted(made.statuses.items())), "wrong": dict(made.wrong), "megabytes": memory}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--megabytes", type=float, default=200.0)
    given = parser.parse_args()
    seen = asyncio.run(attack(given.url, given.clients, given.seconds))
    print(json.dumps(seen, indent=1))
    grown = seen["megabytes"][-1] - seen["megabytes"][0]
    sys.exit(1 if seen["wrong"] or grown > given.megabytes else 0)


if __name__ == "__main__":
    main()
