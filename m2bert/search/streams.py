"""Documents on their way into an index, one after the other, so that a source may be larger than memory.

Test: tests/search/test_streaming.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m2bert.search.documents import (
    Corpus,
    Document,
    File,
    Share,
    Skipped,
    read_files,
    read_lines,
    shows_something,
    source_of,
)
from m2bert.search.given import Documents, checked_documents, documents_of
from m2bert.search.reading import Limits

Known = Callable[[Sequence[str]], Mapping[str, str]]
"""What an index knows of some files, given by the ids of their documents: the stamps of those it has."""
Entry = Document | Skipped | File


@dataclass(frozen=True)
class CorpusStream:
    """A source that is read while an index takes it in.

    source: None where the documents have sources of their own. entries: reads them, once, files that are known aside.
    share: what part of the source has been read; None where nobody knows. whole: whether the entries are all of the
    source, so that what is not among them goes. lenient: whether documents that cannot be taken are skipped, or errors.
    """

    source: str | None
    entries: Callable[[Known], Iterator[Entry]]
    share: Share
    whole: bool = True
    lenient: bool = True


def stream_corpus(
    path: str | Path, *, exclude: Iterable[str | Path] = (), limits: Limits | None = None
) -> CorpusStream:
    """As read_corpus, for :meth:`SearchIndex.update`, which reads it then, a part at a time, without files it has.

    Raises M2BertError where there is neither a folder nor a file.
    """
    place, source, share = Path(path), source_of(path), Share()
    passed_over = {os.path.realpath(os.path.expanduser(item)) for item in exclude}

    def entries(known: Known) -> Iterator[Entry]:
        if not place.is_dir():
            found: Iterator[Entry] = read_lines(place, share)
        else:
            found = read_files(place, passed_over, known, limits, share)
        return (_taken(entry, source) for entry in found)

    return CorpusStream(source, entries, share)


def stream_of(corpus: Corpus) -> CorpusStream:
    """A corpus that was read, as a stream."""

    def entries(known: Known) -> Iterator[Entry]:
        guessed = set(corpus.guessed)
        yield from corpus.skipped
        yield from (File(identity, corpus.stamps.get(identity, "")) for identity in corpus.unchanged)
        for document in counted(corpus.documents, share):
            yield File(document.id, corpus.stamps.get(document.id, ""), document, document.id in guessed)

    share = Share()
    documents_of(corpus.documents) if corpus.documents else ()
    return CorpusStream(corpus.source, entries, share)


def stream_of_documents(given: Documents, source: str | None = None) -> CorpusStream:
    """Documents as a stream; all of `source`, where that is not None.

    Those that lie in memory are checked first, an iterator's when it is their turn. Raises M2BertError as documents_of.
    """
    share = Share()
    if isinstance(given, Iterator):
        return CorpusStream(
            source, lambda known: iter(checked_documents(given, source)), share, source is not None, False
        )
    documents = documents_of(given, source)
    return CorpusStream(source, lambda known: counted(documents, share), share, source is not None, False)


def counted(documents: Sequence[Document], share: Share) -> Iterator[Document]:
    """Documents, and how many of them have been taken."""
    for number, document in enumerate(documents, start=1):
        share.value = number / len(documents)
        yield document


def _taken(entry: Entry, source: str) -> Entry:
    """What is read, as a document of the source, or skipped where there is nothing in it."""
    document = entry.document if isinstance(entry, File) else entry
    if not isinstance(document, Document):
        return entry
    if not shows_something(document.text):
        return Skipped(document.id, "holds no text", "nothing")
    document = replace(document, source=source)
    return replace(entry, document=document) if isinstance(entry, File) else document
