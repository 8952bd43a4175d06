"""Where things are drawn on a strip, by hand."""

from __future__ import annotations

import pytest

from m2bert.search.results import SearchHit, Share
from m2bert.serve.strip import spread, strip_of


def hit(start: int, end: int, score: float) -> SearchHit:
    return SearchHit(start, end, score, 0.1, "text", 1000)


def test_the_curve_is_as_long_as_the_document_and_as_high_as_its_largest_share() -> None:
    shares = [Share(0, 250, 0.1), Share(250, 500, 0.3), Share(500, 1000, -0.1)]
    strip = strip_of(shares, [hit(500, 1000, 0.4), hit(0, 250, 0.9)])
    assert strip is not None
    assert strip.curve == "M0 75.0V50.0H250.0V0.0H500.0V100.0H1000.0V75.0Z" and strip.baseline == 75.0
    assert [(peak.number, peak.left, peak.width, peak.mark) for peak in strip.peaks] == [
        (2, 0.0, 25.0, 12.5),
        (1, 50.0, 50.0, 75.0),
    ]


def test_one_passage_has_no_strip_and_nothing_gained_is_flat() -> None:
    assert strip_of([Share(0, 10, 0.5)], [hit(0, 10, 0.5)]) is None
    assert strip_of([], []) is None
    flat = strip_of([Share(0, 5, 0.0), Share(5, 10, 0.0)], [])
    assert flat is not None and flat.curve == "M0 0.0V0.0H500.0V0.0H1000.0V0.0Z" and flat.peaks == []


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ([], []),
        ([50], [50]),
        ([0, 3, 50], [4, 12, 50]),
        ([97, 98, 99], [80, 88, 96]),
        ([1, 50, 99], [4, 50, 96]),
    ],
)
def test_marks_keep_apart(places: list[float], moved: list[float]) -> None:
    assert spread(places, 8) == moved
