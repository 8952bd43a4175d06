"""Texts longer than a model's positions, read in windows: pooled_in_windows.

A text of more tokens is cut into as few windows as can be, of equal length, each between the text's own [CLS] and
[SEP]; its vector is pooled over the states of all of them together, as m2bert.encoders.embedder does by passages.
Test: tests/model/test_long_texts.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from m2bert.errors import M2BertError
from m2bert.model.pooling import repetition_weights

if TYPE_CHECKING:
    from m2bert.model.network import M2BertNetwork

# Tokens of windows that go through the model together, or one window.
TOKENS_AT_ONCE = 8192


class Window(NamedTuple):
    """Part of a text: its row, the places (n,) of its tokens there, what each counts (n,) float32, which are kept."""

    row: int
    places: Tensor
    factors: Tensor
    kept: slice


def pooled_in_windows(
    network: M2BertNetwork, input_ids: Tensor, attention_mask: Tensor | None, *, with_states: bool = True
) -> tuple[Tensor | None, Tensor]:
    """States (batch, seqlen, dim) and vectors (batch, embedding_size) of `input_ids (batch, seqlen)` of any length.

    The rows are [CLS], text, [SEP] and padding, which `attention_mask` hides. A token's state is the one it has in its
    window, [CLS]'s that of the first and [SEP]'s that of the last; padding's is 0. with_states: False gives None
    instead, which saves the memory. Raises M2BertError where a row has no token, and for a model of fewer than 3
    positions.
    """
    positions = network.config.max_position_embeddings
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if positions < 3 or not bool(mask.any(dim=1).all()):
        raise M2BertError(
            "M2BertModel: a text longer than the model is read in windows of at least 3 tokens, and every row has a "
            f"token, got {positions} positions and rows of {mask.sum(dim=1).tolist()} tokens; truncate the text"
        )
    windows = [window for row in range(len(input_ids)) for window in _windows_of(row, input_ids, mask, positions - 2)]
    states = network.embeddings.norm.weight.new_zeros(*input_ids.shape, network.config.hidden_size)
    totals: list[list[Tensor]] = [[] for _ in input_ids]
    counts: list[list[Tensor]] = [[] for _ in input_ids]
    width = positions if network.config.pad_to_max_length else 0
    for batch in _batches(windows, max(positions, TOKENS_AT_ONCE), width):
        ids = pad_sequence([input_ids[window.row, window.places] for window in batch], batch_first=True)
        lengths = torch.tensor([len(window.places) for window in batch], device=ids.device)
        own = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        hidden, _ = network.states(ids, own)
        for window, own_states, total, count in zip(
            batch, hidden, *_sums(network, hidden, ids, own, batch), strict=True
        ):
            totals[window.row].append(total)
            counts[window.row].append(count)
            if with_states:
                states[window.row, window.places[window.kept]] = own_states[: len(window.places)][window.kept]
    sums = torch.stack([torch.stack(parts).sum(dim=0) for parts in totals])
    pooled = sums / torch.stack([torch.stack(parts).sum() for parts in counts])[:, None]
    return states if with_states else None, network.projected(pooled) if network.config.sums_states else pooled


def _windows_of(row: int, input_ids: Tensor, mask: Tensor, room: int) -> Iterator[Window]:
    """The windows of one row; of a text that is short enough the only one."""
    places = mask[row].nonzero().squeeze(1)
    own, body = input_ids[row, places], len(places) - 2
    number = max(1, -(-body // room))
    occurrences = torch.bincount(own).double()
    occurrences[own[[0, -1]]] += number - 1  # every window's [CLS] and [SEP] count
    factors = repetition_weights(occurrences)[own].float()
    if number == 1:
        yield Window(row, places, factors, slice(None))
        return
    for start, stop in pairwise(1 + part * body // number for part in range(number + 1)):
        chosen = torch.tensor([0, *range(start, stop), body + 1], device=own.device)
        kept = slice(0 if start == 1 else 1, None if stop == body + 1 else -1)
        yield Window(row, places[chosen], factors[chosen], kept)


def _batches(windows: list[Window], budget: int, width: int) -> Iterator[list[Window]]:
    """Windows of similar length, the longest first, of at most `budget` tokens together with what pads them.

    width: the tokens that each takes in the model at least.
    """
    batch: list[Window] = []
    for window in sorted(windows, key=lambda window: -len(window.places)):
        if batch and (len(batch) + 1) * max(width, len(batch[0].places)) > budget:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _sums(
    network: M2BertNetwork, hidden: Tensor, ids: Tensor, mask: Tensor, batch: list[Window]
) -> tuple[Tensor, Tensor]:
    """What each window adds to its text's vector (windows, size) before the projection, and how much it counts."""
    if not network.config.sums_states:
        return network.pool(hidden, ids, mask).float(), torch.ones(len(batch), device=ids.device)
    weights = mask.float()
    if network.token_weights is not None:
        factors = pad_sequence([window.factors for window in batch], batch_first=True)
        weights = weights * network.token_weights(hidden) * factors
    with torch.autocast(hidden.device.type, enabled=False):
        total = (weights[:, None, :] @ network.features(hidden).float()).squeeze(1)
    return total, weights.sum(dim=1)
