"""The score of a query and a document in training: the whole, and the best pair of neighbouring passages, as in search.

m2bert.ranking.passages has the same for stores. Here gradients flow: of the passages only to the best pair of each
query and document, since search takes the maximum and no soft one.
Test: tests/train/test_scores.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2bert.encoders.passages import PASSAGE_TOKENS
from m2bert.train.losses import cosine_matrix


def passage_counts(attention_mask: Tensor) -> Tensor:
    """How many passages search cuts each text into (rows,) int64, 1 or more.

    attention_mask (rows, seqlen): nonzero at real tokens, two of which are [CLS] and [SEP].
    """
    tokens = (attention_mask != 0).sum(dim=1) - 2
    return (tokens / PASSAGE_TOKENS).round().long().clamp(min=1)


def passage_numbers(attention_mask: Tensor) -> Tensor:
    """The passage of its text that each token belongs to (rows, seqlen) int64, -1 at padding.

    Passages of a text are equal in length: search moves a cut to the nearest end of a line or sentence, which ids do
    not tell. [CLS] belongs to the first passage and [SEP] to the last.
    """
    real = attention_mask != 0
    tokens = (real.sum(dim=1, keepdim=True) - 2).clamp(min=1)
    place = (real.cumsum(dim=1) - 2).clamp(min=0).minimum(tokens - 1)
    # Passage i of n begins at token i * tokens // n.
    numbers = ((place + 1) * passage_counts(attention_mask)[:, None] - 1) // tokens
    return numbers.masked_fill(~real, -1)


def passage_sums(model: Any, states: Tensor, input_ids: Tensor, attention_mask: Tensor, most: int) -> Tensor:
    """What each passage adds to its text's vector (rows, most, embedding_size), 0 for those that are not there.

    states (rows, seqlen, dim): of `input_ids (rows, seqlen)` by `model`, an encoder whose pooling is a mean. The sum
    over a text's passages has the direction of its vector. In float32 also under autocast, in float64 for such states.
    """
    features = model.features(states)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(states.device.type, enabled=False):
        weights = model.pooling_weights(states, input_ids, attention_mask)
        passages = torch.arange(most, device=states.device)[:, None]
        members = (passage_numbers(attention_mask)[:, None, :] == passages) * weights[:, None, :]
        sums: Tensor = model.projected(members.to(features.dtype) @ features)
    return sums


def best_pairs(queries: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """The highest cosine (nq, nd) of each of `queries (nq, dim)` and two neighbouring passages of each document.

    sums (nd, passages, dim), 0 beyond the document's `counts (nd,)`. One passage alone is a pair by itself.
    """
    pairs = sums + F.pad(sums[:, 1:], (0, 0, 0, 1))
    places = torch.arange(sums.shape[1], device=sums.device)
    missing = places >= (counts - 1).clamp(min=1)[:, None]
    cosines = cosine_matrix(queries, pairs.flatten(0, 1)).unflatten(1, pairs.shape[:2])
    return cosines.masked_fill(missing, -torch.inf).amax(dim=2)


def score_matrix(queries: Tensor, sums: Tensor, counts: Tensor, share: float) -> Tensor:
    """Scores (nq, nd): 1 - share times the cosine of the whole, plus share times that of the best pair.

    queries (nq, dim); sums (nd, passages, dim) and counts (nd,) as in best_pairs.
    """
    whole = cosine_matrix(queries, sums.sum(dim=1))
    return whole if share == 0 else (1 - share) * whole + share * best_pairs(queries, sums, counts)
