"""Documents from folders and JSON-lines files for the search index; what cannot be read is reported.

Text is kept character for character, so that positions found by a search are positions in the file.
Test: tests/search/test_documents.py, tests/search/test_bad_stores.py.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from m2bert.errors import M2BertError
from m2bert.search.sections import Section

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")
ID_COLUMNS = ("id", "pid")
TEXT_COLUMNS = ("text", "passage")


@dataclass(frozen=True)
class Document:
    """One text, its name within its source, and the source (a folder, a file, a name; may be empty).

    sections: its pages or headings, in the order of their starts, so that a passage knows where it stands.
    """

    id: str
    text: str
    source: str = ""
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """Something that was not taken in: its document id, or a line as `line 12`, and the reason.

    keeps: what stays in an index on its account, because it may be there and was not read: the `document` of that id,
    the documents of a `folder` (id and a slash before theirs), all of the `source` (it may be any of them), or
    `nothing`, since it was read and holds nothing to find.
    """

    id: str
    reason: str
    keeps: Literal["document", "folder", "source", "nothing"] = "document"


@dataclass(frozen=True)
class Corpus:
    """All documents of one source, in a stable order, and what had to be left out."""

    source: str
    documents: list[Document]
    skipped: list[Skipped] = field(default_factory=list)

    def check(self) -> None:
        """Raise M2BertError unless there is a document."""
        if not self.documents:
            reasons = f" ({len(self.skipped)} skipped, the first: {self.skipped[0].reason})" if self.skipped else ""
            raise M2BertError(
                f"index: {self.source!r} must hold at least one readable document, got none{reasons}; "
                f"nothing was changed"
            )

    def without(self, reasons: Mapping[tuple[str, str], str]) -> Corpus:
        """This corpus with some documents skipped, named by source and id, since there is nothing to find in them."""
        kept = [item for item in self.documents if (item.source, item.id) not in reasons]
        skipped = [Skipped(identity, reason, "nothing") for (_, identity), reason in reasons.items()]
        return Corpus(self.source, kept, [*self.skipped, *skipped])

    def gone(self, known: Iterable[str]) -> list[str]:
        """Those of the ids `known` of an earlier state that are not in the source any more, or hold nothing now.

        What may be there and was not read is not gone.
        """
        there = {item.id for item in self.documents}
        there |= {item.id for item in self.skipped if item.keeps == "document"}
        empty = {item.id for item in self.skipped if item.keeps == "nothing"}
        folders = tuple(item.id for item in self.skipped if item.keeps == "folder")
        unknown = any(item.keeps == "source" for item in self.skipped)
        return [
            identity
            for identity in known
            if identity not in there and (identity in empty or not (unknown or identity.startswith(folders)))
        ]


def read_corpus(path: str | Path, *, exclude: Iterable[str | Path] = ()) -> Corpus:
    """Read a folder (every file below it, hidden ones aside) or a .jsonl / .jsonl.gz file.

    A folder's documents are named by their path relative to it; `exclude` names files and folders to pass
    over; links to folders are not followed. A JSON-lines file has the columns "text" and, if it likes, "id"
    (otherwise the line number names the document), or LoCo's "pid" and "passage". The source is the absolute
    path. Binary, broken, empty and doubly named documents are returned as skipped, and so are links to folders,
    folders that cannot be read (with a slash behind their names), and lines that do not say which document they are.

    Raises M2BertError when the path is neither, or when a file breaks off so that its rest is unknown.
    """
    place = Path(path)
    if place.is_dir():
        entries: Iterator[Document | Skipped] = _read_folder(
            place, {os.path.realpath(os.path.expanduser(item)) for item in exclude}
        )
    elif place.is_file() and place.name.endswith(JSONL_SUFFIXES):
        entries = _read_jsonl(place)
    elif place.exists():
        raise M2BertError(
            f"read_corpus: {str(place)!r} must be a folder or a {' or '.join(JSONL_SUFFIXES)} file; "
            f"put the file into a folder and give that"
        )
    else:
        raise M2BertError(f"read_corpus: there is no folder or file {str(place)!r}; check the path")
    return _collect(str(place.resolve()), entries)


def _collect(source: str, entries: Iterable[Document | Skipped]) -> Corpus:
    documents: dict[str, Document] = {}
    skipped: list[Skipped] = []
    for entry in entries:
        if isinstance(entry, Skipped):
            skipped.append(entry)
        elif entry.id in documents:
            skipped.append(Skipped(entry.id, "a document of this name came before; the first one is kept"))
        elif not any(character.isprintable() and not character.isspace() for character in entry.text):
            skipped.append(Skipped(entry.id, "holds no text", "nothing"))
        else:
            documents[entry.id] = Document(entry.id, entry.text, source)
    return Corpus(source, list(documents.values()), skipped)


def _read_folder(folder: Path, exclude: set[str]) -> Iterator[Document | Skipped]:
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        here = Path(parent)
        # os.path.realpath, because Path.resolve fails for a link to itself.
        for names in (folders, files):
            kept = (name for name in names if not name.startswith("."))
            names[:] = sorted(name for name in kept if os.path.realpath(here / name) not in exclude)
        for name in files:
            yield _read_file(here / name, (here / name).relative_to(folder).as_posix())
        for name in folders:
            if (here / name).is_symlink():
                where = (here / name).relative_to(folder).as_posix()
                yield Skipped(where, "a link to a folder, which is not followed; index that folder by itself")
    for error in unreadable:
        where = Path(error.filename).relative_to(folder).as_posix()
        yield Skipped(where + "/", f"cannot be read: {error.strerror}", "folder")


def _read_file(path: Path, name: str) -> Document | Skipped:
    if _surrogate(name) is not None:
        return Skipped(name.encode("utf-8", "backslashreplace").decode(), "its name is not UTF-8")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return Skipped(name, "not a regular file")
        text = decode(path.read_bytes())
    except OSError as error:
        return Skipped(name, f"cannot be read: {error.strerror}")
    except ValueError as error:
        return Skipped(name, str(error))
    return Document(name, text)


def decode(data: bytes) -> str:
    """The bytes as UTF-8 text without byte order mark. Raises ValueError saying why they are not text."""
    if (position := data.find(b"\0")) >= 0:
        raise ValueError(f"binary: byte 0x00 at position {position}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at position {error.start}"
        raise ValueError(f"not UTF-8 text: {found}") from None


def _surrogate(text: str) -> int | None:
    """Position of the first lone surrogate, which no UTF-8 text holds; None without one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _read_jsonl(path: Path) -> Iterator[Document | Skipped]:
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _read_line(line, number)
        except (OSError, EOFError, zlib.error) as error:
            raise M2BertError(
                f"read_corpus: {str(path)!r} breaks off ({error}); restore the file, nothing was indexed"
            ) from error


def _read_line(line: bytes, number: int) -> Document | Skipped:
    where = f"line {number}"
    try:
        row: Any = json.loads(decode(line))
    except (ValueError, RecursionError) as error:
        return Skipped(where, f"not a JSON object: {error}", "source")
    if not isinstance(row, dict):
        return Skipped(where, f"must be a JSON object, got a {type(row).__name__}", "source")
    identity = next((row[name] for name in ID_COLUMNS if name in row), None)
    if identity is None:
        identity = number
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        return Skipped(where, f"its id must be a string or a whole number, got {identity!r}", "source")
    identity = str(identity)
    if not identity.strip() or _surrogate(identity) is not None:
        return Skipped(where, f"its id must be Unicode text that is not empty, got {identity!r}", "source")
    text = next((row[name] for name in TEXT_COLUMNS if name in row), None)
    if not isinstance(text, str):
        return Skipped(identity, f"{where} must have a string under {' or '.join(map(repr, TEXT_COLUMNS))}")
    if (position := _surrogate(text)) is not None:
        return Skipped(identity, f"{where} is not Unicode text: a lone surrogate at character {position}")
    return Document(identity, text)
