"""Where to cut a long text into passages of similar length, at places where a reader would cut it.

Test: tests/encoders/test_embedder.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PASSAGE_TOKENS = 192

# How good a place between two tokens is to cut at.
ANYWHERE, BETWEEN_WORDS, SENTENCE_END, LINE_END, BLANK_LINE = range(5)
SENTENCE_MARKS = frozenset(".!?。！？")


def cut_passages(
    text: str, offsets: Sequence[tuple[int, int]] | NDArray[np.int64], target: int = PASSAGE_TOKENS
) -> tuple[list[int], list[tuple[int, int]]]:
    """Divide the tokens of `text` into passages of about `target` tokens.

    `offsets` holds the (start, end) characters of every token, at least one. Every ideal boundary moves by up
    to a quarter of a passage to the best place near it: a blank line, a line end, a sentence end, a space, in
    this order, and among equals the nearest. So all passages have similar lengths, as sums over them should.

    Returns the index of each passage's first token, and each passage's (start, end) characters. Passages
    follow on from one another without gaps, from 0 to the end of the text.
    """
    num_tokens = len(offsets)
    num_passages = max(1, round(num_tokens / target))
    reach = num_tokens // num_passages // 4
    firsts, cuts = [0], [0]
    for number in range(1, num_passages):
        ideal = number * num_tokens // num_passages
        near = [(int(start), int(end)) for start, end in offsets[ideal - reach - 1 : ideal + reach + 1]]
        best = _best_cut(text, near)
        firsts.append(ideal - reach - 1 + best)
        cuts.append(max(cuts[-1], _cut_character(text, near[best - 1][1], near[best][0])))
    return firsts, list(zip(cuts, [*cuts[1:], len(text)], strict=True))


def _best_cut(text: str, offsets: Sequence[tuple[int, int]]) -> int:
    """The number of the token to cut in front of, of those from the second on; the ideal one is in their middle."""
    middle = len(offsets) // 2
    best, best_rating = middle, (-1, 0)
    for first in range(1, len(offsets)):
        rating = (_quality(text, offsets[first - 1][1], offsets[first][0]), -abs(first - middle))
        if rating > best_rating:
            best, best_rating = first, rating
    return best


def _quality(text: str, gap_start: int, gap_end: int) -> int:
    gap = text[gap_start:gap_end]
    lines = gap.count("\n") + gap.count("\r") - gap.count("\r\n")
    if lines:
        return BLANK_LINE if lines > 1 else LINE_END
    if not gap:
        return ANYWHERE
    return SENTENCE_END if text[gap_start - 1] in SENTENCE_MARKS else BETWEEN_WORDS


def _cut_character(text: str, gap_start: int, gap_end: int) -> int:
    """Behind the last line end of the gap: indentation stays with its line; else before the next token."""
    behind = max(text.rfind("\n", gap_start, gap_end), text.rfind("\r", gap_start, gap_end)) + 1
    return behind if behind > gap_start else gap_end
