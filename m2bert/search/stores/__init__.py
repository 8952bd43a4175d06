"""What a place for embedded documents must do: eleven verbs, add, describe, delete, refresh, get, search,
word_scores, states, ids, count and sizes.

`lance.py` is the store on disk. A second one needs only these verbs.
Test: tests/search/test_index.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from m2bert.ranking.parts import Mixture
from m2bert.ranking.passages import QuantisedPassages
from m2bert.search.filters import Condition
from m2bert.search.metadata import Value
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
    sections: its pages or headings. metadata: names and values.
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
    metadata: Mapping[str, Value] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> Key:
        return (self.source, self.id)


@dataclass(frozen=True)
class Query:
    """What is looked for. vector (dim,) float32 of unit norm, None where only words count; words: stems.

    source: None, or the one whose documents alone are ranked; where: None, or what documents must meet to be ranked.
    What a word is worth depends on the whole store still.
    """

    vector: NDArray[np.float32] | None
    words: Sequence[str] = ()
    source: str | None = None
    where: Condition | None = None


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
    """What is known of a stored document without reading its text.

    metadata: as m2bert.search.metadata.metadata_as_text has it.
    """

    text_hash: str
    num_tokens: int
    num_windows: int
    num_truncated: int
    metadata: str = ""


@dataclass(frozen=True)
class StoreStats:
    """A store's binding and, when asked for, the state of every document."""

    info: StoreInfo
    num_documents: int
    documents: Mapping[Key, StoredState] = field(default_factory=dict)


@dataclass(frozen=True)
class IndexSize:
    """An index of a store: what it is of, rows in it, and rows behind it. recall: of the first ten of a scan, as far as
    that was measured; used: whether searches look into it."""

    column: str
    kind: str
    rows: int
    behind: int
    recall: float | None = None
    used: bool = True


@dataclass(frozen=True)
class StoreSizes:
    """What a store takes: bytes, of older versions too; its indexes; the names that its documents' metadata has."""

    bytes: int
    indexes: tuple[IndexSize, ...] = ()
    names: tuple[str, ...] = ()


class VectorStore(Protocol):
    """The eleven verbs. Each change becomes visible as a whole or not at all, and outlives the process."""

    @property
    def info(self) -> StoreInfo: ...

    def add(
        self,
        rows: Iterable[pa.RecordBatch],
        *,
        remove: Collection[Key] = (),
        replaces: bool = True,
        fields: Collection[str] = (),
    ) -> None:
        """Insert rows, replacing those of the same source and id, and delete `remove`, all in one step.

        rows: batches in the columns of m2bert.search.stores.columns.table_schema, no document twice, read once.
        replaces: False promises that none of them is there, so that nobody has to look for it. fields: of all rows
        together, what m2bert.search.stores.fields.fields_of says of their metadata; a store may do without.
        Raises M2BertError when the store cannot be written; then nothing changes.
        """

    def describe(self, metadata: Mapping[Key, str]) -> None:
        """Give documents that are there other metadata, as metadata_as_text has it, and leave all else of them."""

    def delete(self, keys: Collection[Key]) -> int:
        """Delete documents; returns how many there were."""

    def refresh(self, *, everything: bool = False) -> None:
        """Bring the indexes up to date, after the last of many additions, for which each addition alone may be too
        small; nothing that a search finds depends on it but its time, and the last digits of what words add.

        everything: tidy up too, and make indexes anew, whatever it takes.
        """

    def get(self, identity: str) -> list[Record]:
        """The documents of that id, one per source that has it, in the order of the sources."""

    def search(self, query: Query, k: int, mixture: Mixture) -> list[Found]:
        """The k documents of the highest scores by `mixture`, best first, ties by key.

        Scores are exact for what is found; the first by the whole and by the words are looked at. Under words alone
        documents that have none of them are not found. Raises M2BertError where the query's condition speaks of a name
        that no document has.
        """

    def word_scores(self, key: Key, words: Sequence[str]) -> dict[str, float]:
        """What each of a query's words that one document has adds to its part of the words."""

    def states(self, keys: Collection[Key] | None = None, *, source: str | None = None) -> dict[Key, StoredState]:
        """The states of the documents of `keys` that are there, of all of a `source`, or without either of all."""

    def ids(self, source: str) -> Iterator[Sequence[str]]:
        """The ids of a source's documents in lists of at most some thousands, in any order."""

    def count(self) -> int:
        """The number of documents."""

    def sizes(self) -> StoreSizes:
        """What the store takes."""
