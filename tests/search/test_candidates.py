"""Candidates of two lists: what is left out could not have been among the first, whatever the lists do not say."""

from __future__ import annotations

import random

import numpy as np
import pytest

from m2bert.search.stores.candidates import Listed, depths, most_promising, undecided


def listed(scores: dict[int, float], depth: int) -> Listed:
    """The first `depth` of a full ranking."""
    first = sorted(scores, key=lambda row: -scores[row])[:depth]
    return Listed({row: scores[row] for row in first}, len(first) < depth)


def test_a_list_says_what_rows_not_in_it_have_at_most() -> None:
    assert Listed({4: 2.0, 7: 0.5}, complete=False).bound == 0.5
    assert Listed({4: 2.0, 7: 0.5}, complete=True).bound == 0
    assert Listed({}, complete=False).bound == 0


def test_the_most_promising_by_hand() -> None:
    near = Listed({1: 0.9, 2: 0.8, 3: 0.5}, complete=False)
    words = Listed({3: 10.0, 5: 9.0, 1: 4.0}, complete=False)
    # 1: 0.9 + 0.4, 2: 0.8 + 0.4, 3: 0.5 + 1.0, 5: 0.5 + 0.9
    assert most_promising(near, words, (1.0, 0.1), 1) == [3]
    assert most_promising(near, words, (1.0, 0.1), 2) == [3, 5]
    assert most_promising(near, words, (1.0, 0.1), 3) == [1, 3, 5]
    assert most_promising(near, Listed({}, True), (1.0, 0.1), 2) == [1, 2]
    assert most_promising(Listed({}, True), words, (1.0, 0.1), 9) == [1, 3, 5]


@pytest.mark.parametrize("seed", range(20))
def test_with_undecided_rows_looked_up_the_first_are_those_of_all_scores(seed: int) -> None:
    draw = random.Random(seed)
    rows = draw.sample(range(1000), 60)
    words = {row: max(draw.gauss(2, 2), 0.0) for row in rows}
    others = {row: draw.random() for row in rows}
    k, depth, weight = draw.randint(1, 20), draw.randint(1, 60), draw.choice([0.05, 0.2, 1.0])
    some = listed({row: score for row, score in words.items() if score > 0}, depth)
    rest = undecided(rows, np.array([others[row] for row in rows]), some, weight, k)
    assert not set(rest) & some.scores.keys()
    known = {**some.scores, **{row: words[row] for row in rest}}
    found = sorted(rows, key=lambda row: -(others[row] + weight * known.get(row, 0.0)))[:k]
    assert found == sorted(rows, key=lambda row: -(others[row] + weight * words[row]))[:k]


def test_nothing_is_looked_up_that_cannot_matter() -> None:
    others, some = np.array([0.9, 0.8, 0.1, 0.65]), Listed({10: 3.0}, complete=False)
    assert undecided([10, 11, 12, 13], others, some, 0.05, 2) == [11, 13]
    assert undecided([10, 11, 12, 13], others, some, 0.05, 1) == []
    assert undecided([10, 11, 12, 13], others, some, 0.05, 4) == [11, 12, 13]
    assert undecided([10, 11, 12, 13], others, Listed({10: 3.0}, complete=True), 0.05, 2) == []


def test_larger_stores_are_searched_deeper() -> None:
    assert depths(10, 400, 150) == depths(100_000, 400, 150) == (400, 150)
    assert depths(300_000, 400, 150) == (1200, 290)
    assert depths(10**6, 400, 150) == depths(10**9, 400, 150) == (4000, 597)
