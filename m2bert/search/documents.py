"""Documents from folders and JSON-lines files for the search index; what cannot be read is reported.

Plain text is kept character for character, so that positions found by a search are positions in the file; other formats
(m2bert.search.formats) are read in processes of their own (m2bert.search.reading).
Test: tests/search/test_documents.py, tests/search/test_bad_stores.py, tests/search/test_mirror.py.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

from m2bert.bounds import LINE, TooMuchError, lines_of
from m2bert.errors import M2BertError
from m2bert.search.formats import READERS_VERSION, FormatError, has_reader, parse
from m2bert.search.formats.plain import decode
from m2bert.search.metadata import Metadata, facts_of_file, metadata_of_row
from m2bert.search.reading import MOST_AT_ONCE, Limits, Readers
from m2bert.search.sections import Section

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")
ID_COLUMNS = ("id", "pid")
TEXT_COLUMNS = ("text", "passage")
# A file that was written so short a time ago may be written again without a sign of it: clocks of disks are coarse.
SETTLED_NS = 2 * 10**9
FILES_ASKED_AT_ONCE = 5_000
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Document:
    """One text, its name within its source, and the source (a folder, a file, a name; may be empty).

    sections: its pages or headings, in the order of their starts, so that a passage knows where it stands. metadata: a
    few names and values that searches may ask for (m2bert.search.filters).
    """

    id: str
    text: str
    source: str = ""
    sections: tuple[Section, ...] = ()
    metadata: Metadata = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Skipped:
    """Something that was not taken in: its document id, a line as `line 12`, or `a.eml: scan.pdf`, and the reason.

    keeps: what stays in an index on its account, because it may be there and was not read: the `document` of that id,
    the documents of a `folder` (id and a slash before theirs), all of the `source` (it may be any of them), or
    `nothing`, since it was read and holds nothing to find.
    """

    id: str
    reason: str
    keeps: Literal["document", "folder", "source", "nothing"] = "document"


@dataclass(frozen=True)
class Corpus:
    """All documents of one source, in a stable order, and what had to be left out.

    unchanged: documents whose files were not read, since nothing has changed them since an index last took them in.
    stamps: by document, what will tell that its file has not changed. guessed: documents whose encoding was guessed to
    be Windows-1252.
    """

    source: str
    documents: list[Document]
    skipped: list[Skipped] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    stamps: dict[str, str] = field(default_factory=dict)
    guessed: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise M2BertError unless there is a document."""
        if not self.documents and not self.unchanged:
            reasons = f" ({len(self.skipped)} skipped, the first: {self.skipped[0].reason})" if self.skipped else ""
            raise M2BertError(
                f"index: {self.source!r} must hold at least one readable document, got none{reasons}; "
                f"nothing was changed"
            )

    def without(self, reasons: Mapping[tuple[str, str], str]) -> Corpus:
        """This corpus with some documents skipped, named by source and id, since there is nothing to find in them."""
        kept = [item for item in self.documents if (item.source, item.id) not in reasons]
        skipped = [Skipped(identity, reason, "nothing") for (_, identity), reason in reasons.items()]
        return replace(self, documents=kept, skipped=[*self.skipped, *skipped])

    def kept_by(self, known: Collection[str]) -> Corpus:
        """This corpus without those unchanged documents that an index, whose ids are `known`, has lost meanwhile."""
        reason = "was taken out of the store while its folder was read; index the folder again"
        lost = [Skipped(identity, reason) for identity in self.unchanged if identity not in known]
        kept = [identity for identity in self.unchanged if identity in known]
        return replace(self, unchanged=kept, skipped=[*self.skipped, *lost])

    def gone(self, known: Iterable[str]) -> list[str]:
        """Those of the ids `known` of an earlier state that are not in the source any more, or hold nothing now.

        What may be there and was not read is not gone.
        """
        there = {item.id for item in self.documents}
        there |= {item.id for item in self.skipped if item.keeps == "document"} | set(self.unchanged)
        empty = {item.id for item in self.skipped if item.keeps == "nothing"}
        folders = tuple(item.id for item in self.skipped if item.keeps == "folder")
        unknown = any(item.keeps == "source" for item in self.skipped)
        return [
            identity
            for identity in known
            if identity not in there and (identity in empty or not (unknown or identity.startswith(folders)))
        ]


def source_of(path: str | Path) -> str:
    """The source of the documents of a folder or file. Raises M2BertError where there is neither."""
    place = Path(path)
    if not place.exists():
        raise M2BertError(f"read_corpus: there is no folder or file {str(place)!r}; check the path")
    if not place.is_dir() and not (place.is_file() and place.name.endswith(JSONL_SUFFIXES)):
        raise M2BertError(
            f"read_corpus: {str(place)!r} must be a folder or a {' or '.join(JSONL_SUFFIXES)} file; "
            f"put the file into a folder and give that"
        )
    return str(place.resolve())


def read_corpus(
    path: str | Path,
    *,
    exclude: Iterable[str | Path] = (),
    stamps: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> Corpus:
    """Read a folder (every file below it, hidden ones aside) or a .jsonl / .jsonl.gz file.

    A folder's documents are named by their path relative to it; `exclude` names files and folders to pass
    over; links to folders are not followed. `stamps`: what an index knows of the folder (SearchIndex.stamps); files
    that have not changed since are not read. `limits`: what reading one file may take, if it is not plain text.
    A JSON-lines file has the columns "text" and, if it likes, "id" (otherwise the line number names the document), or
    LoCo's "pid" and "passage". The source is the absolute path. Binary, broken, encrypted, empty and doubly named
    documents are returned as skipped, and so are files beyond the limits, links to folders, folders that cannot be read
    (with a slash behind their names), and lines that do not say which document they are.

    Raises M2BertError when the path is neither, or when a file breaks off so that its rest is unknown.
    """
    place = Path(path)
    source = source_of(place)
    if not place.is_dir():
        return _collect(source, read_lines(place))
    passed_over = {os.path.realpath(os.path.expanduser(item)) for item in exclude}
    return _collect(source, read_files(place, passed_over, lambda names: stamps or {}, limits))


def read_document(path: str | Path, *, limits: Limits | None = None, who: str = "read_document") -> Document:
    """One file, named by its path. Raises M2BertError, beginning with `who`, saying why it cannot be read."""
    place = Path(path)
    with Readers(limits) as readers:
        read = _read_file(place, str(path), {}, readers)
    document = read.document if isinstance(read, File) else None
    if document is not None and shows_something(document.text):
        return document
    reason = read.reason if isinstance(read, Skipped) else "holds no text"
    raise M2BertError(f"{who}: {path} must be a document that can be read, got one that is: {reason}; give another")


@dataclass(frozen=True)
class File:
    """A file that was read, and the `stamp` of its state; without `document` one that has not changed. guessed, lost:
    as in Parsed."""

    id: str
    stamp: str
    document: Document | None = None
    guessed: bool = False
    lost: tuple[tuple[str, str], ...] = ()


@dataclass
class Share:
    """What part of a source has been read, 0 to 1; None where nobody knows."""

    value: float | None = None


def _collect(source: str, entries: Iterable[Document | Skipped | File]) -> Corpus:
    corpus = Corpus(source, [])
    taken: set[str] = set()
    for entry in entries:
        document = entry.document if isinstance(entry, File) else entry
        if isinstance(document, Skipped):
            corpus.skipped.append(document)
        elif document is None:
            corpus.unchanged.append(entry.id)
        elif document.id in taken:
            corpus.skipped.append(Skipped(document.id, "a document of this name came before; the first one is kept"))
        elif not shows_something(document.text):
            corpus.skipped.append(Skipped(document.id, "holds no text", "nothing"))
        else:
            taken.add(document.id)
            corpus.documents.append(replace(document, source=source))
            if isinstance(entry, File):
                corpus.guessed.extend([entry.id] if entry.guessed else [])
                corpus.skipped.extend(Skipped(f"{entry.id}: {part}", why, "nothing") for part, why in entry.lost)
        if isinstance(entry, File) and entry.stamp:
            corpus.stamps[entry.id] = entry.stamp
    return corpus


def shows_something(text: str) -> bool:
    """Whether there is more than white space and unseen characters."""
    return any(character.isprintable() and not character.isspace() for character in text)


def read_files(
    folder: Path,
    exclude: set[str],
    stamps_of: Callable[[Sequence[str]], Mapping[str, str]],
    limits: Limits | None,
    share: Share | None = None,
) -> Iterator[Skipped | File]:
    """The files of a folder in a stable order, a few read ahead; without their text those whose stamp is known."""
    unreadable: list[OSError] = []
    share = share or Share()
    count, begun = sum(len(files) for _, _, files in os.walk(folder)), 0
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool, Readers(limits) as readers:
        for parent, folders, files in os.walk(folder, onerror=unreadable.append):
            here = Path(parent)
            # os.path.realpath, because Path.resolve fails for a link to itself.
            for names in (folders, files):
                kept = (name for name in names if not name.startswith("."))
                names[:] = sorted(name for name in kept if os.path.realpath(here / name) not in exclude)
            where = here.relative_to(folder)
            for start in range(0, len(files), FILES_ASKED_AT_ONCE):
                some = [(where / name).as_posix() for name in files[start : start + FILES_ASKED_AT_ONCE]]
                stamps = stamps_of(some)
                tasks = (partial(_read_file, folder / name, name, stamps, readers) for name in some)
                for read in _in_order(pool, tasks):
                    begun += 1
                    share.value = begun / max(count, begun)
                    yield read
            for name in folders:
                if (here / name).is_symlink():
                    reason = "a link to a folder, which is not followed; index that folder by itself"
                    yield Skipped((where / name).as_posix(), reason)
    for error in unreadable:
        yield Skipped(
            Path(error.filename).relative_to(folder).as_posix() + "/", f"cannot be read: {error.strerror}", "folder"
        )


def _in_order(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], _Result]]) -> Iterator[_Result]:
    """What tasks give, in their order; a few of them are ahead, so that few results wait in memory."""
    ahead: deque[Future[_Result]] = deque()
    for task in tasks:
        ahead.append(pool.submit(task))
        if len(ahead) > 2 * MOST_AT_ONCE:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _read_file(path: Path, name: str, stamps: Mapping[str, str], readers: Readers) -> Skipped | File:
    if first_surrogate(name) is not None:
        return Skipped(name.encode("utf-8", "backslashreplace").decode(), "its name is not UTF-8")
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            return Skipped(name, "not a regular file")
        stamp = _stamp(state)
        if stamp and stamps.get(name) == stamp:
            return File(name, stamp)
        if has_reader(path.name):
            parsed = readers.read(path)
        else:  # nothing but its size can be wrong with it
            readers.limits.check_size(state.st_size)
            parsed = parse(path.read_bytes(), path.name)
    except OSError as error:
        return Skipped(name, f"cannot be read: {error.strerror}")
    except FormatError as error:
        return Skipped(name, error.reason, "nothing" if error.holds_nothing else "document")
    document = Document(name, parsed.text, "", parsed.sections, facts_of_file(name, state))
    return File(name, stamp, document, parsed.guessed, parsed.lost)


def _stamp(state: os.stat_result) -> str:
    """What changes whenever a file is written, replaced, or touched; empty where it was written just now."""
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < SETTLED_NS:
        return ""
    parts = (READERS_VERSION, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    return ":".join(map(str, parts))


def first_surrogate(text: str) -> int | None:
    """Position of the first lone surrogate, which no UTF-8 text holds; None without one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def read_lines(path: Path, share: Share | None = None) -> Iterator[Document | Skipped]:
    """The rows of a JSON-lines file. Raises M2BertError where it breaks off."""
    share, size = share or Share(), path.stat().st_size
    numbers = cache(lambda: _numbers_that_are_ids(path))
    with path.open("rb") as file, _unpacked(path, file) as lines:
        try:
            for number, line in lines_of(lines, size):
                share.value = min(file.tell() / size, 1.0) if size else 1.0
                yield _read_line(line, number, numbers)
        except TooMuchError as error:
            raise M2BertError(f"read_corpus: {str(path)!r} {error.reason}; leave it out") from error
        except (OSError, EOFError, zlib.error) as error:
            raise M2BertError(
                f"read_corpus: {str(path)!r} breaks off ({error}); restore the file and index it again"
            ) from error


def _unpacked(path: Path, file: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    return cast(Any, gzip.open(file)) if path.name.endswith(".gz") else nullcontext(file)


def _numbers_that_are_ids(path: Path) -> set[str]:
    """Ids in a JSON-lines file that the number of a line could be taken for; looked for where a row has no id."""
    found: set[str] = set()
    with path.open("rb") as file, _unpacked(path, file) as lines, suppress(TooMuchError, OSError, EOFError, zlib.error):
        for _, line in lines_of(lines, path.stat().st_size):
            with suppress(ValueError, RecursionError):
                row = json.loads(decode(line or b""))
                own = [str(row[name]) for name in ID_COLUMNS if name in row] if isinstance(row, dict) else []
                found.update(filter(str.isdecimal, own))
    return found


def _read_line(line: bytes | None, number: int, numbers: Callable[[], Collection[str]]) -> Document | Skipped:
    where = f"line {number}"
    if line is None:
        return Skipped(where, LINE.said(), "source")
    try:
        row: Any = json.loads(decode(line))
    except (ValueError, RecursionError) as error:
        return Skipped(where, f"not a JSON object: {error}", "source")
    if not isinstance(row, dict):
        return Skipped(where, f"must be a JSON object, got a {type(row).__name__}", "source")
    identity = next((row[name] for name in ID_COLUMNS if name in row), None)
    if identity is None:
        identity = number
        if str(number) in numbers():
            return Skipped(where, "has no id, and its number is the id of another row; give it one", "nothing")
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        return Skipped(where, f"its id must be a string or a whole number, got {identity!r}", "source")
    identity = str(identity)
    if not identity.strip() or first_surrogate(identity) is not None:
        return Skipped(where, f"its id must be Unicode text that is not empty, got {identity!r}", "source")
    text = next((row[name] for name in TEXT_COLUMNS if name in row), None)
    if not isinstance(text, str):
        return Skipped(identity, f"{where} must have a string under {' or '.join(map(repr, TEXT_COLUMNS))}")
    if (position := first_surrogate(text)) is not None:
        return Skipped(identity, f"{where} is not Unicode text: a lone surrogate at character {position}")
    return Document(identity, text, metadata=metadata_of_row(row, {*ID_COLUMNS, *TEXT_COLUMNS}))
