"""Text that training documents share with the test documents of retrieval tasks: find_leaks, TestWindows.

Texts are normalised (lower case, every run of other than letters and digits one space). The test documents' windows
of 200 characters are kept every 25 characters; training documents are looked at at every character, so that any
shared run of 224 characters is found, wherever it lies. Hashes only propose: the characters are compared.
Test: tests/train/test_leaks.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2bert.data.text import expand_sources, iter_documents
from m2bert.errors import M2BertError
from m2bert.jsonl import read_jsonl

WINDOW, STRIDE = 200, 25
FILTER_BITS = 26
_BASE = np.uint64(0x9E3779B97F4A7C15)
_BETWEEN = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Leak:
    """A training document that shares text with test documents.

    number: its place in the file, from 0. shared: normalised characters in shared windows, of `characters` in all.
    test: task and id of the test document that shares most. excerpt: the start of the first shared window.
    """

    file: Path
    number: int
    shared: int
    characters: int
    test: str
    excerpt: str


def normalise(text: str) -> str:
    """Lower case, every run of other than letters and digits one space."""
    return _BETWEEN.sub(" ", text.lower()).strip()


def _characters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class _Hasher:
    """Polynomial hashes modulo 2^64 of all windows of a text, by differences of prefix sums."""

    def __init__(self) -> None:
        self.powers = self.inverses = np.ones(1, dtype=np.uint64)

    def windows(self, characters: np.ndarray) -> np.ndarray:
        """Hashes (len - WINDOW + 1,) uint64."""
        size = len(characters)
        if len(self.powers) < size:
            self.powers = _powers_of(_BASE, 2 * size)
            self.inverses = _powers_of(np.uint64(pow(int(_BASE), -1, 1 << 64)), 2 * size)
        # Spread over 64 bits first: the low bits of a sum of small codes would hardly differ.
        codes = (characters.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
        codes ^= codes >> np.uint64(32)
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(codes * self.powers[:size], dtype=np.uint64)])
        # A difference carries the power of the window's place; the inverse takes it away.
        differences: np.ndarray = sums[WINDOW:] - sums[:-WINDOW]
        return differences * self.inverses[: len(differences)]


def _powers_of(base: np.uint64, size: int) -> np.ndarray:
    return np.cumprod(np.concatenate([np.ones(1, dtype=np.uint64), np.full(size - 1, base)]), dtype=np.uint64)


class TestWindows:
    """The windows of the test documents of tasks."""

    __test__ = False

    def __init__(self, documents: Iterator[tuple[str, str]]) -> None:
        self.hasher = _Hasher()
        self.names: list[str] = []
        self.texts: list[np.ndarray] = []
        hashes, owners, places = [], [], []
        for name, text in documents:
            characters = _characters(normalise(text))
            if len(characters) < WINDOW:
                continue
            made = self.hasher.windows(characters)[::STRIDE]
            hashes.append(made)
            owners.append(np.full(len(made), len(self.names), dtype=np.int32))
            places.append(np.arange(len(made), dtype=np.int64) * STRIDE)
            self.names.append(name)
            self.texts.append(characters)
        if not hashes:
            raise M2BertError(f"check-leaks: needs test documents of {WINDOW} characters, got none; name other tasks")
        order = np.argsort(all_hashes := np.concatenate(hashes), kind="stable")
        self.hashes = all_hashes[order]
        self.owners, self.places = np.concatenate(owners)[order], np.concatenate(places)[order]
        self.known = np.zeros(1 << FILTER_BITS, dtype=np.bool_)
        self.known[self._short(self.hashes)] = True

    def _short(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(64 - FILTER_BITS)).astype(np.int64)

    def matches(self, characters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets in `characters` where a shared window begins, and the test document of each."""
        if len(characters) < WINDOW:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        hashes = self.hasher.windows(characters)
        offsets = np.flatnonzero(self.known[self._short(hashes)])
        found = np.minimum(np.searchsorted(self.hashes, hashes[offsets]), len(self.hashes) - 1)
        equal = self.hashes[found] == hashes[offsets]
        offsets, found = offsets[equal], found[equal]
        same = [self._same(characters, offset, entry) for offset, entry in zip(offsets, found, strict=True)]
        chosen = np.asarray(same, dtype=np.bool_)
        return offsets[chosen], self.owners[found[chosen]]

    def _same(self, characters: np.ndarray, offset: int, entry: int) -> bool:
        place = self.places[entry]
        theirs = self.texts[self.owners[entry]][place : place + WINDOW]
        return bool(np.array_equal(characters[offset : offset + WINDOW], theirs))


def read_tests(sources: Sequence[str | Path]) -> Iterator[tuple[str, str]]:
    """(task/pid, text) of the test documents in folders of tasks, tasks, or `test` folders.

    Raises M2BertError for a folder without test documents.
    """
    for source in map(Path, sources):
        patterns = ("documents.jsonl*", "test/documents.jsonl*", "*/test/documents.jsonl*")
        files = [file for pattern in patterns for file in sorted(source.glob(pattern)) if file.parent.name == "test"]
        if not files:
            raise M2BertError(
                f"check-leaks: tests must be folders with TASK/test/documents.jsonl[.gz], got {str(source)!r}; name one"
            )
        for file in files:
            for _, row in read_jsonl(file, who="check-leaks"):
                if isinstance(row.get("passage"), str):
                    yield f"{file.parent.parent.name}/{row.get('pid')}", row["passage"]


def find_leaks(
    sources: Sequence[str | Path],
    tests: Sequence[str | Path],
    *,
    least: int = WINDOW,
    on_progress: Callable[[str, int], None] | None = None,
) -> Iterator[Leak]:
    """Training documents of `sources` that share at least `least` normalised characters with test documents.

    on_progress(what, number of texts) is called as it goes. Raises M2BertError for what cannot be read.
    """
    files = expand_sources(sources, who="check-leaks")
    known = TestWindows(read_tests(tests))
    for file in files:
        for number, document in enumerate(iter_documents(file, who="check-leaks")):
            if on_progress is not None and number % 100 == 0:
                on_progress(file.name, number)
            text = normalise(document.text)
            characters = _characters(text)
            offsets, owners = known.matches(characters)
            shared = _covered(offsets)
            if len(offsets) and shared >= least:
                most = known.names[int(np.bincount(owners).argmax())]
                start = int(offsets[0])
                yield Leak(file, number, shared, len(characters), most, text[start : start + 60])


def _covered(offsets: np.ndarray) -> int:
    """Characters in windows that begin at sorted `offsets`, each counted once."""
    if len(offsets) == 0:
        return 0
    return int(np.minimum(np.diff(offsets), WINDOW).sum()) + WINDOW
