"""Taking documents into a store, portion by portion: each is embedded, staged, and becomes visible in one step.

A portion is what is embedded in some three minutes, and never more than MOST_CHARACTERS or MOST_DOCUMENTS of texts, so
memory does not grow with what is added. A small addition is one portion. A run that is killed keeps the portions that
are visible and what is staged of the next.
Test: tests/search/test_streaming.py, tests/search/test_additions.py, tests/search/test_index.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError
from m2bert.memory import giving_back, memory_left
from m2bert.search.bulk import Progress, document_hash, embed_into
from m2bert.search.documents import Document, File, Skipped
from m2bert.search.ledger import EMPTY, READ, UNREAD, Ledger
from m2bert.search.metadata import metadata_as_text
from m2bert.search.mirror import Mirror, Seen
from m2bert.search.report import IndexReport
from m2bert.search.stores import Key, StoredState, VectorStore
from m2bert.search.stores.fields import fields_of
from m2bert.search.stores.staging import Staging
from m2bert.search.streams import CorpusStream, Entry

FIRST_CHARACTERS, LEAST_CHARACTERS, MOST_CHARACTERS = 4_000_000, 400_000, 16_000_000
# Bytes of memory that must be left for every character of a portion: five for what is made of it, and as much again for
# each of reading ahead, the model, and the store.
BYTES_A_CHARACTER = 20
# Less leaves too little behind in memory to be worth a call of the system.
LARGE_CHARACTERS = 1_000_000
# A source that has to be read begins with fewer, so that embedding begins at once.
FIRST_DOCUMENTS, MOST_DOCUMENTS = 2_000, 20_000
SECONDS_A_PORTION = 180.0
REMOVED_AT_ONCE = 10_000


@dataclass
class Portion:
    """What is taken in at once. files: by document, what was read of its file; unchanged: ids of those not read."""

    documents: list[Document] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    characters: int = 0

    def is_full(self, characters: int, documents: int) -> bool:
        """Whether no more should be taken, of texts of so many characters and so many documents."""
        return self.characters >= characters or len(self.documents) + len(self.unchanged) >= documents


@dataclass(frozen=True)
class Change:
    """What a portion does to a store. changed: documents to write; hashes: of all that were accepted; stored: what the
    store had of them; removed: what goes."""

    portion: Portion
    changed: Sequence[Document]
    hashes: Mapping[Key, str]
    stored: Mapping[Key, StoredState]
    removed: Sequence[Key]


class Addition:
    """One run over a stream, under the lock of its store."""

    def __init__(
        self, store: VectorStore, encoder: Encoder, staging: Staging, mirror: Mirror | None, progress: Progress | None
    ) -> None:
        """mirror: of the stream's source; None for documents that are not files."""
        self.report = IndexReport()
        self._store, self._encoder, self._staging, self._mirror = store, encoder, staging, mirror
        self._progress = progress
        self._most = max(min(MOST_CHARACTERS, memory_left() // BYTES_A_CHARACTER), LEAST_CHARACTERS)
        self._characters = min(FIRST_CHARACTERS, self._most)
        self._tokens = 0
        self._accepted = 0
        self._folders: list[str] = []
        self._source_unread = False
        self._is_first, self._is_large = True, False

    def run(self, stream: CorpusStream) -> IndexReport:
        """Take all of it in. Raises M2BertError; portions before the one with the fault stay."""
        with Ledger() as self._ledger:
            entries = stream.entries(self._known(stream))
            entry = next(entries, None)
            while True:
                portion = Portion()
                most = FIRST_DOCUMENTS if self._is_first and stream.lenient else MOST_DOCUMENTS
                while entry is not None and not portion.is_full(self._characters, most):
                    self._take(entry, portion, stream)
                    entry = next(entries, None)
                self._apply(portion, stream, is_last=entry is None)
                self._is_first = False
                if entry is None:
                    break
        with giving_back() if self._is_large else nullcontext():
            self._store.refresh()
        self._staging.clear()
        if self._mirror is not None:
            self._mirror.forget_others()
        return self.report

    def _known(self, stream: CorpusStream) -> Callable[[Sequence[str]], Mapping[str, str]]:
        source, mirror = stream.source, self._mirror
        if source is None or mirror is None:
            return lambda names: {}
        return lambda names: known_files(self._store, mirror, source, names, self._encoder)

    def _take(self, entry: Entry, portion: Portion, stream: CorpusStream) -> None:
        document = entry.document if isinstance(entry, File) else entry
        if isinstance(document, Skipped):
            self._skip(document)
            return
        if document is None:
            portion.unchanged.append(entry.id)
            self._ledger.note(entry.id, READ)
            return
        name = document.id if stream.source is not None else f"{document.source}\0{document.id}"
        if document.source != (stream.source or document.source):
            name = f"{document.source}\0{document.id}"
        if self._ledger.note(name, READ):
            if not stream.lenient:
                raise M2BertError(
                    f"index: two documents are called {document.id!r}; give each an id of its own; {self._so_far}"
                )
            self._skip(Skipped(document.id, "a document of this name came before; the first one is kept"))
            return
        portion.documents.append(document)
        portion.characters += len(document.text)
        if isinstance(entry, File):
            portion.files[document.id] = entry
            self.report.skipped += [Skipped(f"{entry.id}: {part}", why, "nothing") for part, why in entry.lost]

    def _skip(self, item: Skipped) -> None:
        self.report.skipped.append(item)
        if item.keeps == "folder":
            self._folders.append(item.id)
        elif item.keeps == "source":
            self._source_unread = True
        else:
            self._ledger.note(item.id, UNREAD if item.keeps == "document" else EMPTY)

    def _apply(self, portion: Portion, stream: CorpusStream, *, is_last: bool) -> None:
        source = stream.source
        hashes = {(item.source, item.id): document_hash(item) for item in portion.documents}
        unchanged = [(source or "", identity) for identity in portion.unchanged]
        stored = self._store.states([*hashes, *unchanged])
        changed = [item for item in portion.documents if not self._is_current(stored, item, hashes)]
        refused = self._embed(changed, hashes, stream)
        for item in changed:
            if (reason := refused.get(hashes[item.source, item.id])) is not None:
                del hashes[item.source, item.id]
                self._ledger.lower([item.id], EMPTY)
                self.report.skipped.append(Skipped(item.id, reason, "nothing"))
        changed = [item for item in changed if (item.source, item.id) in hashes]
        for key in unchanged:
            if key in stored:
                hashes[key] = stored[key].text_hash
            else:
                reason = "was taken out of the store while its folder was read; index the folder again"
                self.report.skipped.append(Skipped(key[1], reason))
        self._accepted += len(hashes)
        if is_last:
            self._check(stream)
        removed = list(self._gone(source)) if source is not None and stream.whole and is_last else []
        change = Change(portion, changed, hashes, stored, removed)
        self._is_large |= portion.characters > LARGE_CHARACTERS
        with giving_back() if self._is_large else nullcontext():
            self._write(change)
        self._count(change)
        self._staging.settle()
        self._remember(portion, source, hashes)
        self._tell(0, 0, stream)

    def _write(self, change: Change) -> None:
        """The one step, but for more documents that go than one step can say."""
        changed, hashes, stored, removed = change.changed, change.hashes, change.stored, change.removed
        keys = {(item.source, item.id) for item in changed}
        if changed or removed:
            rows = self._staging.rows(changed, hashes)
            fields = fields_of(item.metadata for item in changed)
            replaces = any(key in stored for key in keys)
            self._store.add(rows, remove=removed[:REMOVED_AT_ONCE], replaces=replaces, fields=fields)
        for start in range(REMOVED_AT_ONCE, len(removed), REMOVED_AT_ONCE):
            self._store.delete(removed[start : start + REMOVED_AT_ONCE])
        described = {}
        for item in change.portion.documents:
            key = (item.source, item.id)
            if key in hashes and key not in keys:
                metadata = metadata_as_text(item.metadata, item.id)
                if metadata != stored[key].metadata:
                    described[key] = metadata
        if described:
            self._store.describe(described)
        self.report.updated += len(described)
        self.report.unchanged -= len(described)

    def _count(self, change: Change) -> None:
        changed, hashes, stored = change.changed, change.hashes, change.stored
        updated = sum((item.source, item.id) in stored for item in changed)
        report = self.report
        report.updated += updated
        report.added += len(changed) - updated
        report.removed += len(change.removed)
        report.unchanged += len(hashes) - len(changed)
        report.guessed += [name for name, file in change.portion.files.items() if file.guessed]
        report.count(hashes, stored, self._staging.states)

    def _embed(self, changed: Sequence[Document], hashes: Mapping[Key, str], stream: CorpusStream) -> dict[str, str]:
        """Stage the embeddings of documents that are not staged; returns the reasons, by hash, of those refused."""
        fresh = {hashes[item.source, item.id]: item.text for item in changed}
        for known, state in self._staging.states.items():
            if known in fresh and fits(state, self._encoder):
                del fresh[known]
        names = {hashes[item.source, item.id]: item.id for item in changed}
        tokens = [0]

        def report(done: int, total: int) -> None:
            tokens[0] = total
            self._tell(done, total, stream)

        begun = time.monotonic()
        refused = embed_into(
            self._staging, fresh, self._encoder, report, names, leave_out=stream.source is not None,
            so_far=self._so_far,
        )  # fmt: skip
        self._tokens += tokens[0]
        self.report.embedded += len(fresh) - len(refused)
        speed = sum(map(len, fresh.values())) / max(time.monotonic() - begun, 1e-3)
        if fresh:
            self._characters = int(min(max(speed * SECONDS_A_PORTION, LEAST_CHARACTERS), self._most))
        return refused

    def _tell(self, done: int, total: int, stream: CorpusStream) -> None:
        """Tokens done, and those of all the source if the rest of it is like what was read; 0 where nobody knows."""
        if self._progress is not None:
            share = stream.share.value
            self._progress(self._tokens + done, int((self._tokens + total) / share) if share else 0)

    def _check(self, stream: CorpusStream) -> None:
        """Raise M2BertError unless there was a document."""
        if self._accepted:
            return
        skipped = self.report.skipped
        if stream.source is None or (not stream.lenient and not skipped):
            raise M2BertError("index: there must be at least one document, got none; nothing was changed")
        reasons = f" ({len(skipped)} skipped, the first: {skipped[0].reason})" if skipped else ""
        raise M2BertError(
            f"index: {stream.source!r} must hold at least one readable document, got none{reasons}; nothing was changed"
        )

    def _gone(self, source: str) -> Iterator[Key]:
        """Documents of the source that are not in it any more, or hold nothing now. What was not read is not gone."""
        folders = tuple(self._folders)
        for ids in self._store.ids(source):
            for identity, kind in zip(ids, self._ledger.kinds(ids), strict=True):
                if kind == EMPTY or (kind is None and not (self._source_unread or identity.startswith(folders))):
                    yield source, identity

    def _remember(self, portion: Portion, source: str | None, hashes: Mapping[Key, str]) -> None:
        """What was read of files that the store has now."""
        if self._mirror is None or source is None:
            return
        seen = {
            name: Seen(file.stamp, hashes[source, name])
            for name, file in portion.files.items()
            if file.stamp and (source, name) in hashes
        }
        known = self._mirror.known(portion.unchanged) if portion.unchanged else {}
        if seen := seen | {name: each for name, each in known.items() if (source, name) in hashes}:
            self._mirror.note(seen)

    def _is_current(self, stored: Mapping[Key, StoredState], document: Document, hashes: Mapping[Key, str]) -> bool:
        key = (document.source, document.id)
        state = stored.get(key)
        return state is not None and state.text_hash == hashes[key] and fits(state, self._encoder)

    @property
    def _so_far(self) -> str:
        return "nothing was changed" if self._is_first else "what came before it stays"


def fits(state: StoredState, encoder: Encoder) -> bool:
    """Whether a stored embedding is what this encoder, with its treatment of long texts, would make."""
    if state.num_truncated:
        return encoder.overflow == "truncate"
    return state.num_windows == 1 or encoder.overflow == "window"


def known_files(
    store: VectorStore, mirror: Mirror, source: str, names: Collection[str], encoder: Encoder
) -> dict[str, str]:
    """The stamps of files whose documents are in the store as the encoder would make them; by document."""
    seen = mirror.known(list(names))
    states = store.states([(source, name) for name in seen])
    return {
        name: each.stamp
        for name, each in seen.items()
        if (state := states.get((source, name))) and state.text_hash == each.text_hash and fits(state, encoder)
    }
