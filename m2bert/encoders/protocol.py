"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass


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
class DocumentEmbedding:
    """The embedding of one text.

    vector (dim,) float32 of unit norm. passages: in order, without gaps, over all text that was read; none
    for models that do not pool by a mean. num_tokens: tokens of the text that were read, without [CLS] and
    [SEP]. num_windows: pieces the model saw it in. num_truncated: tokens of the text that were dropped.
    """

    vector: NDArray[np.float32]
    passages: list[Passage]
    num_tokens: int
    num_windows: int
    num_truncated: int


class DocumentEncoder(Protocol):
    """What an index needs of an m2bert.encoders.embedder.Embedder."""

    overflow: str
    location: str
    dim: int

    @property
    def fingerprint(self) -> str: ...
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]: ...
    def encode_documents(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> list[DocumentEmbedding]: ...


class EncodedDocument(Protocol):
    """What evaluation reads of m2bert.encoders.protocol.DocumentEmbedding.

    vector: (dim,). num_tokens: tokens that were read, in num_windows windows. num_truncated: tokens that were
    not.
    """

    @property
    def vector(self) -> NDArray[np.float32]: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_windows(self) -> int: ...
    @property
    def num_truncated(self) -> int: ...


class Encoder(Protocol):
    """A text encoder: m2bert.encoders.embedder.Embedder, or any object with these members.

    encode: texts -> (len(texts), dim) float32. encode_documents: the same with token counts.
    `progress` is called with (tokens done, tokens in all).
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    def encode(
        self, texts: list[str], *, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]: ...
    def encode_documents(
        self, texts: list[str], *, progress: Callable[[int, int], None] | None = None
    ) -> Sequence[EncodedDocument]: ...
