"""The search index: documents in, ranked documents with the place of the match out.

Joins an embedder and a store. A run that is killed leaves the old state; the new one becomes visible in one step.
Test: tests/search/test_index.py, tests/search/test_additions.py.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError, MissingError, TextError
from m2bert.ranking.parts import ALL, TERMS, WORDS, Mixture, mixture_of
from m2bert.ranking.words import words_of
from m2bert.search.bulk import Progress, embed_into, text_hash
from m2bert.search.documents import Corpus, Document, Skipped
from m2bert.search.results import SearchResult, hits_of, shares_of
from m2bert.search.stores import Key, Query, Record, StoredState, StoreInfo, StoreStats, VectorStore

if TYPE_CHECKING:
    from m2bert.search.stores.lance import LanceStore


@dataclass
class IndexReport:
    """What a change to an index did: numbers of documents, and tokens of those that were embedded or kept."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    embedded: int = 0
    num_tokens: int = 0
    num_windowed: int = 0
    num_truncated_documents: int = 0
    num_truncated_tokens: int = 0


class SearchIndex:
    """An index of documents in a folder, bound to the model that embedded them."""

    def __init__(self, store: str | Path, embedder: Encoder | None = None) -> None:
        """`store`: folder of the store; made at the first add if it is not there, never by a search.

        `~` at its beginning is the user's folder. `embedder`: None means the model the store was made with, or the
        default model for a new store.
        Raises M2BertError when `store` is something else, of another format, or was made with another model.
        """
        if embedder is not None and not hasattr(embedder, "encode_documents"):
            raise M2BertError(
                f"index: embedder must be an Embedder, got {type(embedder).__name__}; wrap it in Embedder()"
            )
        self.path = Path(os.path.expanduser(store))
        self._store: LanceStore | None = None
        self._open_if_made()
        self._embedder = embedder
        if self._store is not None and embedder is not None:
            self._check_model(self._store.info, embedder)

    @property
    def model(self) -> str | None:
        """Name or folder of the model the store was made with; None while there is no store."""
        return None if self._store is None else self._store.info.model

    @property
    def dim(self) -> int | None:
        """Length of the store's vectors; None while there is no store."""
        return None if self._store is None else self._store.info.dim

    @property
    def embedder(self) -> Encoder:
        """The encoder of documents and queries; loaded at the first use when none was given."""
        if self._embedder is None:
            from m2bert.encoders.embedder import Embedder

            if self._store is None:
                self._embedder = Embedder()
            else:
                info = self._store.info
                embedder = Embedder(info.model, truncate_dim=info.dim)
                self._check_model(self._store.info, embedder)
                self._embedder = embedder
        return self._embedder

    def add(
        self, documents: Mapping[str, str] | Iterable[Document], *, progress: Progress | None = None
    ) -> IndexReport:
        """Insert documents, given as {id: text} or as Document objects; those of the same name are replaced.

        Only new and changed texts are embedded. Raises M2BertError for empty texts and doubled names, and
        then changes nothing.
        """
        if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
            raise M2BertError(
                f"index: documents must be a mapping of ids to texts or a list of Document, "
                f"got {type(documents).__name__}; pass {{id: text}}"
            )
        if isinstance(documents, Mapping):
            documents = [Document(identity, text) for identity, text in documents.items()]
        documents = list(documents)
        _check_documents(documents)
        return self._apply(documents, None, progress)

    def update(self, corpus: Corpus, *, progress: Progress | None = None) -> IndexReport:
        """Make the index agree with a source: insert, replace, and remove what is gone, in one step.

        Documents that are there but could not be read keep their old state. Those in which the encoder sees nothing
        are skipped, unless its overflow is "error". Raises M2BertError when the source holds no readable document at
        all.
        """
        corpus.check()
        _check_documents(corpus.documents)
        return self._apply(corpus.documents, corpus, progress)

    def delete(self, ids: Iterable[str], *, source: str = "") -> int:
        """Remove documents of a source; returns how many there were."""
        if isinstance(ids, str):
            raise M2BertError(f"index: ids must be a list of document ids, got the string {ids!r}; wrap it in []")
        ids = list(ids)
        for identity in ids:
            if not isinstance(identity, str):
                raise M2BertError(f"index: every document id must be a string, got {identity!r}; convert it")
        store = self._opened()
        from m2bert.search.stores.staging import open_staging

        with open_staging(store.path, store.info):
            return store.delete([(source, identity) for identity in ids])

    @property
    def mixture(self) -> Mixture:
        """The weights of whole, passages and words: those of the embedder if it has some, or the default ones.

        Raises M2BertError where it weighs terms.
        """
        mixture = mixture_of(self.embedder)
        if mixture.terms > 0:
            raise M2BertError(
                f"rank: the mixture of {self.embedder.name!r} must not weigh terms, which are not kept in stores, "
                f"got {mixture.terms}; set them to 0"
            )
        return mixture

    def search(
        self, query: str, k: int = 10, *, passages: int = 3, rank: str = ALL, source: str | None = None
    ) -> list[SearchResult]:
        """The k best documents for `query`, each with at most `passages` of its best passages, the best first.

        rank: by "all" parts, or by some of "whole", "passages" and "words", joined by +; by "words" alone no model is
        loaded, and only documents that have some of the words are found. source: ranks the documents of one source
        alone.

        Raises M2BertError for an empty query, a store that is missing or holds nothing, k < 1, passages < 0, and
        another rank.
        """
        if not isinstance(query, str) or not query.strip():
            raise M2BertError(f"search: the query must be some words of text, got {query!r}; ask something")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise M2BertError(f"search: k must be a whole number of at least 1, got {k!r}; ask for more results")
        if isinstance(passages, bool) or not isinstance(passages, int) or passages < 0:
            raise M2BertError(
                f"search: passages must be a whole number of at least 0, got {passages!r}; pass 0 for none"
            )
        only_words = Mixture().only(rank).used == [WORDS]
        if TERMS in rank.split("+"):
            raise M2BertError(
                f"search: rank must do without terms, which are not kept in stores, got {rank!r}; "
                f"`m2bert evaluate` can rank by them"
            )
        store = self._opened()
        num_documents = store.count()
        if num_documents == 0:
            raise M2BertError(
                f"search: the store {str(self.path)!r} holds no documents; add some with "
                f"`m2bert index FOLDER --store {self.path}`"
            )
        vector = None if only_words else self._query_vector(query)
        mixture = Mixture().only(rank) if only_words else self.mixture.only(rank)
        found = store.search(Query(vector, words_of(query), source), min(k, num_documents), mixture)
        return [
            SearchResult(
                place, one.record.id, one.record.source, one.score, one.parts, one.record.num_tokens,
                [] if vector is None else hits_of(one.record, vector, passages),
                shares_of(one.record, vector) if vector is not None and passages else [],
            )
            for place, one in enumerate(found, start=1)
        ]  # fmt: skip

    def _query_vector(self, query: str) -> NDArray[np.float32]:
        try:
            vector: NDArray[np.float32] = self.embedder.encode([query])[0]
        except TextError as error:
            raise M2BertError(f"search: the query {query!r:.60} {error.reason}") from error
        return vector

    def document(self, identity: str, source: str | None = None) -> Record:
        """One stored document by its id; `source` chooses when several sources have it. Raises M2BertError."""
        found = [record for record in self._opened().get(identity) if source in (None, record.source)]
        if not found:
            raise MissingError(
                f"index: no document {identity!r} in the store {str(self.path)!r}; a search shows the ids"
            )
        if len(found) > 1:
            sources = ", ".join(record.source for record in found)
            raise M2BertError(f"index: {identity!r} is in several sources, {sources}; say which")
        return found[0]

    def word_scores(self, query: str, record: Record) -> dict[str, float]:
        """What each word of `query`, by its stem, adds to the part of the words of a stored document."""
        return self._opened().word_scores(record.key, words_of(query))

    def stats(self, *, documents: bool = False) -> StoreStats:
        """What the store holds; `documents` asks for the state of each."""
        store = self._opened()
        if not documents:
            return StoreStats(store.info, store.count())
        states = store.states()
        return StoreStats(store.info, len(states), states)

    def _apply(self, documents: Sequence[Document], synced: Corpus | None, progress: Progress | None) -> IndexReport:
        from m2bert.search.stores.staging import open_staging

        store = self._opened_or_created()
        report = IndexReport()
        hashes = {(item.source, item.id): text_hash(item.text) for item in documents}
        with open_staging(store.path, store.info) as staging:
            stored = _states(store, hashes, synced)
            changed = [item for item in documents if not self._is_current(stored, item, hashes)]
            fresh = {hashes[item.source, item.id]: item.text for item in changed}
            for known, state in staging.states.items():
                if known in fresh and self._fits(state):
                    del fresh[known]
            names = {hashes[item.source, item.id]: item.id for item in changed}
            refused = embed_into(staging, fresh, self.embedder, progress, names, leave_out=synced is not None)
            removed: list[Key] = []
            if synced is not None:
                synced = synced.without({key: refused[known] for key, known in hashes.items() if known in refused})
                synced.check()
                report.skipped = synced.skipped
                gone = synced.gone(identity for source, identity in stored if source == synced.source)
                removed = [(synced.source, identity) for identity in gone]
                changed = [item for item in changed if hashes[item.source, item.id] not in refused]
                hashes = {key: known for key, known in hashes.items() if known not in refused}
            report.updated = sum((item.source, item.id) in stored for item in changed)
            if changed or removed:
                store.add(staging.rows(changed, hashes), remove=removed, replaces=report.updated > 0)
            report.embedded = len(fresh) - len(refused)
            report.removed = len(removed)
            report.added = len(changed) - report.updated
            report.unchanged = len(hashes) - len(changed)
            _count_tokens(report, stored, staging.states, hashes)
            staging.clear()
        return report

    def _is_current(self, stored: Mapping[Key, StoredState], document: Document, hashes: Mapping[Key, str]) -> bool:
        key = (document.source, document.id)
        state = stored.get(key)
        return state is not None and state.text_hash == hashes[key] and self._fits(state)

    def _fits(self, state: StoredState) -> bool:
        """Whether a stored embedding is what this embedder, with its treatment of long texts, would make."""
        if state.num_truncated:
            return self.embedder.overflow == "truncate"
        return state.num_windows == 1 or self.embedder.overflow == "window"

    def _check_model(self, info: StoreInfo, embedder: Encoder) -> None:
        if embedder.fingerprint != info.fingerprint:
            raise M2BertError(
                f"index: {str(self.path)!r} was made with the model {info.model!r} of fingerprint "
                f"{info.fingerprint}, got {embedder.location!r} of {embedder.fingerprint}; use that model, "
                f"or index into a new folder"
            )

    def _open_if_made(self) -> None:
        from m2bert.search.stores.lance import LanceStore, is_unused

        if not is_unused(self.path):
            self._store = LanceStore.open(self.path)

    def _opened(self) -> LanceStore:
        if self._store is None:
            from m2bert.search.stores.lance import LanceStore

            self._store = LanceStore.open(self.path)
            if self._embedder is not None:
                self._check_model(self._store.info, self._embedder)
        return self._store

    def _opened_or_created(self) -> LanceStore:
        if self._store is None:
            from m2bert.search.stores.lance import LanceStore

            embedder = self.embedder
            info = StoreInfo(embedder.location, embedder.fingerprint, embedder.dim)
            self._store = LanceStore.create(self.path, info)
            self._check_model(self._store.info, embedder)
        return self._store


def _check_documents(documents: Sequence[Document]) -> None:
    if not documents:
        raise M2BertError("index: there must be at least one document, got none; nothing was changed")
    seen: set[Key] = set()
    for document in documents:
        if not isinstance(document, Document) or not isinstance(document.source, str):
            raise M2BertError(
                f"index: every document must be a Document(id, text, source) of strings, got {document!r:.60}; "
                f"or pass a mapping of ids to texts"
            )
        for name in ("id", "text"):
            value = getattr(document, name)
            if not isinstance(value, str) or not value.strip():
                raise M2BertError(
                    f"index: the {name} of document {document.id!r} must be a string that is not empty, "
                    f"got {type(value).__name__}; leave the document out"
                )
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise M2BertError(
                    f"index: the {name} of document {document.id!r} must be Unicode text, got a lone surrogate at "
                    f"character {error.start}; decode it with errors='replace'"
                ) from None
        key = (document.source, document.id)
        if key in seen:
            raise M2BertError(f"index: two documents are called {document.id!r}; give each an id of its own")
        seen.add(key)


def _states(store: VectorStore, keys: Collection[Key], synced: Corpus | None) -> dict[Key, StoredState]:
    """What is stored of these documents, and of all of the corpus's source."""
    if synced is None:
        return store.states(keys)
    elsewhere = [key for key in keys if key[0] != synced.source]
    return store.states(source=synced.source) | store.states(elsewhere)


def _count_tokens(
    report: IndexReport,
    stored: Mapping[Key, StoredState],
    staged: Mapping[str, StoredState],
    hashes: Mapping[Key, str],
) -> None:
    for key, known in hashes.items():
        state = staged.get(known) or stored[key]
        report.num_tokens += state.num_tokens
        report.num_windowed += state.num_windows > 1
        report.num_truncated_documents += state.num_truncated > 0
        report.num_truncated_tokens += state.num_truncated
