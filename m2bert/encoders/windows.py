"""TODO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Plan:
    """One text on its way: its tokens, its passages, and the sums of token states gathered so far."""

    number: int
    ids: NDArray[np.int32]
    firsts: NDArray[np.int64]
    spans: list[tuple[int, int]]
    num_truncated: int
    windows: list[tuple[int, int]]
    factors: NDArray[np.float64] | None = None  # of [CLS], of `ids`, of [SEP]: where repetitions count
    open_windows: int = field(init=False)
    sums: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        self.open_windows = len(self.windows)


def repetition_factors_of(batch: list[tuple[Plan, tuple[int, int]]]) -> NDArray[np.float64]:
    """Repetition factors of the batch's real tokens in order, [CLS] and [SEP] of every window included."""
    parts = []
    for plan, (first, last) in batch:
        assert plan.factors is not None
        parts += [plan.factors[:1], plan.factors[first + 1 : last + 1], plan.factors[-1:]]
    return np.concatenate(parts)


def groups_of_characters(texts: Sequence[str], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of texts of at most `most` characters together, or a single longer text."""
    start, size = 0, 0
    for number, text in enumerate(texts):
        if number > start and size + len(text) > most:
            yield start, number
            start, size = number, 0
        size += len(text)
    if start < len(texts):
        yield start, len(texts)
