"""Documents that a caller gives, checked.

Test: tests/search/test_bad_input.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from m2bert.errors import M2BertError
from m2bert.search.documents import Document, first_surrogate
from m2bert.search.metadata import metadata_as_text

Documents = Mapping[str, str] | Iterable[Document | tuple[str, str]]
"""Documents as {id: text}, or as any iterable of Document or of (id, text)."""


def documents_of(given: Documents, source: str | None = None) -> list[Document]:
    """A list of what was given; all of `source`, where that is not None.

    Raises M2BertError for anything else, for documents of another source, empty texts, doubled ids, and none at all.
    """
    taken: dict[tuple[str, str], Document] = {}
    for document in checked_documents(given, source):
        key = (document.source, document.id)
        if key in taken:
            raise M2BertError(f"index: two documents are called {document.id!r}; give each an id of its own")
        taken[key] = document
    if not taken:
        raise M2BertError("index: there must be at least one document, got none; nothing was changed")
    return list(taken.values())


def checked_documents(given: Documents, source: str | None = None) -> Iterator[Document]:
    """What was given, one after the other; all of `source`, where that is not None. Raises M2BertError as above."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise M2BertError(
            f"index: documents must be a mapping of ids to texts or an iterable of Document, "
            f"got {type(given).__name__}; pass {{id: text}}"
        )
    for each in given.items() if isinstance(given, Mapping) else given:
        document = Document(*each) if isinstance(each, tuple) and len(each) == 2 else each
        if not isinstance(document, Document) or not isinstance(document.source, str):
            raise M2BertError(
                f"index: every document must be a Document(id, text, source) of strings, got {document!r:.60}; "
                f"or pass a mapping of ids to texts"
            )
        if source is not None and document.source not in ("", source):
            raise M2BertError(
                f"index: document {document.id!r} must be of the source {source!r}, got {document.source!r}; "
                f"update one source at a time"
            )
        document = document if source is None else replace(document, source=source)
        _check_document(document)
        yield document


def _check_document(document: Document) -> None:
    for name in ("id", "text"):
        value = getattr(document, name)
        if not isinstance(value, str) or not value.strip():
            raise M2BertError(
                f"index: the {name} of document {document.id!r} must be a string that is not empty, "
                f"got {type(value).__name__}; leave the document out"
            )
        if (position := first_surrogate(value)) is not None:
            raise M2BertError(
                f"index: the {name} of document {document.id!r} must be Unicode text, got a lone surrogate at "
                f"character {position}; decode it with errors='replace'"
            )
    starts = [section.start for section in document.sections]
    if starts != sorted(starts):
        raise M2BertError(
            f"index: the sections of document {document.id!r} must be in the order of their starts, "
            f"got {starts!r:.60}; sort them"
        )
    metadata_as_text(document.metadata, document.id)
