"""Text in its encodings, and what is written in it: Markdown, notebooks, Python.

An encoding is told by a byte order mark; without one it is UTF-8 if it can be, and otherwise taken for Windows-1252,
which is said. Statistics of bytes are not asked: on short files of one or two accents they are wrong more often.
Test: tests/search/test_formats.py.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from m2bert.search.formats import FormatError, Parsed
from m2bert.search.sections import Section, SectionedText

# UTF-32 before UTF-16: the mark of the second begins the mark of the first.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
GUESSED = "cp1252"
# No text holds these; tabs, ends of lines and pages, and the escape of terminals aside.
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
FRONT_MATTER = re.compile(r"---[ \t]*\r?\n.*?^---[ \t]*\r?$", re.MULTILINE | re.DOTALL)


def decode(data: bytes) -> str:
    """The bytes as UTF-8 text without byte order mark. Raises FormatError saying why they are not text."""
    if (position := data.find(b"\0")) >= 0:
        raise FormatError(f"binary: byte 0x00 at position {position}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start}") from None


def decode_any(data: bytes, declared: str | None = None) -> tuple[str, bool]:
    """The bytes as text, and whether its encoding was guessed.

    declared: an encoding the text names itself, which is tried before it is guessed. Raises FormatError for what is
    no text.
    """
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            try:
                return data.decode(encoding), False
            except UnicodeDecodeError as error:
                raise FormatError(f"not the {encoding} text that its first bytes announce: {error.reason}") from None
    try:
        return decode(data), False
    except FormatError as error:
        try:
            if declared is not None:
                return data.decode(declared), False
        except (LookupError, UnicodeDecodeError):
            pass  # an encoding that there is not, or another one than it says
        found = CONTROL.search(data)
        if found is not None:
            raise FormatError(f"binary: byte 0x{found[0][0]:02x} at position {found.start()}") from error
        try:
            return data.decode(GUESSED), True
        except UnicodeDecodeError as other:
            found_byte = f"byte 0x{data[other.start]:02x} at position {other.start}"
            raise FormatError(f"neither UTF-8 nor Windows-1252 text: {found_byte}") from error


def read_text(data: bytes) -> Parsed:
    """Plain text, character for character."""
    text, guessed = decode_any(data)
    return Parsed(text, (), guessed)


def read_markdown(data: bytes) -> Parsed:
    """Markdown as it is written; its headings are sections."""
    text, guessed = decode_any(data)
    out = SectionedText()
    write_markdown(out, text)
    return Parsed.of(out, guessed)


def write_markdown(out: SectionedText, text: str) -> None:
    """Add Markdown with its headings."""
    front = FRONT_MATTER.match(text)
    written = front.end() if front else 0
    out.write(text[:written])
    rest = text[written:]
    place = 0
    for start, level, title in _markdown_headings(rest):
        out.write(rest[place:start])
        out.head(level, title)
        place = start
    out.write(rest[place:])


def _markdown_headings(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, level and plain title of each heading; lines of code that begin with # are none."""
    from markdown_it import MarkdownIt

    starts = _line_starts(text, r"\r\n|\n")
    tokens = MarkdownIt("commonmark").parse(text)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.map is not None:
            pieces = [child.content or " " for child in inline.children or () if child.type != "html_inline"]
            yield starts[opening.map[0]], int(opening.tag[1:]), "".join(pieces)


def read_notebook(data: bytes) -> Parsed:
    """Text and code of a Jupyter notebook, without what the code has put out; a section is a heading or a cell."""
    notebook: Any = json.loads(decode(data))
    cells = notebook["cells"] if "cells" in notebook else notebook["worksheets"][0]["cells"]
    out = SectionedText()
    headed = False
    for number, cell in enumerate(cells, start=1):
        source = "".join(cell.get("source", cell.get("input", "")))
        if not headed:
            out.begin(f"cell {number}")
        if cell["cell_type"] == "markdown":
            write_markdown(out, source)
        else:
            out.write(source)
        headed = headed or out.sections[-1].label != f"cell {number}"
        out.write("\n\n")
    return Parsed.of(out)


def read_python(data: bytes) -> Parsed:
    """Python as it is written; its classes and functions are sections, `Store.add`."""
    text, guessed = decode_any(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes in its strings
            body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return Parsed(text, (), guessed)  # of another Python, or a template: text all the same
    found = {section.start: section for section in _definitions(body, "", _line_starts(text, r"\r\n|\r|\n"))}
    return Parsed(text, tuple(found.values()), guessed)


def _definitions(body: Sequence[ast.stmt], within: str, starts: Sequence[int]) -> Iterator[Section]:
    """Where each definition begins, and where what is around it goes on."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{within}.{node.name}" if within else node.name
            yield Section(starts[min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1], name)
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, name, starts)
            if node.end_lineno is not None and node.end_lineno < len(starts):
                yield Section(starts[node.end_lineno], within)


def _line_starts(text: str, line_end: str) -> list[int]:
    return [0, *(found.end() for found in re.finditer(line_end, text))]
