"""Whether a store still is what was written: every row against its hash and its checksum, and the index of words.

Test: tests/search/test_checksums.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from m2bert.errors import M2BertError
from m2bert.ranking.words import words_as_text
from m2bert.search.stores import Key
from m2bert.search.stores.checksums import CHECKSUM, damages
from m2bert.search.stores.columns import to_passages
from m2bert.search.stores.lance import LanceStore
from m2bert.search.stores.staging import open_staging

# Documents whose words are looked up in the index of words, spread over the store.
LOOKED_UP = 20
WORD = re.compile(r"\S+")


@dataclass
class StoreCheck:
    """What was found. damaged: documents as (source, id, what is wrong). notes: whatever else there is to know.

    unchecked: documents that an earlier version wrote, without a checksum; their texts were checked alone. mended: the
    damaged documents were taken out, so that the next `m2bert index` makes them again.
    """

    documents: int = 0
    unchecked: int = 0
    damaged: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mended: bool = False

    @property
    def is_sound(self) -> bool:
        """Whether nothing that a search reads is damaged."""
        return not self.damaged and not self.notes

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {"sound": self.is_sound, **asdict(self)}


def check_store(
    path: str | Path, *, mend: bool = False, progress: Callable[[int, int], None] | None = None
) -> StoreCheck:
    """Read all of a store, while writers wait. mend: take damaged documents out, and make the index of words anew.

    progress: called with the documents done and in all. Raises M2BertError where there is no store, or where so much is
    damaged that not even its documents can be listed.
    """
    store = LanceStore.open(path)
    with ExitStack() as held:
        # Writers wait: what they tidy away meanwhile could not be read. A store that may not be written has none, and
        # may be looked at, but nothing is mended without the lock.
        with nullcontext() if mend else suppress(M2BertError):
            held.enter_context(open_staging(store.path, store.info))
        result = _read_all(store, progress)
        if mend and not result.is_sound:
            store.delete([(source, identity) for source, identity, _ in result.damaged])
            store.refresh(everything=True)
            result.mended = True
    return result


def _read_all(store: LanceStore, progress: Callable[[int, int], None] | None) -> StoreCheck:
    result = StoreCheck()
    keys: set[Key] = set()
    lookups: list[tuple[Key, str]] = []
    total = store.count()
    for key, row in store.scan():
        result.documents += 1
        if progress is not None and result.documents % 64 == 0:
            progress(result.documents, total)
        what = row if isinstance(row, str) else _wrong(row, store.info.dim)
        if key in keys:
            what = what or "it is there twice"
        keys.add(key)
        if what:
            result.damaged.append((*key, what))
            continue
        assert not isinstance(row, str)
        result.unchecked += CHECKSUM not in row.schema.names or row[CHECKSUM][0].as_py() is None
        if result.documents % max(total // LOOKED_UP, 1) == 0:
            # Word by word: a list of those of a long document takes ten times its text.
            longest = max((found[0] for found in WORD.finditer(row["words"][0].as_py())), key=len, default="")
            lookups += [(key, longest)] if longest else []
    lost = sum(not store.word_scores(key, [word]) for key, word in lookups)
    if lost:
        result.notes.append(f"the index of words lacks {lost} of {len(lookups)} documents that were looked up")
    return result


def _wrong(row: pa.Table, dim: int) -> str:
    """What is wrong with one row; empty for nothing."""
    (what,) = damages(row, dim)
    if what:
        return what
    values = {name: row[name][0].as_py() for name in ("id", "text", "words", "passages", "passage_vectors")}
    if values["words"].encode() != words_as_text(values["text"]):
        return "its words are not those of its text"
    place = 0
    for span in values["passages"]:
        if not place <= span["start"] <= span["end"] <= len(values["text"]):
            return "its passages do not lie in its text"
        place = span["end"]
    try:
        passages = to_passages(values["passage_vectors"], values["id"], dim)
    except M2BertError:
        return "the vectors of its passages have another length"
    if len(values["passages"]) != (len(passages.scales) if passages is not None else min(len(values["passages"]), 1)):
        return "it has not a vector for each of its passages"
    return ""
