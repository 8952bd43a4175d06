"""Finished embeddings on their way into a store, kept so that a killed run has not worked for nothing.

They lie in files of the store's folder that no search looks at. The name of each ends with the SHA-256 of its bytes:
one that a power cut or a bad disk has changed is no longer what it is called, and its embeddings are made again. One
writer at a time holds the folder's lock, which the operating system releases when its process ends, however it ends.
Test: tests/search/test_additions.py, tests/search/test_bad_stores.py.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock
import pyarrow as pa

from m2bert.encoders.windows import groups_of_characters
from m2bert.errors import M2BertError
from m2bert.files import whole_file
from m2bert.search.documents import Document
from m2bert.search.stores import Key, StoredState, StoreInfo
from m2bert.search.stores.columns import staged_schema, to_table_rows

STAGING, LOCK = "staging", "lock"
SUFFIX = ".arrow"
# A text may stand under any number of names, each of which gets a copy of its embedding.
MOST_CHARACTERS = 400_000
logger = logging.getLogger(__name__)


class Staging:
    """Embeddings by the hash of their text: batches in files of `folder`, and one in memory.

    states: what is known of each, by hash.
    """

    def __init__(self, folder: Path, info: StoreInfo) -> None:
        """Finds what an earlier run left for the same model; the rest there is deleted at the next clear."""
        self.info = info
        self.states: dict[str, StoredState] = {}
        self._folder = folder
        self._held: list[pa.RecordBatch] = []
        self._files: list[Path] = []
        found = sorted(folder.glob("*" + SUFFIX))
        self._written = 1 + max((int(file.stem) for file in found if file.stem.isdecimal()), default=-1)
        for file in found:
            try:
                batches = list(self._read(file))
            except (OSError, pa.ArrowInvalid) as error:
                logger.warning("staged embeddings in %s are damaged and are made again: %s", file, error)
                continue
            for batch in batches:
                self._note(batch)
            self._files.append(file)
        self._older = len(self._files)

    def append(self, batch: pa.RecordBatch) -> None:
        """Write a batch of rows (columns.staged_schema) into a file of its own, whole or not at all.

        Raises M2BertError when it cannot be written.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        data = sink.getvalue()
        path = self._folder / f"{self._written:06d}-{hashlib.sha256(data).hexdigest()}{SUFFIX}"
        with whole_file(path, who="store") as file:
            file.write(data)
        self._files.append(path)
        self._written += 1
        self._note(batch)

    def hold(self, batch: pa.RecordBatch) -> None:
        """Keep a batch in memory until the next clear; for the last one, which goes into the store right away."""
        self._held.append(batch)
        self._note(batch)

    def rows(self, documents: Sequence[Document], hashes: Mapping[Key, str]) -> Iterator[pa.RecordBatch]:
        """Rows of the table for documents whose text's embedding is here, found by its hash; each document once.

        Bounded in size: one file, or MOST_CHARACTERS of text or a single longer one, in memory at a time.
        """
        waiting: dict[str, list[Document]] = {}
        for document in documents:
            waiting.setdefault(hashes[document.source, document.id], []).append(document)
        for batch in self._batches():
            rows, placed = [], []
            for row, known in enumerate(batch.column("text_hash").to_pylist()):
                for document in waiting.pop(known, ()):
                    rows.append(row)
                    placed.append(document)
            for start, stop in groups_of_characters([document.text for document in placed], MOST_CHARACTERS):
                yield to_table_rows(batch, rows[start:stop], placed[start:stop], self.info)

    def settle(self) -> None:
        """Forget what was staged since this object was made, which the store has now, and delete its files.

        What an earlier run left stays until the run ends, since only some of it may be in the store. Raises M2BertError
        when that fails.
        """
        written, self._files, self._held = self._files[self._older :], self._files[: self._older], []
        self.states = {}
        try:
            for file in written:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        for batch in self._batches():
            self._note(batch)

    def clear(self) -> None:
        """Forget all, and delete all files, unfinished ones included. Raises M2BertError when that fails."""
        self._files, self._held, self.states = [], [], {}
        try:
            for file in self._folder.iterdir():
                if file.name != LOCK:
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """All batches, the last one written first."""
        yield from reversed(self._held)
        for file in reversed(self._files):
            yield from self._read(file)

    def _note(self, batch: pa.RecordBatch) -> None:
        for row in batch.select(["text_hash", "num_tokens", "num_windows", "num_truncated"]).to_pylist():
            self.states[row["text_hash"]] = StoredState(**row)

    def _read(self, file: Path) -> Iterator[pa.RecordBatch]:
        """The batches of a file of this model. Raises pa.ArrowInvalid where it is not what was written."""
        with pa.memory_map(str(file)) as source:
            data = source.read_buffer()
            if not file.stem.endswith("-" + hashlib.sha256(data).hexdigest()):
                raise pa.ArrowInvalid("its bytes are not those that were written")
            with pa.ipc.open_file(data) as reader:
                if reader.schema.equals(staged_schema(self.info), check_metadata=True):
                    for number in range(reader.num_record_batches):
                        yield reader.get_batch(number)


@contextmanager
def open_staging(store: Path, info: StoreInfo) -> Iterator[Staging]:
    """The staged files of a store, for one writer at a time; waits for another writer to end.

    Raises M2BertError when the store's folder cannot be written.
    """
    folder = store / STAGING
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.warning("another process is writing to %s; waiting for it to end", store)
            lock.acquire()
    except OSError as error:
        raise _unwritable(store, error) from error
    try:
        yield Staging(folder, info)
    finally:
        lock.release()


def _unwritable(folder: Path, error: OSError) -> M2BertError:
    return M2BertError(
        f"store: cannot write to {str(folder)!r} ({error.strerror or error}); give yourself the permission, "
        f"or index into a new folder"
    )
