"""Files of many formats as text, with their pages and headings.

A reader takes the bytes of a file and returns its text; which one, the end of the file's name says. What has no reader
of its own is plain text. Readers of PDF, DOCX and PPTX need the libraries of `pip install 'm2bert[documents]'`, the
others Python alone. They run in processes of their own (m2bert.search.reading), for which this module loads nothing
large.
Test: tests/search/test_formats.py, tests/search/test_real_documents.py.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from m2bert.search.sections import Section, SectionedText

# End of the name -> module in this folder, and function there.
READERS = {
    ".pdf": ("office", "read_pdf"),
    ".docx": ("office", "read_docx"),
    ".pptx": ("office", "read_pptx"),
    ".html": ("markup", "read_html"),
    ".htm": ("markup", "read_html"),
    ".xhtml": ("markup", "read_html"),
    ".epub": ("markup", "read_epub"),
    ".eml": ("mail", "read_email"),
    ".md": ("plain", "read_markdown"),
    ".markdown": ("plain", "read_markdown"),
    ".ipynb": ("plain", "read_notebook"),
    ".py": ("plain", "read_python"),
}


# Raised when a reader makes another text of the same file: then files that have not changed are read again too.
READERS_VERSION = 2


@dataclass(frozen=True)
class Parsed:
    """The text of a file, and its sections.

    guessed: its encoding was guessed to be Windows-1252. lost: what is in it and could not be read, by name, and why.
    """

    text: str
    sections: tuple[Section, ...] = ()
    guessed: bool = False
    lost: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, written: SectionedText, guessed: bool = False, lost: Iterable[tuple[str, str]] = ()) -> Parsed:
        """What a reader has written."""
        return cls(written.text, tuple(written.sections), guessed, tuple(lost))


class FormatError(ValueError):
    """Why a file cannot be read, as the end of a sentence. holds_nothing: it was read, and there is no text in it."""

    def __init__(self, reason: str, *, holds_nothing: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.holds_nothing = holds_nothing


def has_reader(name: str) -> bool:
    """Whether a file of that name is more than plain text."""
    return _suffix(name) in READERS


def parse(data: bytes, name: str) -> Parsed:
    """The text of a file called `name`. Raises FormatError saying why there is none, MemoryError when it is too large.

    Whatever else a reader stumbles over is a fault of the file.
    """
    module, function = READERS.get(_suffix(name), ("plain", "read_text"))
    reader: Callable[[bytes], Parsed] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    try:
        return reader(data)
    except (FormatError, MemoryError):
        raise
    except Exception as error:
        found = " ".join(str(error).split())[:200]
        raise FormatError(f"broken, or not what its name says: {type(error).__name__}: {found}") from error


def library(name: str) -> Any:
    """A library of the extra `documents`. Raises FormatError naming the extra where it is not installed."""
    try:
        module: ModuleType = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise FormatError(f"needs the library {name}: pip install 'm2bert[documents]'") from error
    return module


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
