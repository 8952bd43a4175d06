"""Search in documents: readers of folders and files, the index, its stores, and what makes a score."""

from __future__ import annotations

from m2bert._lazy import lazy_names

_PUBLIC = {
    "Corpus": "m2bert.search.documents",
    "Document": "m2bert.search.documents",
    "SearchIndex": "m2bert.search.index",
    "SearchHit": "m2bert.search.results",
    "SearchResult": "m2bert.search.results",
    "Section": "m2bert.search.sections",
    "explain_stored": "m2bert.search.explain",
    "explain_text": "m2bert.search.explain",
    "read_corpus": "m2bert.search.documents",
}
__all__ = list(_PUBLIC)
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
