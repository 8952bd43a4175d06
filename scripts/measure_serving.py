"""Times of a server under load: `python scripts/measure_serving.py ADDRESS [ADDRESS...] --clients 1,8,64`.

Start the servers first, for instance `m2bert serve --model m2-bert-mini --port 8001`, one with `--batch-tokens 1`
(batching off) and one with `--model PEER`. Every address, HOST:PORT or NAME=HOST:PORT, must take OpenAI's POST
/v1/embeddings. They are asked in turn, not at once. Of each number of clients and each kind of text: requests a second,
and the 50th, 95th and 99th percentile of the milliseconds from request to answer. A client sends the next request when
it has the answer to the last. --memory N: N requests of queries, and the server's resident memory after each tenth of
them, from its /metrics.

Prints a table in Markdown; `--json FILE` keeps the numbers with what made them.
Test: tests/serve/test_measure_serving.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import httptools
import numpy as np

from m2bert.provenance import provenance

WORDS = "the river carried light past old stone houses while engines of the harbor market worked through winter"
TOKENS = {"query": 12, "300 tokens": 300, "4,000 tokens": 4000}


class Client(asyncio.Protocol):
    """Sends a request when it has the answer to the last, over one connection; a new one where the server closed it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._answered: asyncio.Future[int] | None = None
        self._parser: Any = None
        self._closed = True

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        self._transport, self._closed = transport, False

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self._closed = True
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionError("the server closed the connection"))

    def on_message_complete(self) -> None:
        """See httptools."""
        assert self._answered is not None
        self._answered.set_result(self._parser.get_status_code())

    def close(self) -> None:
        """End the connection, if there is one."""
        if not self._closed:
            self._transport.close()

    async def ask(self, body: bytes) -> int:
        """The status of one request."""
        if self._closed:
            host, port = self._address.split(":")
            await asyncio.get_running_loop().create_connection(lambda: self, host, int(port))
        self._answered = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        head = (
            b"POST /v1/embeddings HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        self._transport.write(head % (self._address.encode(), len(body)) + body)
        return await self._answered


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("addresses", nargs="+", metavar="NAME=HOST:PORT")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--kinds", default=",".join(["query", "300", "4000"]), help="query, 300 and 4000 (tokens)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument("--memory", type=int, default=0, help="requests while memory is watched")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds = {"query": "query", "300": "300 tokens", "4000": "4,000 tokens"}
    rows = []
    for kind in options.kinds.split(","):
        for clients in map(int, options.clients.split(",")):
            for named in options.addresses:
                name, _, address = named.rpartition("=")
                row = asyncio.run(measure(address, kinds[kind], clients, options.seconds))
                rows.append({"server": name or address, "texts": kinds[kind], "clients": clients} | row)
                print(as_line(rows[-1]), flush=True)
    grown = {}
    if options.memory:
        for named in options.addresses:
            name, _, address = named.rpartition("=")
            grown[name or address] = asyncio.run(watch_memory(address, options.memory))
            print(f"{name or address}: resident MB {grown[name or address]}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows, "memory_mb": grown, **provenance()}, indent=1) + "\n")


def text_of(kind: str, number: int) -> str:
    """Some words, of about as many tokens as the kind says; no two numbers have the same."""
    generator = random.Random(number)
    return " ".join(generator.choices(WORDS.split(), k=TOKENS[kind]))


def body_of(kind: str, number: int) -> bytes:
    """A request of one text."""
    return json.dumps({"input": text_of(kind, number), "encoding_format": "base64"}).encode()


async def measure(address: str, kind: str, clients: int, seconds: float) -> dict[str, float]:
    """Requests a second and percentiles of milliseconds; at least one request a client. Those of the first tenth of
    the time do not count."""
    bodies = [body_of(kind, number) for number in range(max(256, clients) if kind == "query" else 64)]
    times: list[tuple[float, float]] = []
    begun = time.perf_counter()

    async def work(first: int) -> None:
        client = Client(address)
        done = 0
        while done < 1 or time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            status = await client.ask(bodies[(first + done * clients) % len(bodies)])
            assert status == 200, f"{address} answered {status}"
            times.append((start, time.perf_counter()))
            done += 1
        client.close()

    await asyncio.gather(*(work(number) for number in range(clients)))
    await asyncio.sleep(0)  # connections close
    warm = begun + seconds / 10
    counted = [(start, end) for start, end in times if start >= warm] or times
    spent = max(end for _, end in counted) - min(start for start, _ in counted)
    waited = np.array([end - start for start, end in counted]) * 1000
    p50, p95, p99 = np.percentile(waited, [50, 95, 99]).tolist()
    return {"per_second": len(counted) / spent, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "requests": len(counted)}


async def watch_memory(address: str, requests: int) -> list[int]:
    """Resident megabytes before and after each tenth of some requests of 8 clients."""
    found = [await resident(address)]
    clients = [Client(address) for _ in range(8)]
    for _ in range(10):

        async def work(client: Client, first: int) -> None:
            for number in range(first, requests // 10, 8):
                assert await client.ask(body_of("query", number)) == 200

        await asyncio.gather(*(work(client, first) for first, client in enumerate(clients)))
        found.append(await resident(address))
    for client in clients:
        client.close()
    await asyncio.sleep(0)
    return found


async def resident(address: str) -> int:
    """What a server's /metrics says of its memory, in megabytes."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % address.encode())
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
    assert found is not None, f"{address} has no process_resident_memory_bytes in /metrics"
    return round(float(found[1]) / 1e6)


def as_line(row: dict[str, Any]) -> str:
    """A row of the table."""
    times = " | ".join(f"{row[name]:,.0f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
    return f"| {row['texts']} | {row['clients']} | {row['server']} | {row['per_second']:.1f} | {times} |"


if __name__ == "__main__":
    main()
