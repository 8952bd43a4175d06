"""Search results and index reports as text.

Test: tests/cli/test_cli_search.py.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from m2bert.search.check import StoreCheck
    from m2bert.search.report import IndexReport
    from m2bert.search.results import SearchResult

BAR_CELLS = 10
UNICODE_BAR, ASCII_BAR = ("·", "█"), ("-", "#")
MOST_SHOWN_REASONS = 20
MOST_OF_A_PLACE = 50
MAX_WIDTH = 110


def format_results(results: Sequence[SearchResult], *, passages: int = 1) -> str:
    """Ranked documents with their scores and what each part adds; under each, its best passages, and where they lie.

    The number before a passage is its cosine with the query; the bar is the document from start to end. The passage
    begins with its page or heading, if it has one.
    """
    width = min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)
    lines = []
    for result in results:
        size = f"({result.num_tokens:,} token{'' if result.num_tokens == 1 else 's'})"
        parts = " + ".join(f"{part} {value:.2f}" for part, value in result.parts.items())
        added = f"  = {parts}" if len(result.parts) > 1 else ""
        lines.append(f"{result.rank:3d}.  {result.score:.3f}  {result.id}  {size}{added}")
        for hit in result.passages[:passages]:
            bar = position_bar(hit.start, hit.end, hit.document_length)
            lines.append(f"      {bar} {hit.score:5.2f}  {placed_snippet(hit.place, hit.text, width - 27)}")
    return "\n".join(encodable(line) for line in lines)


def position_bar(start: int, end: int, length: int) -> str:
    """`[···█······]`: where start to end lie in a document of `length`; `[---#------]` where stdout lacks these."""
    empty, full = UNICODE_BAR if can_show("".join(UNICODE_BAR)) else ASCII_BAR
    middle = min((start + end) * BAR_CELLS // (2 * length), BAR_CELLS - 1)
    centres = [(cell + 0.5) / BAR_CELLS * length for cell in range(BAR_CELLS)]
    covered = [start <= centre < end or cell == middle for cell, centre in enumerate(centres)]
    return "[" + "".join(full if inside else empty for inside in covered) + "]"


def placed_snippet(place: str, text: str, length: int) -> str:
    """The page or heading of a passage, if it has one, and its beginning: `page 12: As it was ...`."""
    from m2bert.search.results import snippet

    return snippet(f"{snippet(place, MOST_OF_A_PLACE)}: {text}" if place else text, length)


def can_show(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def encodable(line: str) -> str:
    """The line with what stdout cannot encode replaced by question marks; control characters by spaces."""
    encoding = sys.stdout.encoding or "ascii"
    return printable(line).encode(encoding, "replace").decode(encoding)


def printable(line: str) -> str:
    """The line with spaces for control characters: a file's name may hold line ends and terminal commands."""
    return "".join(character if character.isprintable() else " " for character in line)


def format_report(report: IndexReport) -> str:
    """What an index run did, in one or two lines."""
    parts = [f"{getattr(report, name):,} {name}" for name in ("added", "updated", "unchanged", "removed")] + [
        f"{len(report.skipped):,} skipped"
    ]
    lines = [f"documents: {', '.join(parts)}; {report.num_tokens:,} tokens"]
    if report.num_windowed:
        lines.append(
            f"longer than the model: {_documents(report.num_windowed)}, encoded in windows and averaged "
            f"(--overflow window)"
        )
    if report.num_truncated_documents:
        lines.append(
            f"longer than the model: {_documents(report.num_truncated_documents)} lost "
            f"{report.num_truncated_tokens:,} tokens (--overflow truncate)"
        )
    return "\n".join(lines)


def _documents(number: int) -> str:
    return f"{number:,} document{'' if number == 1 else 's'}"


def format_skipped(report: IndexReport) -> str:
    """One line per skipped document; a long list is cut, with the number of what is left out."""
    shown = report.skipped[:MOST_SHOWN_REASONS]
    lines = [printable(f"skipped {item.id}: {item.reason}") for item in shown]
    if len(report.skipped) > len(shown):
        lines.append(f"skipped {len(report.skipped) - len(shown):,} more; --json lists them all")
    return "\n".join(lines)


def format_guessed(report: IndexReport) -> str:
    """One line that names documents whose encoding was guessed; a long list is cut."""
    shown = report.guessed[:MOST_SHOWN_REASONS]
    rest = len(report.guessed) - len(shown)
    more = f" and {rest:,} more; --json lists them all" if rest else ""
    return printable(f"read as Windows-1252, because they are not UTF-8: {', '.join(shown)}{more}")


def format_check(result: StoreCheck, store: Path) -> str:
    """What is wrong with a store, and what to do; one line where nothing is."""
    lines = [f"{identity}: {what}" for _, identity, what in result.damaged[:MOST_SHOWN_REASONS]]
    if len(result.damaged) > MOST_SHOWN_REASONS:
        lines.append(f"and {len(result.damaged) - MOST_SHOWN_REASONS} more")
    lines += result.notes
    if result.unchecked:
        lines.append(
            f"{result.unchecked} documents have no checksum of their vectors, since an earlier version wrote them; to "
            "have them checked, index into a new folder"
        )
    if result.is_sound:
        lines.append(f"sound: {result.documents} documents")
    elif result.mended:
        lines.append("damaged documents were taken out; `m2bert index SOURCE --store` makes them again")
    else:
        lines.append(
            f"damaged: {len(result.damaged)} of {result.documents} documents; `m2bert check {store} --mend` takes them "
            "out, and `m2bert index SOURCE --store` makes them again; or restore a copy"
        )
    return "\n".join(lines)
