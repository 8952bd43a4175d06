"""A process that indexes documents made up on the fly, under a limit on its memory, and may kill itself on the way.

python streamed.py STORE '{"count": 2000, ...}'
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import m2bert.search.adding
import m2bert.search.bulk
from m2bert.encoders.protocol import EncodedDocument
from m2bert.memory import keep_freed
from m2bert.search.documents import Document
from m2bert.search.index import SearchIndex
from m2bert.search.streams import stream_corpus

WORDS = [f"w{n}" for n in range(997)]


class Cheap:
    """A vector of a text's checksum; notes each text that it embeds in a file."""

    name = location = "cheap"
    fingerprint = "0123456789abcdef"
    overflow = "window"
    dim, max_tokens = 64, 10**6

    def __init__(self, log: Path | None = None) -> None:
        self.log = log

    def encode(self, texts: Any, *, progress: Any = None) -> Any:
        draws = (np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dim) for text in texts)
        return np.stack([draw / np.linalg.norm(draw) for draw in draws]).astype(np.float32)

    def encode_documents(self, texts: Any, *, passages: bool = True, progress: Any = None) -> Any:
        if self.log is not None:
            with self.log.open("a") as log:
                log.writelines(f"{zlib.crc32(text.encode())}\n" for text in texts)
        vectors = self.encode(texts)
        if progress is not None:
            progress(len(texts), len(texts))
        return [EncodedDocument(vector, [], 1, 1, 0) for vector in vectors]


def text_of(number: int, words: int, signs: int = 0) -> str:
    """Some words, and signs that are none, which take memory and no time."""
    start = number * 31
    return " ".join([f"only{number}", *(WORDS[(start + n * n) % 997] for n in range(words)), "-" * signs])


def documents(count: int, words: int, signs: int = 0, spread: float = 0.0) -> Iterator[Document]:
    """Documents with a year each, of so many words in the median, log-normal."""
    for number in range(count):
        own = words if not spread else int(words * np.exp(spread * np.random.default_rng(number).standard_normal()))
        text = text_of(number, own, signs)
        yield Document(f"d{number}", text, "made up", metadata={"year": 2000 + number % 30})


def private_bytes() -> int:
    """What the limit counts: private memory of the process that may be written."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmData")


def peak() -> int:
    """The most bytes of memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def warm_up(store: str) -> None:
    """Start the threads that the libraries keep, whose stacks count as memory."""
    SearchIndex(store + ".warm", Cheap()).add({"a": "river", "b": "stone"})


def main() -> None:
    """See the module. kill_after: texts embedded before the process kills itself; megabytes: more than it has begun
    with; folder: indexed in place of documents made up; keep: freed memory, as the commands do."""
    store, options = sys.argv[1], json.loads(sys.argv[2])
    for name, value in options.get("settings", {}).items():
        setattr(m2bert.search.bulk if name == "CHARACTERS_BETWEEN_WRITES" else m2bert.search.adding, name, value)
    if options.get("keep"):
        keep_freed()
    encoder = Cheap(Path(options["log"]) if "log" in options else None)
    if (kill_after := options.get("kill_after")) is not None:
        embed, left = encoder.encode_documents, [kill_after]

        def embed_or_die(texts: Any, **more: Any) -> Any:
            left[0] -= len(texts)
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return embed(texts, **more)

        encoder.encode_documents = embed_or_die  # type: ignore[method-assign]
    warm_up(store)
    before = peak()
    if "megabytes" in options:
        limit = private_bytes() + (options["megabytes"] << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    index = SearchIndex(store, encoder)
    made = [options.get(name, 0) for name in ("count", "words", "signs", "spread")]
    if "folder" in options:
        report = index.update(stream_corpus(options["folder"]))
    elif options.get("read_whole"):
        report = index.add(list(documents(*made)))
    else:
        report = index.add(documents(*made))
    print(json.dumps({**report.to_dict(), "grown": peak() - before}))


if __name__ == "__main__":
    main()
