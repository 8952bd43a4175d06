"""Embedding many texts: group by group, each written down before the next begins.

Test: tests/search/test_index.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError, TextError
from m2bert.search.stores import Record

if TYPE_CHECKING:
    from m2bert.encoders.protocol import EncodedDocument
    from m2bert.search.stores.staging import Staging

# Characters embedded between two writes to disk: some ten seconds of work on two cores, and enough to fill batches.
CHARACTERS_AT_ONCE = 400_000

Progress = Callable[[int, int], None]
"""Called with the tokens done and the tokens in all; the latter is an estimate until the last group."""


def text_hash(text: str) -> str:
    """SHA-256 of the text, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def embed_into(
    staging: Staging,
    texts: Mapping[str, str],
    encoder: Encoder,
    progress: Progress | None,
    names: Mapping[str, str],
) -> None:
    """Embed texts, given by their hash, the longest first, and stage them group by group.

    `names` maps a text's hash to the document to blame. Raises M2BertError naming a document without embedding.
    """
    pending = sorted(texts.items(), key=lambda item: -len(item[1]))
    counter = _Counter(sum(len(text) for _, text in pending), progress)
    for group in _groups(pending):
        counter.start(sum(len(text) for _, text in group))
        try:
            made = encoder.encode_documents([text for _, text in group], progress=counter.report)
        except TextError as error:
            name = names[group[error.number][0]]
            raise M2BertError(f"index: document {name!r} {error.reason}; nothing was changed") from error
        staging.append([_record(known, text, one) for (known, text), one in zip(group, made, strict=True)])


class _Counter:
    """Progress over all groups, where only the tokens of the groups begun so far are known."""

    def __init__(self, characters: int, progress: Progress | None) -> None:
        self._progress = progress
        self._characters_left = characters
        self._characters_begun = 0
        self._tokens_before = 0
        self._tokens_of_group = 0

    def start(self, characters: int) -> None:
        self._tokens_before += self._tokens_of_group
        self._tokens_of_group = 0
        self._characters_begun += characters
        self._characters_left -= characters

    def report(self, done: int, total: int) -> None:
        self._tokens_of_group = total
        if self._progress is None:
            return
        begun = self._tokens_before + total
        rest = self._characters_left * begun // self._characters_begun
        self._progress(self._tokens_before + done, begun + rest)


def _groups(pending: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    group: list[tuple[str, str]] = []
    size = 0
    for item in pending:
        if group and size + len(item[1]) > CHARACTERS_AT_ONCE:
            yield group
            group, size = [], 0
        group.append(item)
        size += len(item[1])
    if group:
        yield group


def _record(known: str, text: str, made: EncodedDocument) -> Record:
    """The embedding of a text that has no name yet."""
    vectors = [passage.vector for passage in made.passages]
    spans = [(passage.start, passage.end) for passage in made.passages]
    return Record(
        source="",
        id="",
        text_hash=known,
        text=text,
        num_tokens=made.num_tokens,
        num_windows=made.num_windows,
        num_truncated=made.num_truncated,
        vector=made.vector,
        spans=np.asarray(spans, dtype=np.int64).reshape(-1, 2),
        passage_vectors=np.asarray(vectors, dtype=np.float32).reshape(-1, made.vector.shape[0]),
    )
