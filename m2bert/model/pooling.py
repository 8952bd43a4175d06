"""How token states and tokens become one vector: every formula of an embedding, for a batch and for parts of a text.

A batch of whole texts is pooled by mean_pool, weighted_pool, LexicalFeatures and joined. A text that is read in windows
is a sum over its tokens: repetition_weights say what each counts, sums_of_runs and LexicalFeatures.sums add up any
stretches of them, and joined_scales make of their total what joined makes of a whole text.
Tests: tests/model/test_weighted_pooling.py, tests/model/test_bilinear_features.py,
tests/model/test_lexical_features.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2bert.model.architecture import Architecture

# A part of a vector below this norm counts as nothing.
SMALLEST_NORM = 1e-12


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


class LexicalFeatures(nn.Module):
    """Which pieces of the vocabulary a text holds: a vector of all pieces, hashed to `lexical_features` numbers.

    Piece i, n times in a text, counts weight[i] log2(1 + n) with a sign of its own in the number i mod size: two texts
    overlap by the sum over the pieces they share, as in tf-idf, and by chance where others meet, which the signs
    centre on 0. Ids that go by frequency, as a WordPiece trainer gives them, spread over the numbers better than
    random ones would. Source: feature hashing (arXiv 0902.2206), here of learned weights.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.size = config.lexical_features
        self.weight = nn.Parameter(torch.empty(config.vocab_size))

    def signed_weights(self) -> Tensor:
        """Weights (vocab_size,) times the sign of each piece, which depends on its id alone; float32."""
        return self.weight.float() * piece_signs(len(self.weight), self.weight.device)

    def resize(self, vocab_size: int) -> None:
        """Go on with so many pieces: those beyond are dropped, new ones weigh 1 as all do at first."""
        old = self.weight
        kept = old.detach()[:vocab_size]
        weight = torch.cat([kept, kept.new_ones(vocab_size - len(kept))])
        self.weight = nn.Parameter(weight, requires_grad=old.requires_grad)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map `input_ids (batch, seqlen)` int64 to (batch, lexical_features) float32; nothing counts where
        `attention_mask` is 0."""
        mask = None if attention_mask is None else attention_mask.bool()
        with torch.autocast(input_ids.device.type, enabled=False):
            counts = piece_counts(input_ids, mask, len(self.weight))
            values = torch.log2(1 + counts) * self.signed_weights()
            rows = F.pad(values, (0, -len(self.weight) % self.size))
            return rows.unflatten(1, (-1, self.size)).sum(dim=1)

    def sums(self, input_ids: Tensor, factors: Tensor, rows: Tensor, num_rows: int) -> Tensor:
        """What single tokens add, summed by row (num_rows, lexical_features) float32.

        Token i of `input_ids (n,)` int64 belongs to rows[i] and counts `factors (n,)` float64, which
        repetition_weights make. Over all tokens of a text the sum is what `forward` gives for it.
        """
        values = self.signed_weights()[input_ids].double() * factors
        sums = values.new_zeros(num_rows * self.size)
        return sums.index_add_(0, rows * self.size + input_ids % self.size, values).float().view(num_rows, self.size)


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


def piece_signs(vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """1 or -1 for every id below `vocab_size`, float32: bit 31 of id times 2654435761 (Knuth's multiplicative hash)."""
    bits = (torch.arange(vocab_size, device=device) * 2654435761 >> 31) & 1
    return 2.0 * bits.float() - 1.0


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


def joined(dense: Tensor, lexical: Tensor, lexical_share: float) -> Tensor:
    """Vectors (..., d + l) of unit norm of `dense (..., d)` and `lexical (..., l)`, float32.

    The cosine of two of them is 1 - lexical_share times the cosine of the first parts plus lexical_share times that of
    the second.
    """
    parts = [F.normalize(part.float(), dim=-1, eps=SMALLEST_NORM) for part in (dense, lexical)]
    return torch.cat([parts[0] * (1 - lexical_share) ** 0.5, parts[1] * lexical_share**0.5], dim=-1)


def joined_scales(total: Tensor, lexical_features: int, lexical_share: float) -> Tensor:
    """What makes of `total (dim,)`, sums with `lexical_features` behind them, what `joined` makes of its two parts.

    Scales (dim,) in the dtype of `total`, one number for each part: what a stretch of the text adds to the sum is
    scaled by the same, so that the scores of all stretches add up.
    """
    scales = torch.ones_like(total)
    split = len(total) - lexical_features
    for part, share in ((slice(0, split), 1 - lexical_share), (slice(split, None), lexical_share)):
        scales[part] = share**0.5 / torch.linalg.vector_norm(total[part]).clamp(min=SMALLEST_NORM)
    return scales


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
