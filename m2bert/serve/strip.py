"""The strip under a result: the document from beginning to end, what its passages add, and the best of them.

Numbers only; the page draws them (m2bert/serve/page/strip.html).
Test: tests/serve/test_strip.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m2bert.search.results import SearchHit, Share

# The curve is drawn in a box of this size, stretched to the page's width.
WIDTH, HEIGHT = 1000.0, 100.0
# Marks closer than this share of the strip would cover one another on a telephone.
GAP = 8.0


@dataclass(frozen=True)
class Peak:
    """One of the best passages: its number, 1 for the best, and where it and its mark are drawn, in percent."""

    number: int
    hit: SearchHit
    left: float
    width: float
    mark: float


@dataclass(frozen=True)
class Strip:
    """curve: an SVG path in a box of WIDTH and HEIGHT. baseline: where in it nothing is added. peaks: from left to
    right."""

    curve: str
    baseline: float
    peaks: list[Peak]


def strip_of(shares: Sequence[Share], hits: Sequence[SearchHit]) -> Strip | None:
    """The strip of a document of several passages; None where there is nothing to draw."""
    if len(shares) < 2:
        return None
    length = shares[-1].end
    highest, lowest = max(0.0, *(each.value for each in shares)), min(0.0, *(each.value for each in shares))
    scale = HEIGHT / ((highest - lowest) or 1.0)
    baseline = highest * scale
    steps = [f"M0 {baseline:.1f}"]
    for share in shares:
        steps.append(f"V{baseline - share.value * scale:.1f}H{share.end / length * WIDTH:.1f}")
    steps.append(f"V{baseline:.1f}Z")
    return Strip("".join(steps), baseline, peaks_of(hits))


def peaks_of(hits: Sequence[SearchHit]) -> list[Peak]:
    """The hits, given the best first, from left to right, their marks apart."""
    ordered = sorted(enumerate(hits, start=1), key=lambda item: item[1].start)
    marks = spread([hit.position * 100 for _, hit in ordered], GAP)
    return [
        Peak(number, hit, _percent(hit.start, hit), _percent(hit.end - hit.start, hit), mark)
        for (number, hit), mark in zip(ordered, marks, strict=True)
    ]


def _percent(characters: int, hit: SearchHit) -> float:
    return characters / hit.document_length * 100


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in 0 to 100, moved as little as keeps `gap` between neighbours and half of it to the ends."""
    moved = []
    least = gap / 2
    for place in places:
        moved.append(max(place, least))
        least = moved[-1] + gap
    most = 100 - gap / 2
    for number in reversed(range(len(moved))):
        moved[number] = min(moved[number], most)
        most = moved[number] - gap
    return moved
