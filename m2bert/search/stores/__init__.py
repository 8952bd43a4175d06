"""What a place for embedded documents must do: six verbs, add, delete, get, search, states and count.

`lance.py` is the store on disk. A second one needs only these verbs.
Test: tests/search/test_index.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Key = tuple[str, str]
"""A document's name in a store: its source, and its id within the source."""


@dataclass(frozen=True)
class StoreInfo:
    """What a store is bound to: the embeddings of one model. `model` is its name or folder."""

    model: str
    fingerprint: str
    dim: int


@dataclass(frozen=True)
class Record:
    """One embedded document.

    vector (dim,) float32 of unit norm. spans (passages, 2) int64: start and end characters of each passage;
    passage_vectors (passages, dim) float32: their contributions, which add up to `vector`.
    """

    source: str
    id: str
    text_hash: str
    text: str
    num_tokens: int
    num_windows: int
    num_truncated: int
    vector: NDArray[np.float32]
    spans: NDArray[np.int64]
    passage_vectors: NDArray[np.float32]

    @property
    def key(self) -> Key:
        return (self.source, self.id)


@dataclass(frozen=True)
class StoredState:
    """What is known of a stored document without reading its text."""

    text_hash: str
    num_tokens: int
    num_windows: int
    num_truncated: int


@dataclass(frozen=True)
class StoreStats:
    """A store's binding and, when asked for, the state of every document."""

    info: StoreInfo
    num_documents: int
    documents: Mapping[Key, StoredState] = field(default_factory=dict)


class VectorStore(Protocol):
    """The six verbs. Each change becomes visible as a whole or not at all, and outlives the process."""

    @property
    def info(self) -> StoreInfo: ...

    def add(self, rows: Iterable[pa.RecordBatch], *, remove: Collection[Key] = (), replaces: bool = True) -> None:
        """Insert rows, replacing those of the same source and id, and delete `remove`, all in one step.

        rows: batches in the columns of m2bert.search.stores.columns.table_schema, no document twice, read once.
        replaces: False promises that none of them is there, so that nobody has to look for it.
        Raises M2BertError when the store cannot be written; then nothing changes.
        """

    def delete(self, keys: Collection[Key]) -> int:
        """Delete documents; returns how many there were."""

    def get(self, identity: str) -> list[Record]:
        """The documents of that id, one per source that has it, in the order of the sources."""

    def search(self, vector: NDArray[np.float32], k: int, *, words: str | None = None) -> list[tuple[float, Record]]:
        """The k documents of highest inner product with `vector (dim,)`, exact, best first, ties by key.

        With `words`, the query as text, that ranking and BM25's of the texts are fused by their scores, and the
        order is that of the fusion; the scores are inner products all the same.
        Raises M2BertError when the store cannot search words.
        """

    def states(self, keys: Collection[Key] | None = None, *, source: str | None = None) -> dict[Key, StoredState]:
        """The states of the documents of `keys` that are there, of all of a `source`, or without either of all."""

    def count(self) -> int:
        """The number of documents."""
