"""Embeddings on disk by model and text, so that a second evaluation is quick and an interrupted one goes on.

One SQLite file per encoder (its fingerprint, how it treats long texts, this package's version); a row per text. Rows
are written in slices that depend on the texts alone, each in one transaction: a run that was killed and started again
encodes the same batches as one that was not, so it gives the same numbers to the last bit. Each text's rows have a
checksum: where a disk has changed one, the text is encoded again.
Test: tests/encoders/test_cache.py.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import m2bert
from m2bert.encoders.protocol import EncodedDocument, Encoder, Passage, Progress
from m2bert.encoders.windows import groups_of_characters
from m2bert.errors import M2BertError
from m2bert.ranking.passages import QuantisedPassages

# What a killed run loses: a minute of work on one slow core.
TEXTS_WRITTEN_AT_ONCE, CHARACTERS_WRITTEN_AT_ONCE = 256, 1_000_000
FORMAT = 2
logger = logging.getLogger(__name__)
SECONDS_TO_WAIT_FOR_ANOTHER_WRITER = 60.0
_TABLES = (
    "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB NOT NULL, num_tokens INTEGER NOT NULL, "
    "num_windows INTEGER NOT NULL, num_truncated INTEGER NOT NULL, checksum INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS passages (key BLOB PRIMARY KEY, spans BLOB NOT NULL, codes BLOB NOT NULL, "
    "scales BLOB NOT NULL)",
)


class CachedEncoder:
    """An encoder that looks into a folder before it encodes. What is not finite is never stored.

    settings: words for what changes embeddings beside the fingerprint, such as "overflow=window".
    Raises M2BertError if the folder cannot be made or its file cannot be read or written.
    """

    def __init__(self, encoder: Encoder, folder: Path | str, settings: str = "") -> None:
        self.encoder = encoder
        self.name, self.location, self.fingerprint = encoder.name, encoder.location, encoder.fingerprint
        self.dim, self.max_tokens, self.overflow = encoder.dim, encoder.max_tokens, encoder.overflow
        described = f"{self.fingerprint}\n{settings}\n{m2bert.__version__}\n{FORMAT}"
        self.path = Path(folder) / f"{hashlib.sha256(described.encode()).hexdigest()[:24]}.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise M2BertError(
                f"cache: cannot make {self.path.parent} ({error.strerror}); choose another --cache"
            ) from error

    def __getattr__(self, name: str) -> Any:
        """What the encoder has beyond the protocol: encode_sparse, mixture, split."""
        if name == "encoder":  # not set yet
            raise AttributeError(name)
        return getattr(self.encoder, name)

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Embeddings of queries (len(texts), dim) float32."""

        def encode(missing: list[str], report: Progress) -> list[EncodedDocument]:
            vectors = np.asarray(self.encoder.encode(missing, progress=report), dtype=np.float32)
            return [EncodedDocument(vector, [], 0, 0, 0) for vector in vectors]

        return np.stack([document.vector for document in self._look_up("query", texts, encode, progress)])

    def encode_documents(
        self, texts: Sequence[str], *, passages: bool = True, progress: Progress | None = None
    ) -> Sequence[EncodedDocument]:
        """Embeddings of documents with their token counts, in the order of `texts`.

        The vectors of passages are kept, and given, as stores keep them: rounded to a byte a number
        (m2bert.ranking.passages).
        """

        def encode(missing: list[str], report: Progress) -> list[EncodedDocument]:
            return [
                replace(x, vector=np.asarray(x.vector, np.float32), passages=_rounded(x.passages))
                for x in self.encoder.encode_documents(missing, passages=passages, progress=report)
            ]

        return self._look_up("passages" if passages else "document", texts, encode, progress)

    def _look_up(
        self,
        kind: str,
        texts: Sequence[str],
        encode: Callable[[list[str], Progress], list[EncodedDocument]],
        progress: Progress | None,
    ) -> list[EncodedDocument]:
        total = sum(map(len, texts))
        done, found = 0, []
        try:
            with closing(sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT_FOR_ANOTHER_WRITER)) as store:
                for table in _TABLES:
                    store.execute(table)
                for first, last in groups_of_characters(texts, CHARACTERS_WRITTEN_AT_ONCE, TEXTS_WRITTEN_AT_ONCE):
                    part = texts[first:last]
                    size = sum(map(len, part))
                    found += self._look_up_slice(store, kind, part, encode, _part(progress, done, size, total))
                    done += size
                    if progress is not None:
                        progress(done, total)
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the second is of a damaged name of a table
            raise M2BertError(
                f"cache: cannot use {self.path} ({error}); remove the file or choose another --cache"
            ) from error
        return found

    def _look_up_slice(
        self,
        store: sqlite3.Connection,
        kind: str,
        texts: Sequence[str],
        encode: Callable[[list[str], Progress], list[EncodedDocument]],
        report: Progress,
    ) -> list[EncodedDocument]:
        keys = [hashlib.sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
        known = {key: document for key in keys if (document := _read(store, key)) is not None}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            made = encode(list(missing.values()), report)
            if len(made) != len(missing):
                raise M2BertError(
                    f"cache: {self.name} must give {len(missing)} embeddings, got {len(made)}; mend the encoder"
                )
            new = dict(zip(missing, made, strict=True))
            if all(np.isfinite(document.vector).all() for document in made):
                with store:
                    store.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?, ?)", _rows(new))
                    store.executemany("INSERT OR REPLACE INTO passages VALUES (?, ?, ?, ?)", _passage_rows(new))
            known |= new
        return [known[key] for key in keys]


def _part(progress: Progress | None, start: int, size: int, total: int) -> Progress:
    """The progress of one slice in characters of all texts."""

    def report(done: int, of: int) -> None:
        if progress is not None:
            progress(start + (size * done // of if of else size), total)

    return report


def _rounded(passages: Sequence[Passage]) -> list[Passage]:
    if not passages:
        return []
    vectors = QuantisedPassages.of(np.stack([passage.vector for passage in passages])).vectors
    return [Passage(old.start, old.end, vector) for old, vector in zip(passages, vectors, strict=True)]


def _read(store: sqlite3.Connection, key: bytes) -> EncodedDocument | None:
    """What is kept of a text; None where there is nothing, or not what was written."""
    row = store.execute(
        "SELECT vector, num_tokens, num_windows, num_truncated, checksum FROM embeddings WHERE key = ?", (key,)
    ).fetchone()
    if row is None:
        return None
    kept = store.execute("SELECT spans, codes, scales FROM passages WHERE key = ?", (key,)).fetchone() or ()
    if row[-1] != _checksum(key, *row[:-1], *kept):
        logger.warning("a row of the cache of embeddings is damaged, and its text is encoded again")
        return None
    vector = np.frombuffer(row[0], dtype="<f4")
    passages: list[Passage] = []
    if kept:
        spans, scales = np.frombuffer(kept[0], dtype="<i8").reshape(-1, 2), np.frombuffer(kept[2], dtype="<f4")
        vectors = np.frombuffer(kept[1], dtype=np.int8).reshape(len(scales), -1) * scales[:, None]
        passages = [Passage(start, end, own) for (start, end), own in zip(spans.tolist(), vectors, strict=True)]
    return EncodedDocument(vector, passages, *row[1:-1])


def _checksum(*values: Any) -> int:
    """CRC-32 of the values of a text's rows and of their kinds."""
    total = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        total = zlib.crc32(data, zlib.crc32(f"{type(value).__name__} {len(data)} ".encode(), total))
    return total


def _rows(documents: Mapping[bytes, EncodedDocument]) -> Iterator[tuple[Any, ...]]:
    for key, each in documents.items():
        vector = np.ascontiguousarray(each.vector, dtype="<f4").tobytes()
        row = key, vector, int(each.num_tokens), int(each.num_windows), int(each.num_truncated)
        yield *row, _checksum(*row, *_passages_kept(each))


def _passage_rows(documents: Mapping[bytes, EncodedDocument]) -> Iterator[tuple[bytes, ...]]:
    for key, each in documents.items():
        if each.passages:
            yield key, *_passages_kept(each)


def _passages_kept(document: EncodedDocument) -> tuple[bytes, ...]:
    """Spans, codes and scales of its passages, rounded; nothing without passages."""
    if not document.passages:
        return ()
    rounded = QuantisedPassages.of(np.stack([passage.vector for passage in document.passages]))
    spans = np.asarray([(passage.start, passage.end) for passage in document.passages], dtype="<i8")
    return spans.tobytes(), rounded.codes.tobytes(), rounded.scales.astype("<f4").tobytes()
