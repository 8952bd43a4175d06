"""Finished embeddings on their way into a store, kept so that a killed run has not worked for nothing.

They lie in files of the store's folder that no search looks at. One writer at a time holds the folder's lock.
Test: tests/search/test_index.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from m2bert.search.stores import Record, StoredState, StoreInfo
from m2bert.search.stores.columns import table_schema, to_batches, to_record

STAGING = "staging"
SUFFIX = ".arrow"
logger = logging.getLogger(__name__)


class Staging:
    """Files of records in `folder`, each written whole or not at all, found by the hash of their text."""

    def __init__(self, folder: Path, info: StoreInfo) -> None:
        """Reads what an earlier run left for the same model; the rest there is deleted at the next clear."""
        self._folder = folder
        self._info = info
        self._files: list[Path] = []
        self.states: dict[str, StoredState] = {}
        for file in sorted(folder.glob("*" + SUFFIX)):
            for record in self._read(file):
                self._note(record)
            self._files.append(file)

    def append(self, records: Sequence[Record]) -> None:
        """Write one file of records."""
        name = f"{len(self._files):06d}-{os.getpid()}"
        unfinished = self._folder / f"{name}.unfinished"
        schema = table_schema(self._info)
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in to_batches(records, schema, self._info.dim):
                writer.write_batch(batch)
        self._files.append(unfinished.replace(self._folder / (name + SUFFIX)))
        for record in records:
            self._note(record)

    def records(self) -> Iterator[Record]:
        """All staged records, one per text (the last one written); one file's records in memory at a time."""
        seen: set[str] = set()
        for file in reversed(self._files):
            for record in self._read(file):
                if record.text_hash not in seen:
                    seen.add(record.text_hash)
                    yield record

    def clear(self) -> None:
        """Delete all staged files, unfinished ones included."""
        for file in self._folder.iterdir():
            if file.suffix in (SUFFIX, ".unfinished"):
                file.unlink(missing_ok=True)
        self._files, self.states = [], {}

    def _note(self, record: Record) -> None:
        self.states[record.text_hash] = StoredState(
            record.text_hash, record.num_tokens, record.num_windows, record.num_truncated
        )

    def _read(self, file: Path) -> Iterator[Record]:
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
                if reader.schema.metadata != table_schema(self._info).metadata:
                    return
                for number in range(reader.num_record_batches):
                    for row in reader.get_batch(number).to_pylist():
                        yield to_record(row, self._info.dim)
        except (OSError, pa.ArrowInvalid) as error:
            logger.warning("staged embeddings in %s cannot be read and are made again: %s", file, error)


@contextmanager
def open_staging(store: Path, info: StoreInfo) -> Iterator[Staging]:
    """The staged files of a store, for one writer at a time; waits for another writer to end."""
    folder = store / STAGING
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "ab") as lock:
        _lock(lock.fileno(), store)
        yield Staging(folder, info)


def _lock(descriptor: int, store: Path) -> None:
    """Hold the lock until the file is closed, which the end of the process does in any case."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("another process is writing to %s; waiting for it to end", store)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
