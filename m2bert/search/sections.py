"""Where in a document something stands: sections, each of which begins at a character and has a label.

A label is what a reader looks for: "page 12", "slide 3: Results", "Installation > Linux".
Test: tests/search/test_sections.py.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

MOST_OF_A_HEADING = 100


@dataclass(frozen=True)
class Section:
    """What stands from character `start` of a document to the next section: "page 12" or "Installation > Linux"."""

    start: int
    label: str


def place_of(sections: Sequence[Section], start: int, stretch: str) -> str:
    """Where a `stretch` of text from character `start` on stands: "page 12", "page 12 to page 13"; empty if not known.

    sections: in the order of their starts. White space at the ends of the stretch does not count.
    """
    end = start + len(stretch.rstrip())
    start += len(stretch) - len(stretch.lstrip())
    starts = [section.start for section in sections]
    touched = sections[max(bisect_right(starts, start) - 1, 0) : bisect_left(starts, end)]
    labels = [section.label for section in touched if section.label]
    if not labels:
        return ""
    return labels[0] if labels[0] == labels[-1] else f"{labels[0]} to {labels[-1]}"


def sections_as_text(sections: Sequence[Section]) -> str:
    """Sections as one line of JSON; empty without any."""
    if not sections:
        return ""
    return json.dumps([[section.start, section.label] for section in sections], ensure_ascii=False)


def sections_of_text(text: str | None) -> tuple[Section, ...]:
    """The sections that :func:`sections_as_text` wrote; none where there is nothing."""
    return tuple(Section(start, label) for start, label in json.loads(text)) if text else ()


class SectionedText:
    """A text that grows, and the sections that begin on its way.

    text: what was written. Headings make labels of themselves and those above them: "Installation > Linux".
    """

    def __init__(self) -> None:
        self.sections: list[Section] = []
        self._pieces: list[str] = []
        self._length = 0
        self._headings: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def write(self, text: str) -> None:
        """Add text."""
        self._pieces.append(text)
        self._length += len(text)

    def begin(self, label: str) -> None:
        """A section begins here, behind what was written so far, and is called `label`; headings above it end."""
        self._headings = []
        self._begin(label)

    def head(self, level: int, title: str) -> None:
        """A section begins here under a heading; one of level 1 ends all others, one of level 2 those below 1."""
        self._headings = [heading for heading in self._headings if heading[0] < level]
        title = " ".join(title.split())[:MOST_OF_A_HEADING]
        if title:
            self._headings.append((level, title))
        self._begin(" > ".join(each for _, each in self._headings))

    def _begin(self, label: str) -> None:
        if self.sections and self.sections[-1].start == self._length:
            self.sections.pop()
        self.sections.append(Section(self._length, label))
