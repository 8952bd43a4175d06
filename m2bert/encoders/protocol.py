"""What an encoder is and what it makes: Encoder, EncodedDocument, Passage.

Search, explanations, evaluation and the cache take any object with the members of Encoder. No model is imported here.
Test: tests/encoders/test_embedder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[int, int], None]
"""Called with the tokens done and the tokens in all."""


@dataclass(frozen=True)
class Passage:
    """A stretch of a text and what it contributes to the embedding of the whole.

    start, end: characters of the text. vector (dim,) float32: for any query vector q, q . vector is the
    passage's share of the document's score; the shares of all passages add up to the score.
    """

    start: int
    end: int
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class SparseVector:
    """A vector that is 0 but at `indices (n,)` int32, ascending, where it has `values (n,)` float32."""

    indices: NDArray[np.int32]
    values: NDArray[np.float32]

    def dot(self, other: SparseVector) -> float:
        """The inner product of two."""
        _, mine, its = np.intersect1d(self.indices, other.indices, assume_unique=True, return_indices=True)
        return float(self.values[mine].astype(np.float64) @ other.values[its].astype(np.float64))


@dataclass(frozen=True)
class EncodedDocument:
    """The embedding of one text; `m2bert.DocumentEmbedding` is its public name.

    vector (dim,) float32, of unit norm if an Embedder made it. passages: in order, without gaps, over all text that was
    read; none where they were not asked for, and none of encoders that do not pool by a mean. num_tokens: tokens of the
    text that were read, without [CLS] and [SEP]. num_windows: pieces the model saw it in. num_truncated: tokens of the
    text that were dropped.
    """

    vector: NDArray[np.float32]
    passages: list[Passage]
    num_tokens: int
    num_windows: int
    num_truncated: int


DocumentEmbedding = EncodedDocument


class Encoder(Protocol):
    """A text encoder: m2bert.encoders.embedder.Embedder, or any object with these members.

    name: in tables. location: the folder or name that opens it again. fingerprint: changes whenever its embeddings do.
    dim: length of an embedding. max_tokens: the longest text that is read at once. overflow: what happens to longer
    ones, "window" (all is read), "truncate" or "error".
    """

    @property
    def name(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def overflow(self) -> str: ...
    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Embeddings of queries (len(texts), dim). `progress` is called with the tokens done and the tokens in all."""
        ...

    def encode_documents(
        self, texts: Sequence[str], *, passages: bool = True, progress: Progress | None = None
    ) -> Sequence[EncodedDocument]:
        """Embeddings of documents with token counts, in the order of `texts`.

        passages: whether their passages are wanted, each of which has a vector as long as the document's.
        """
        ...
