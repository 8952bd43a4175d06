"""Embedding many texts: group by group, each written down before the next begins; the last one needs no writing down.

Test: tests/search/test_additions.py, tests/search/test_bad_stores.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from m2bert.encoders.protocol import Encoder
from m2bert.encoders.windows import groups_of_characters
from m2bert.errors import M2BertError, TextError
from m2bert.search.sections import sections_as_text
from m2bert.search.stores.checksums import text_hash
from m2bert.search.stores.columns import to_batch

if TYPE_CHECKING:
    from m2bert.encoders.protocol import EncodedDocument
    from m2bert.search.documents import Document
    from m2bert.search.stores.staging import Staging

# What a killed run loses, or a single longer text: some ten seconds of work on two cores, and enough to fill batches.
# An addition of no more than this is staged in memory alone; its vectors take some tens of megabytes there.
CHARACTERS_BETWEEN_WRITES = 400_000

Progress = Callable[[int, int], None]
"""Called with the tokens done and the tokens in all; the latter is an estimate until the last group."""


def document_hash(document: Document) -> str:
    """The hash of what a row keeps of a document: of its text, and of its sections where it has some."""
    return text_hash(document.text, sections_as_text(document.sections))


def embed_into(
    staging: Staging,
    texts: Mapping[str, str],
    encoder: Encoder,
    progress: Progress | None,
    names: Mapping[str, str],
    *,
    leave_out: bool = False,
    so_far: str = "nothing was changed",
) -> dict[str, str]:
    """Embed texts, given by their hash, the longest first, and stage them group by group, the last one in memory.

    `names` maps a text's hash to the document to blame. Returns the reasons, by hash, of the texts that cannot be
    embedded and were left out; without `leave_out`, and where an encoder's overflow is "error", there are none.
    Raises M2BertError naming a document without embedding; so_far: what it says has become of the others.
    """
    pending = sorted(texts.items(), key=lambda item: -len(item[1]))
    counter = _Counter(sum(len(text) for _, text in pending), progress)
    refused: dict[str, str] = {}
    for start, stop in groups_of_characters([text for _, text in pending], CHARACTERS_BETWEEN_WRITES):
        group = pending[start:stop]
        counter.start(sum(len(text) for _, text in group))
        made: Sequence[EncodedDocument] = []
        while group:
            try:
                made = encoder.encode_documents([text for _, text in group], progress=counter.report)
                break
            except TextError as error:
                known, _ = group.pop(error.number)
                if not leave_out or encoder.overflow == "error":
                    raise M2BertError(f"index: document {names[known]!r} {error.reason}; {so_far}") from error
                refused[known] = error.reason
        if group:
            batch = to_batch(dict(zip((known for known, _ in group), made, strict=True)), staging.info, names)
            (staging.hold if stop == len(pending) else staging.append)(batch)
    return refused


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
