"""Windows of text divided into segments, each with a teacher's vector: what distillation trains on.

Every batch is a function of (seed, index) alone, so that a resumed run sees what an uninterrupted one would.
Test: tests/train/test_distill.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from m2bert.data.examples import SpecialIds, batches_by_length, pad_rows, wrap_special
from m2bert.data.tokens import TokenStore
from m2bert.errors import M2BertError


@dataclass(frozen=True, eq=False)
class Window:
    """A run of tokens of one text: ids (tokens,) without special tokens, the collection it is from."""

    ids: np.ndarray
    source: str
    is_query: bool = False


def segment_bounds(tokens: int, segment_tokens: int) -> list[int]:
    """Bounds of the fewest segments of at most `segment_tokens` tokens, equal in length: 0, ..., tokens."""
    count = max(1, -(-tokens // segment_tokens))
    return [number * tokens // count for number in range(count + 1)]


def windows_of(store: TokenStore, window_tokens: int, *, is_query: bool = False) -> dict[str, list[Window]]:
    """All consecutive windows of at most `window_tokens` tokens of every document, equal in length, by collection."""
    found: dict[str, list[Window]] = {}
    for index in range(len(store)):
        ids, source = store.document(index), store.sources[store.source_ids[index]]
        if len(ids) == 0:
            continue
        bounds = segment_bounds(len(ids), window_tokens)
        windows = [Window(ids[a:b], source, is_query) for a, b in pairwise(bounds)]
        found.setdefault(source, []).extend(windows)
    return found


def choose_windows(
    groups: Mapping[str, Sequence[Window]], max_tokens: int, weights: Mapping[str, float], seed: int
) -> list[Window]:
    """Windows of about `max_tokens` tokens together, drawn without repetition.

    A group's share goes with the square root of its tokens times its weight (default 1); a group that has fewer is
    used whole and what it leaves is shared by the others.
    Raises M2BertError for weights of groups that are not there, and when nothing is left to choose.
    """
    unknown = set(weights) - set(groups)
    if unknown:
        raise M2BertError(
            f"distill: weights name collections that are there, got {', '.join(sorted(unknown))}; there are "
            f"{', '.join(sorted(groups))}"
        )
    sizes = {name: sum(len(window.ids) for window in windows) for name, windows in groups.items()}
    shares = _fill(sizes, {name: weights.get(name, 1.0) * size**0.5 for name, size in sizes.items()}, max_tokens)
    chosen: list[Window] = []
    for number, name in enumerate(sorted(groups)):
        order = np.random.default_rng([seed, 5, number]).permutation(len(groups[name]))
        left = shares[name]
        for index in order:
            if left <= 0:
                break
            chosen.append(groups[name][int(index)])
            left -= len(chosen[-1].ids)
    if not chosen:
        raise M2BertError("distill: needs text, got none that weights above 0 leave; pass --data, --pairs or --loco")
    return chosen


def _fill(sizes: Mapping[str, int], chances: Mapping[str, float], total: float) -> dict[str, float]:
    """Divide `total` by `chances`, nobody getting more than its size."""
    shares = dict.fromkeys(sizes, 0.0)
    open_names = {name for name, chance in chances.items() if chance > 0}
    while open_names:
        unit = total / sum(chances[name] for name in open_names)
        full = {name for name in open_names if chances[name] * unit >= sizes[name]}
        if not full:
            return shares | {name: chances[name] * unit for name in open_names}
        for name in full:
            shares[name] = float(sizes[name])
            total -= sizes[name]
        open_names -= full
    return shares


class SegmentBatches:
    """Batches by index: input_ids, attention_mask (batch, seqlen) int64; segment_ids (batch, seqlen) int64, the row of
    `teacher` that a token belongs to, -1 at padding; teacher (segments, dim) float32; window_ids (segments,) int64.

    [CLS] belongs to the first segment of its window and [SEP] to the last, as in m2bert.encoders.embedder. Windows are
    reshuffled every epoch and batched by length; a batch has about `batch_tokens` tokens with padding.
    vectors: one per segment, in the order of `windows` and their segments.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        vectors: NDArray[np.float32],
        ids: SpecialIds,
        *,
        segment_tokens: int,
        batch_tokens: int,
        seed: int = 17,
    ) -> None:
        self.windows, self.vectors, self.ids = windows, vectors, ids
        self.segment_tokens, self.batch_tokens, self.seed = segment_tokens, batch_tokens, seed
        counts = [len(segment_bounds(len(window.ids), segment_tokens)) - 1 for window in windows]
        self.first_segment = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        if self.first_segment[-1] != len(vectors):
            raise M2BertError(
                f"distill: needs a vector for each of {self.first_segment[-1]} segments, got {len(vectors)}; "
                "encode the segments of these windows"
            )
        self._first_of_epoch = [0]
        self._plans: dict[int, list[list[int]]] = {}

    def __len__(self) -> int:
        """Batches of one pass over the windows."""
        return len(self._plan(0))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Batch `index`; after a pass over the windows another one, in another order, follows."""
        while index >= self._first_of_epoch[-1]:
            self._plan(len(self._first_of_epoch) - 1)
        epoch = int(np.searchsorted(self._first_of_epoch, index, side="right")) - 1
        chosen = self._plan(epoch)[index - self._first_of_epoch[epoch]]
        rows = [wrap_special(self.windows[number].ids, self.ids) for number in chosen]
        input_ids, mask = pad_rows(rows, self.ids.pad)
        segment_ids = np.full(input_ids.shape, -1, dtype=np.int64)
        teacher, window_ids, first = [], [], 0
        for row, number in enumerate(chosen):
            bounds = segment_bounds(len(self.windows[number].ids), self.segment_tokens)
            lengths = np.diff(bounds)
            lengths[0] += 1
            lengths[-1] += 1
            segment_ids[row, : bounds[-1] + 2] = np.repeat(np.arange(first, first + len(lengths)), lengths)
            teacher.append(self.vectors[self.first_segment[number] : self.first_segment[number + 1]])
            window_ids += [row] * len(lengths)
            first += len(lengths)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "segment_ids": segment_ids,
            "teacher": np.concatenate(teacher).astype(np.float32),
            "window_ids": np.asarray(window_ids, dtype=np.int64),
        }

    def _plan(self, epoch: int) -> list[list[int]]:
        if epoch not in self._plans:
            rng = np.random.default_rng([self.seed, 6, epoch])
            order = rng.permutation(len(self.windows))
            batches = batches_by_length(order.tolist(), self.batch_tokens, lambda i: len(self.windows[i].ids))
            self._plans = {epoch: [batches[i] for i in rng.permutation(len(batches))]}
            if epoch + 1 == len(self._first_of_epoch):
                self._first_of_epoch.append(self._first_of_epoch[-1] + len(batches))
        return self._plans[epoch]
