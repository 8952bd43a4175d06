"""How token states and tokens become vectors: every formula of an embedding, for a batch and for parts of a text.

A batch of whole texts is pooled by mean_pool or weighted_pool and projected; its words are told by TermWeights. A text
that is read in windows is a sum over its tokens: repetition_weights say what each counts, and sums_of_runs adds up any
stretches of them.
Tests: tests/model/test_weighted_pooling.py, tests/model/test_bilinear_features.py, tests/model/test_projection.py,
tests/model/test_term_weights.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2bert.model.architecture import Architecture


class Pooler(nn.Module):
    """Dense layer and tanh on the state of the first token, as in the released retrieval models."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden))


class TokenWeights(nn.Linear):
    """What each token counts in weighted pooling, from its state: softplus(a . h + b), which starts as 1."""

    def __init__(self, config: Architecture) -> None:
        super().__init__(config.hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Weights (...) float32, above 0, of `hidden (..., dim)`; computed in float32 also under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.softplus(F.linear(hidden.float(), self.weight.float(), self.bias.float())).squeeze(-1)


class BilinearFeatures(nn.Module):
    """A state and products of two projections of it: what a mean is taken of where `bilinear_features` is above 0.

    Two tokens that differ overlap by chance by 1 / sqrt(dim), which in a long text hides the few that matter; in
    products the overlap is squared. Low-rank bilinear pooling (arXiv 1610.04325) without its last projection.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(config.bilinear_features, config.hidden_size))
        self.right = nn.Parameter(torch.empty(config.bilinear_features, config.hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `hidden (..., dim)` to (..., dim + bilinear_features)."""
        return torch.cat([hidden, F.linear(hidden, self.left) * F.linear(hidden, self.right)], dim=-1)


class Projection(nn.Linear):
    """The pooled vector times a matrix, without bias, so that what stretches of a text add to it is projected alike.

    Where its rows are ordered by what they tell, the first of them are an embedding too. m2bert.train.projection fits
    one without gradients; training moves it with the rest.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__(config.pooled_size, config.projection_dim, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map `pooled (..., pooled_size)` to (..., projection_dim), in its own dtype: sums are float32."""
        return F.linear(pooled, self.weight.to(pooled.dtype))


class TermWeights(nn.Module):
    """A sparse vector of a text's words: piece i of the vocabulary, n times in the text, has weight[i] log2(1 + n).

    Two texts overlap by the sum over the pieces they share, as in tf-idf with learned weights: no collection is needed
    to know what a word is worth. Sublinear term frequency: Manning, Raghavan and Schuetze 2008, section 6.4.1.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size))

    def resize(self, vocab_size: int) -> None:
        """Go on with so many pieces: those beyond are dropped, new ones weigh 1 as all do at first."""
        old = self.weight
        kept = old.detach()[:vocab_size]
        weight = torch.cat([kept, kept.new_ones(vocab_size - len(kept))])
        self.weight = nn.Parameter(weight, requires_grad=old.requires_grad)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map `input_ids (batch, seqlen)` int64 to (batch, vocab_size) float32; nothing counts where
        `attention_mask` is 0."""
        mask = None if attention_mask is None else attention_mask.bool()
        with torch.autocast(input_ids.device.type, enabled=False):
            counts = piece_counts(input_ids, mask, len(self.weight))
            return torch.log2(1 + counts) * self.weight.float()


def mean_pool(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean (batch, dim) of `hidden (batch, seqlen, dim)` over the positions where `mask` is True."""
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask.to(hidden.dtype)[:, None, :]
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (weights @ hidden).squeeze(1) / count.to(hidden.dtype)


def piece_counts(input_ids: Tensor, mask: Tensor | None, vocab_size: int) -> Tensor:
    """How often each id occurs in each row (batch, vocab_size) float32, those where `mask` is False left out."""
    real = torch.ones_like(input_ids, dtype=torch.float32) if mask is None else mask.float()
    return real.new_zeros(input_ids.shape[0], vocab_size).scatter_add_(1, input_ids, real)


def repetition_weights(counts: Tensor) -> Tensor:
    """log2(1 + n) / n for each n of `counts`, which are floating point, 0 for none: what one of n equal tokens counts.

    Together they count log2(1 + n), as in sublinear term frequency; one alone counts 1.
    """
    return torch.log2(1 + counts) / counts.clamp(min=1)


def repetition_factors(input_ids: Tensor, mask: Tensor | None, vocab_size: int) -> Tensor:
    """repetition_weights (batch, seqlen) float32 of how often each token's id occurs in its row, 0 at padding.

    `input_ids` (batch, seqlen) int64 below `vocab_size`; occurrences where `mask` is False are none.
    """
    factors = repetition_weights(piece_counts(input_ids, mask, vocab_size).gather(1, input_ids))
    return factors if mask is None else factors * mask


def weighted_pool(hidden: Tensor, weights: Tensor) -> Tensor:
    """Mean (batch, dim) float32 of `hidden (batch, seqlen, dim)` under `weights (batch, seqlen)`, 0 at padding."""
    with torch.autocast(hidden.device.type, enabled=False):
        total = (weights[:, None, :] @ hidden.float()).squeeze(1)
        return total / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def sums_of_runs(states: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Sums (runs, dim) of `states (n, dim)` times `weights (n,)` over the first counts[0] of them, the next, and so on.

    counts (runs,) int64. A product of a matrix and a vector for each run: many times faster on a CPU than index_add.
    """
    sums = states.new_zeros(len(counts), states.shape[1])
    start = 0
    for run, count in enumerate(counts.tolist()):
        torch.mv(states[start : start + count].T, weights[start : start + count], out=sums[run])
        start += count
    return sums
