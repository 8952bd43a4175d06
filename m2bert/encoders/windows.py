"""Texts on their way through a model: windows of its length, batches of them, groups of texts.

Test: tests/encoders/test_windows.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Batch = list[tuple["Plan", tuple[int, int]]]
"""Windows that go through the model together: the text of each, and its range of tokens."""

# Some seconds of work on two cores, and enough to fill batches with texts of like length.
CHARACTERS_STREAMED, TEXTS_STREAMED = 1_000_000, 4096


@dataclass
class Plan:
    """One text on its way: its tokens, its passages, and the sums of their states gathered so far.

    ids (tokens,). firsts: the first token of every passage; spans: its characters. windows: ranges of `ids`. factors:
    what each token counts for being repeated, of [CLS], of `ids`, of [SEP]; None where that does not matter. sums
    (passages, dim): None until the first window is done.
    """

    number: int
    ids: NDArray[np.int32]
    firsts: NDArray[np.int64]
    spans: list[tuple[int, int]]
    num_truncated: int
    windows: list[tuple[int, int]]
    factors: NDArray[np.float64] | None = None
    open_windows: int = field(init=False)
    sums: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        self.open_windows = len(self.windows)


@dataclass(frozen=True)
class Inputs:
    """A batch as the model takes it (m2bert.model.network.M2BertNetwork.sums).

    input_ids int64, mask bool (batch, seqlen), padded on the right. counts (passages,) int64: real tokens of each
    of the passages in each window (passages_in), window after window. factors (real tokens,) float64 or None.
    """

    input_ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    counts: NDArray[np.int64]
    factors: NDArray[np.float64] | None


def passages_in(plan: Plan, window: tuple[int, int]) -> tuple[int, int]:
    """Range of the passages that have tokens in a window: of a long text few of all."""
    first, last = window
    return int(np.searchsorted(plan.firsts, first, "right")) - 1, int(np.searchsorted(plan.firsts, last, "left"))


def batches_of(plans: Sequence[Plan], batch_tokens: int, width: Callable[[int], int]) -> Iterator[Batch]:
    """Windows in batches of similar length within the budget, the longest first.

    width: the tokens that a window of some tokens takes in the model.
    """
    windows = [(plan, window) for plan in plans for window in plan.windows]
    windows.sort(key=lambda item: item[1][0] - item[1][1])
    batch: Batch = []
    widest = 0
    for plan, (first, last) in windows:
        if batch and (len(batch) + 1) * widest > batch_tokens:
            yield batch
            batch = []
        if not batch:
            widest = width(last - first + 2)
        batch.append((plan, (first, last)))
    if batch:
        yield batch


def inputs_of(batch: Batch, cls: int, sep: int, pad: int) -> Inputs:
    """The model's inputs for one batch, each window between [CLS] and [SEP].

    The states of these belong to the mean, so they count with the window's first and last passage.
    """
    seqlen = max(last - first for _, (first, last) in batch) + 2
    input_ids = np.full((len(batch), seqlen), pad, dtype=np.int64)
    mask = np.zeros((len(batch), seqlen), dtype=np.bool_)
    counts, factors = [], []
    for number, (plan, (first, last)) in enumerate(batch):
        input_ids[number, 0] = cls
        input_ids[number, 1 : last - first + 1] = plan.ids[first:last]
        input_ids[number, last - first + 1] = sep
        mask[number, : last - first + 2] = True
        lowest, end = passages_in(plan, (first, last))
        own = np.diff(np.clip([*plan.firsts[lowest:end], last], first, last))
        filled = np.flatnonzero(own)
        own[filled[0]] += 1
        own[filled[-1]] += 1
        counts.append(own)
        if plan.factors is not None:
            factors += [plan.factors[:1], plan.factors[first + 1 : last + 1], plan.factors[-1:]]
    return Inputs(input_ids, mask, np.concatenate(counts), np.concatenate(factors) if factors else None)


def groups_of_characters(texts: Sequence[Sized], most: int, most_texts: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of texts of at most `most` characters together, or a single longer text.

    most_texts: no more texts than these in a range either; None for any number.
    """
    start, size = 0, 0
    for number, text in enumerate(texts):
        if number > start and (size + len(text) > most or number - start == most_texts):
            yield start, number
            start, size = number, 0
        size += len(text)
    if start < len(texts):
        yield start, len(texts)


def groups_of_stream(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists, each ended by the text that makes it CHARACTERS_STREAMED, or of TEXTS_STREAMED."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text) if isinstance(text, str) else 0  # whoever encodes it says what is wrong
        if size >= CHARACTERS_STREAMED or len(group) == TEXTS_STREAMED:
            yield group
            group, size = [], 0
    if group:
        yield group
