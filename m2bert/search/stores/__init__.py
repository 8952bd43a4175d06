"""What a place for embedded documents must do: seven verbs, add, delete, get, search, word_scores, states
and count.

`lance.py` is the store on disk. A second one needs only these verbs.
Test: tests/search/test_index.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from m2bert.ranking.parts import Mixture
from m2bert.ranking.passages import QuantisedPassages
from m2bert.search.sections import Section

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

    vector (dim,) float32 of unit norm. spans (passages, 2) int64: start and end characters of each passage. passages:
    what each adds to the vector, rounded; None where there are fewer than two, whose vector is the document's.
    sections: its pages or headings.
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
    passages: QuantisedPassages | None
    sections: tuple[Section, ...] = ()

    @property
    def key(self) -> Key:
        return (self.source, self.id)


@dataclass(frozen=True)
class Query:
    """What is looked for. vector (dim,) float32 of unit norm, None where only words count; words: stems.

    source: None, or the one whose documents alone are ranked; what a word is worth depends on the whole store still.
    """

    vector: NDArray[np.float32] | None
    words: Sequence[str] = ()
    source: str | None = None


@dataclass(frozen=True)
class Found:
    """A document with what each part that counts adds to its score (m2bert.ranking.parts)."""

    parts: Mapping[str, float]
    record: Record

    @property
    def score(self) -> float:
        return math.fsum(self.parts.values())


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
    """The seven verbs. Each change becomes visible as a whole or not at all, and outlives the process."""

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

    def search(self, query: Query, k: int, mixture: Mixture) -> list[Found]:
        """The k documents of the highest scores by `mixture`, best first, ties by key.

        Scores are exact for what is found; the first by the whole and by the words are looked at. Under words alone
        documents that have none of them are not found.
        """

    def word_scores(self, key: Key, words: Sequence[str]) -> dict[str, float]:
        """What each of a query's words that one document has adds to its part of the words."""

    def states(self, keys: Collection[Key] | None = None, *, source: str | None = None) -> dict[Key, StoredState]:
        """The states of the documents of `keys` that are there, of all of a `source`, or without either of all."""

    def count(self) -> int:
        """The number of documents."""
