"""HTML pages and EPUB books: what a reader would see, by Python's own parsers.

Scripts, styles and navigation are left out; headings and the title are sections.
Test: tests/search/test_formats.py.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from html.parser import HTMLParser
from itertools import groupby
from urllib.parse import unquote
from xml.etree import ElementTree

from m2bert.search.formats import FormatError, Parsed
from m2bert.search.formats.plain import decode_any
from m2bert.search.sections import SectionedText

NEVER_TEXT = frozenset(["script", "style", "template", "noscript", "svg"])
NAVIGATION = frozenset(["nav"])
# Elements whose words are the label of a section, with its level; 0 is a page's title.
HEADED = {"title": 0, **{f"h{level}": level for level in range(1, 7)}}
# A heading holds none of these: one that was not closed ends there.
PARAGRAPHS = frozenset(["article", "blockquote", "dl", "ol", "p", "pre", "section", "table", "ul"])
LINES = frozenset(
    [
        *("address", "aside", "body", "br", "caption", "center", "dd", "details", "div", "dt", "fieldset"),
        *("figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li", "main", "option"),
        *("summary", "tbody", "tfoot", "thead", "tr"),
    ]
)
CELLS = frozenset(["td", "th"])
DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
# Where a page must declare its encoding.
HEAD_BYTES = 1024


def read_html(data: bytes) -> Parsed:
    """An HTML page."""
    html, guessed = _decode_markup(data)
    out = SectionedText()
    write_html(out, html)
    return Parsed.of(out, guessed)


def write_html(out: SectionedText, html: str) -> None:
    """Add what is to be read of a page."""
    page = _Page(NEVER_TEXT | NAVIGATION)
    page.feed(html)
    page.close()
    if page.is_skipping:  # navigation that never ends would be all of the page
        page = _Page(NEVER_TEXT)
        page.feed(html)
        page.close()
    page.write_into(out)


def read_epub(data: bytes) -> Parsed:
    """The chapters of an EPUB book, in the order of reading."""
    out = SectionedText()
    guessed = False
    with zipfile.ZipFile(io.BytesIO(data)) as book:
        container = ElementTree.fromstring(book.read("META-INF/container.xml"))
        rootfile = container.find(".//{*}rootfile")
        if rootfile is None:
            raise FormatError("broken: its container names no book")
        package_path = rootfile.get("full-path", "")
        package = ElementTree.fromstring(book.read(package_path))
        places = {item.get("id"): item.get("href", "") for item in package.iterfind(".//{*}manifest/{*}item")}
        encrypted = _encrypted_files(book)
        for item in package.iterfind(".//{*}spine/{*}itemref"):
            href = unquote(places[item.get("idref")])
            path = posixpath.normpath(posixpath.join(posixpath.dirname(package_path), href))
            if path in encrypted:
                raise FormatError("encrypted: its chapters open in the shop's own program only")
            html, chapter_guessed = _decode_markup(book.read(path))
            guessed |= chapter_guessed
            write_html(out, html)
            out.write("\n\n")
    return Parsed.of(out, guessed)


def _encrypted_files(book: zipfile.ZipFile) -> set[str]:
    if "META-INF/encryption.xml" not in book.namelist():
        return set()
    listed = ElementTree.fromstring(book.read("META-INF/encryption.xml"))
    return {unquote(each.get("URI", "")) for each in listed.iterfind(".//{*}CipherReference")}


def _decode_markup(data: bytes) -> tuple[str, bool]:
    declared = DECLARED.search(data[:HEAD_BYTES])
    return decode_any(data, declared[1].decode("ascii") if declared else None)


class _Page(HTMLParser):
    """Takes a page in, element by element, as pieces: text, or a heading with its level (0: the title)."""

    def __init__(self, skipped: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self._skipped = skipped
        self._skipping: list[str] = []
        self._verbatim = 0
        self._heading: tuple[int, list[str]] | None = None
        self._pieces: list[tuple[int | None, str]] = []
        self._end = "\n\n"  # the last two characters so far

    @property
    def is_skipping(self) -> bool:
        """Whether something that is left out has not ended."""
        return bool(self._skipping)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipping or tag in self._skipped:
            if not self._skipping or tag == self._skipping[-1]:
                self._skipping.append(tag)
            return
        if tag in HEADED or tag in PARAGRAPHS:
            self._end_heading()
        if tag in HEADED:
            self._heading = (HEADED[tag], [])
        self._break(tag)
        if tag in CELLS and not self._end[-1].isspace():
            self._add(" ")
        self._verbatim += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            if tag == self._skipping[-1]:
                self._skipping.pop()
            return
        if tag in HEADED:
            self._end_heading()
        self._break(tag)
        self._verbatim -= tag == "pre" and self._verbatim > 0

    def handle_data(self, data: str) -> None:
        if self._skipping:
            return
        if not self._verbatim:
            data = re.sub(r"\s+", " ", data)
            data = data.lstrip() if self._end[-1].isspace() else data
        self._add(data)

    def close(self) -> None:
        super().close()
        self._end_heading()

    def _break(self, tag: str) -> None:
        """What an element's beginning or end is in text: the end of a line, or an empty line."""
        if tag in PARAGRAPHS or tag in LINES:
            there = len(self._end) - len(self._end.rstrip("\n"))
            self._add("\n" * ((2 if tag in PARAGRAPHS else 1) - there))

    def _add(self, text: str) -> None:
        if self._heading is not None:
            self._heading[1].append(text)
        elif text:
            self._pieces.append((None, text))
            self._end = (self._end + text)[-2:]

    def _end_heading(self) -> None:
        if self._heading is not None:
            level, words = self._heading
            self._heading = None
            self._pieces.append((level, " ".join("".join(words).split())))
            self._end = "\n\n"

    def write_into(self, out: SectionedText) -> None:
        """Write the pieces, without white space at the ends of lines."""
        for level, pieces in groupby(self._pieces, key=lambda piece: piece[0]):
            if level is None:
                lines = "".join(text for _, text in pieces).split("\n")
                text = "\n".join(line.rstrip() for line in lines).strip("\n")
                out.write(text + "\n\n" if text else "")
                continue
            for _, title in pieces:
                if title and level == 0:
                    out.begin(title)
                elif title:
                    out.head(level, title)
                out.write(title + "\n\n" if title else "")
