"""Groups, batches and inputs of windows, against what is counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from m2bert.encoders.windows import Plan, batches_of, groups_of_characters, inputs_of, passages_in


@pytest.mark.parametrize(
    ("lengths", "most", "most_texts", "groups"),
    [
        ([], 10, None, []),
        ([3, 4, 3], 10, None, [(0, 3)]),
        ([3, 4, 4], 10, None, [(0, 2), (2, 3)]),
        ([30, 1, 1], 10, None, [(0, 1), (1, 3)]),  # a longer text goes alone
        ([1, 30, 1], 10, None, [(0, 1), (1, 2), (2, 3)]),
        ([1] * 5, 10, 2, [(0, 2), (2, 4), (4, 5)]),
        ([6, 1, 6, 1], 7, 3, [(0, 2), (2, 4)]),
        ([0, 0, 0], 0, None, [(0, 3)]),
    ],
)
def test_groups_hold_so_many_characters_and_texts(
    lengths: list[int], most: int, most_texts: int | None, groups: list[tuple[int, int]]
) -> None:
    assert list(groups_of_characters(["x" * length for length in lengths], most, most_texts)) == groups


def plan(number: int, tokens: int, firsts: list[int], windows: list[tuple[int, int]], factors: bool = True) -> Plan:
    ids = np.arange(100 * number, 100 * number + tokens, dtype=np.int32)
    own = np.arange(tokens + 2) / 10 + number if factors else None
    return Plan(number, ids, np.array(firsts), [(0, 1)] * len(firsts), 0, windows, own)


def test_inputs_lie_between_special_tokens_and_belong_to_passages() -> None:
    long, short = plan(1, 10, [0, 3, 8], [(0, 5), (5, 10)]), plan(2, 2, [0], [(0, 2)])
    made = inputs_of([(long, (5, 10)), (short, (0, 2))], cls=7, sep=8, pad=9)
    assert made.input_ids.tolist() == [[7, 105, 106, 107, 108, 109, 8], [7, 200, 201, 8, 9, 9, 9]]
    assert made.mask.tolist() == [[True] * 7, [True] * 4 + [False] * 3]
    # The second window holds none of passage 0, three tokens of passage 1 with [CLS], two of passage 2 with [SEP].
    assert passages_in(long, (5, 10)) == (1, 3) and passages_in(long, (0, 5)) == (0, 2)
    assert made.counts.tolist() == [4, 3, 4]
    np.testing.assert_allclose(made.factors, [1.0, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.0, 2.1, 2.2, 2.3])
    assert inputs_of([(plan(1, 3, [0], [(0, 3)], factors=False), (0, 3))], 7, 8, 9).factors is None


def test_batches_are_the_longest_first_and_within_the_budget() -> None:
    plans = [plan(0, 4, [0], [(0, 4)]), plan(1, 20, [0], [(0, 10), (10, 20)]), plan(2, 3, [0], [(0, 3)])]
    shapes = [[last - first for _, (first, last) in batch] for batch in batches_of(plans, 24, lambda tokens: tokens)]
    assert shapes == [[10, 10], [4, 3]]
    assert [len(batch) for batch in batches_of(plans, 24, lambda tokens: 24)] == [1, 1, 1, 1]
