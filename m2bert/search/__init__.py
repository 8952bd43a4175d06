"""Search in documents: readers of folders and files, the index, its stores, and what makes a score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2bert._lazy import lazy_names

_PUBLIC = {
    "Corpus": "m2bert.search.documents",
    "CorpusStream": "m2bert.search.streams",
    "Document": "m2bert.search.documents",
    "IndexReport": "m2bert.search.report",
    "Limits": "m2bert.search.reading",
    "SearchHit": "m2bert.search.results",
    "SearchIndex": "m2bert.search.index",
    "SearchResult": "m2bert.search.results",
    "SearchResults": "m2bert.search.results",
    "Section": "m2bert.search.sections",
    "Skipped": "m2bert.search.documents",
    "explain_stored": "m2bert.search.explain",
    "explain_text": "m2bert.search.explain",
    "read_corpus": "m2bert.search.documents",
    "read_document": "m2bert.search.documents",
    "stream_corpus": "m2bert.search.streams",
}
__all__ = list(_PUBLIC)
if TYPE_CHECKING:
    from m2bert.search.documents import (
        Corpus as Corpus,
        Document as Document,
        Skipped as Skipped,
        read_corpus as read_corpus,
        read_document as read_document,
    )
    from m2bert.search.explain import explain_stored as explain_stored, explain_text as explain_text
    from m2bert.search.index import SearchIndex as SearchIndex
    from m2bert.search.reading import Limits as Limits
    from m2bert.search.report import IndexReport as IndexReport
    from m2bert.search.results import (
        SearchHit as SearchHit,
        SearchResult as SearchResult,
        SearchResults as SearchResults,
    )
    from m2bert.search.sections import Section as Section
    from m2bert.search.streams import CorpusStream as CorpusStream, stream_corpus as stream_corpus
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
