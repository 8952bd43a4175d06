"""The search index: documents in, ranked documents with the place of the match out.

Joins an embedder and a store. A run that is killed leaves the old state; the new one becomes visible in one step.
Test: tests/search/test_index.py, tests/search/test_additions.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import overload

import numpy as np
from numpy.typing import NDArray

from m2bert.encoders.protocol import Encoder
from m2bert.errors import M2BertError, MissingError, TextError
from m2bert.memory import giving_back
from m2bert.ranking.parts import ALL, TERMS, WORDS, Mixture, mixture_of
from m2bert.ranking.words import words_of
from m2bert.search.bulk import Progress
from m2bert.search.documents import Corpus, source_of
from m2bert.search.filters import parse_where
from m2bert.search.given import Documents
from m2bert.search.mirror import Mirror
from m2bert.search.places import place_of
from m2bert.search.report import IndexReport
from m2bert.search.results import SearchResults, results_of
from m2bert.search.stores import Query, Record, StoreInfo, StoreSizes, StoreStats, VectorStore
from m2bert.search.streams import CorpusStream, stream_of, stream_of_documents


class SearchIndex:
    """An index of documents in a store, bound to the model that embedded them.

    Any number of threads may search it at once. It may stand in `with`, which closes it.
    """

    def __init__(self, store: str | Path, embedder: Encoder | None = None) -> None:
        """`store`: folder of the store, its place in object storage (s3://BUCKET/PATH), or PostgreSQL
        (postgresql://USER@HOST/DATABASE#SCHEMA); made at the first add if it is not there, never by a search.

        `~` at the beginning of a folder is the user's folder. `embedder`: None means the model the store was made with,
        or the default model for a new store.
        Raises M2BertError when `store` is something else, of another format, or was made with another model.
        """
        if embedder is not None and not hasattr(embedder, "encode_documents"):
            raise M2BertError(
                f"index: embedder must be an Embedder, got {type(embedder).__name__}; wrap it in Embedder()"
            )
        self.place = place_of(store)
        self.path = self.place.folder
        self._store: VectorStore | None = self.place.open_if_made()
        self._embedder = embedder
        self._loaded = False
        self._loading = threading.Lock()
        if self._store is not None and embedder is not None:
            self._check_model(self._store.info, embedder)

    @classmethod
    def open(cls, store: str | Path, embedder: Encoder | None = None) -> SearchIndex:
        """The index of a store that is there. Raises M2BertError where there is none."""
        index = cls(store, embedder)
        index._opened()
        return index

    def close(self) -> None:
        """Let go of the store's files and of a model that the index loaded; whoever uses it again opens them again."""
        self._store = None
        if self._loaded:
            self._embedder, self._loaded = None, False

    def __enter__(self) -> SearchIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

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
        with self._loading:
            if self._embedder is None:
                from m2bert.encoders.embedder import Embedder

                if self._store is None:
                    self._embedder = Embedder()
                else:
                    info = self._store.info
                    embedder = Embedder(info.model, truncate_dim=info.dim)
                    self._check_model(self._store.info, embedder)
                    self._embedder = embedder
                self._loaded = True
            return self._embedder

    def add(self, documents: Documents, *, progress: Progress | None = None) -> IndexReport:
        """Insert documents; those of the same name are replaced.

        documents: {id: text}, or any iterable of Document or (id, text); of an iterator of any length a few megabytes
        lie in memory at a time (docs/scaling.md). Only new and changed texts are embedded. What is embedded in some
        three minutes becomes visible in one step. Raises M2BertError for empty texts and doubled names; then nothing
        changes, and where an iterator gave them, nothing after what is visible already.
        """
        return self._apply(stream_of_documents(documents), progress)

    def update(
        self,
        documents: CorpusStream | Corpus | Documents,
        *,
        source: str | None = None,
        progress: Progress | None = None,
    ) -> IndexReport:
        """Make the index agree with a source: insert, replace, and remove what is gone, the latter in the last step.

        documents: what read_corpus has read, or stream_corpus will, of which a few megabytes lie in memory at a time;
        or all documents of `source`, as in :meth:`add`. Documents that are there but could not be read keep their old
        state. Those in which the encoder sees nothing are skipped, unless its overflow is "error". Raises M2BertError
        when the source holds no readable document at all, and then removes nothing.
        """
        if isinstance(documents, Corpus | CorpusStream) and source in (None, documents.source):
            if isinstance(documents, Corpus):
                documents.check()
                documents = stream_of(documents)
            return self._apply(documents, progress)
        if isinstance(documents, Corpus | CorpusStream) or not source:
            raise M2BertError(
                f"index: source must name what the documents are all of, got {source!r}; pass source='letters', or use "
                f"add() to keep the others"
            )
        return self._apply(stream_of_documents(documents, source), progress)

    def stamps(self, path: str | Path) -> dict[str, str]:
        """What tells of the files of a folder that they have not changed, for read_corpus; by document.

        Only of documents that are in the index as this embedder would make them. Raises M2BertError where there is no
        such folder.
        """
        source = source_of(path)
        if self._store is None:
            return {}
        from m2bert.search.adding import known_files

        mirror = Mirror(self.path, source)
        return known_files(self._store, mirror, source, [name for name, _ in mirror.all()], self.embedder)

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

    @overload
    def search(
        self,
        query: str,
        k: int = 10,
        *,
        passages: int = 3,
        rank: str = ALL,
        source: str | None = None,
        where: str | None = None,
    ) -> SearchResults: ...

    @overload
    def search(
        self,
        query: list[str] | tuple[str, ...],
        k: int = 10,
        *,
        passages: int = 3,
        rank: str = ALL,
        source: str | None = None,
        where: str | None = None,
    ) -> list[SearchResults]: ...

    def search(
        self,
        query: str | list[str] | tuple[str, ...],
        k: int = 10,
        *,
        passages: int = 3,
        rank: str = ALL,
        source: str | None = None,
        where: str | None = None,
    ) -> SearchResults | list[SearchResults]:
        """The k best documents for `query`, each with at most `passages` of its best passages, the best first.

        query: a string; or a list of them, which are encoded together, for results of each in their order. rank: by
        "all" parts, or by some of "whole", "passages" and "words", joined by +; by "words" alone no model is
        loaded, and only documents that have some of the words are found. source: ranks the documents of one source
        alone. where: ranks those alone whose metadata meets a condition, "year >= 2020 AND type = 'pdf'"
        (m2bert.search.filters).

        Raises M2BertError for an empty query, a store that is missing or holds nothing, k < 1, passages < 0, another
        rank, and a condition that cannot be read or speaks of a name that no document has.
        """
        queries = list(query) if isinstance(query, list | tuple) else [query]
        _check_search(queries, k, passages)
        only_words = Mixture().only(rank).used == [WORDS]
        if TERMS in rank.split("+"):
            raise M2BertError(
                f"search: rank must do without terms, which are not kept in stores, got {rank!r}; "
                f"`m2bert evaluate` can rank by them"
            )
        condition = None if where is None else parse_where(where)
        store = self._opened()
        if store.count() == 0:
            raise M2BertError(
                f"search: the store {self.place.name!r} holds no documents; add some with "
                f"`m2bert index FOLDER --store {self.place.name}`"
            )
        mixture = Mixture().only(rank) if only_words else self.mixture.only(rank)
        vectors = [None] * len(queries) if only_words else self._query_vectors(queries)
        results = []
        for each, vector in zip(queries, vectors, strict=True):
            found = store.search(Query(vector, words_of(each), source, condition), k, mixture)
            results.append(results_of(each, found, vector, passages))
        return results if isinstance(query, list | tuple) else results[0]

    def _query_vectors(self, queries: Sequence[str]) -> Sequence[NDArray[np.float32]]:
        try:
            vectors: NDArray[np.float32] = self.embedder.encode(queries)
        except TextError as error:
            raise M2BertError(f"search: the query {queries[error.number]!r:.60} {error.reason}") from error
        return list(vectors)

    def document(self, identity: str, source: str | None = None) -> Record:
        """One stored document by its id; `source` chooses when several sources have it. Raises M2BertError."""
        found = [record for record in self._opened().get(identity) if source in (None, record.source)]
        if not found:
            raise MissingError(
                f"index: no document {identity!r} in the store {self.place.name!r}; a search shows the ids"
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

    def sizes(self) -> StoreSizes:
        """What the store takes on the disk, and which indexes it has."""
        return self._opened().sizes()

    def optimize(self) -> None:
        """Put the store's files together, make its indexes anew where they pay, and delete versions of before.

        Searches go on meanwhile; it waits for writers, and they for it. The store may take twice its space until then.
        """
        store = self._opened()
        from m2bert.search.stores.staging import open_staging

        with open_staging(store.path, store.info), giving_back():
            store.refresh(everything=True)

    def _apply(self, stream: CorpusStream, progress: Progress | None) -> IndexReport:
        from m2bert.search.adding import Addition
        from m2bert.search.stores.staging import open_staging

        store = self._opened_or_created()
        mirror = Mirror(store.path, stream.source) if stream.source is not None and stream.lenient else None
        with open_staging(store.path, store.info) as staging:
            return Addition(store, self.embedder, staging, mirror, progress).run(stream)

    def _check_model(self, info: StoreInfo, embedder: Encoder) -> None:
        if embedder.fingerprint != info.fingerprint:
            raise M2BertError(
                f"index: {self.place.name!r} was made with the model {info.model!r} of fingerprint "
                f"{info.fingerprint}, got {embedder.location!r} of {embedder.fingerprint}; use that model, "
                f"or index into a new folder"
            )

    def _opened(self) -> VectorStore:
        if self._store is None:
            self._store = self.place.open()
            if self._embedder is not None:
                self._check_model(self._store.info, self._embedder)
        return self._store

    def _opened_or_created(self) -> VectorStore:
        if self._store is None:
            embedder = self.embedder
            info = StoreInfo(embedder.location, embedder.fingerprint, embedder.dim)
            self._store = self.place.create(info)
            self._check_model(self._store.info, embedder)
        return self._store


def _check_search(queries: Sequence[str], k: int, passages: int) -> None:
    if not queries:
        raise M2BertError("search: there must be at least one query, got an empty list; ask something")
    for query in queries:
        if not isinstance(query, str) or not query.strip():
            raise M2BertError(f"search: the query must be some words of text, got {query!r}; ask something")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise M2BertError(f"search: k must be a whole number of at least 1, got {k!r}; ask for more results")
    if isinstance(passages, bool) or not isinstance(passages, int) or passages < 0:
        raise M2BertError(f"search: passages must be a whole number of at least 0, got {passages!r}; pass 0 for none")
