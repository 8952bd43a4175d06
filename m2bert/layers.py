"""Layers of M2-BERT: embeddings, sequence mixer, MLP, block, encoder, and the small heads.

May import m2bert.configuration, m2bert.filters and m2ops. Tests: tests/test_modeling.py, test_parity.py,
test_weighted_pooling.py, test_bilinear_features.py, test_lexical_features.py.

A block replaces the hidden states by its sequence mixer's output (no residual around it) and adds its MLP:

    p = in_proj(u);  s = short_conv(p);  x1, x2, v = s
    o = x2 * long_conv(x1 * v) + residual_long_conv(u)
    h = out_proj(o);  block(u) = norm(h + mlp(h))
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from m2bert.configuration import M2BertConfig
from m2bert.filters import FilterBank, LongConv, kernel


class AddedEmbedding(nn.Embedding):
    """Positions and token types; a type of its own because it is initialised by a rule of its own."""


class MixerOutput(nn.Linear):
    """The last projection of a sequence mixer; a type of its own for the same reason."""


class Embeddings(nn.Module):
    """Word + position + token type embeddings, then LayerNorm."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, dim, padding_idx=config.pad_token_id)
        self.position_embeddings = AddedEmbedding(config.max_position_embeddings, dim)
        self.token_type_embeddings = AddedEmbedding(config.type_vocab_size, dim)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Embed `input_ids (batch, seqlen)` or `inputs_embeds (batch, seqlen, dim)`; (batch, seqlen, dim)."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        # Rows shared by the whole batch are added as such: no gather here, no scatter in the backward pass.
        if position_ids is None:
            places = self.position_embeddings.weight[: words.shape[1]]
        else:
            places = self.position_embeddings(position_ids)
        if token_type_ids is None:
            places = places + self.token_type_embeddings.weight[0]
        else:
            places = places + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.norm(words + places))


class ShortConv(nn.Module):
    """Parameters of the causal depthwise convolution of a mixer: weight (dim, width), bias (dim,)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, width))
        self.bias = nn.Parameter(torch.empty(dim))


class SequenceMixer(nn.Module):
    """Mixes along the sequence: projections around short and long convolutions with gates."""

    def __init__(self, config: M2BertConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_size
        self.norm = nn.LayerNorm(dim) if config.mixer_layer_norm else None
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.short_conv = ShortConv(3 * dim, config.short_conv_width)
        self.long_conv = LongConv(config, 2 * layer)
        self.residual_long_conv = LongConv(config, 2 * layer + 1) if config.residual_long_conv else None
        self.out_proj = MixerOutput(dim, dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob if config.mixer_layer_norm else 0.0)

    def forward(self, u: Tensor, mask: Tensor | None, bank: FilterBank) -> Tensor:
        """Mix `u (batch, seqlen, dim)`; where `mask (batch, seqlen)` is False, nothing is contributed."""
        if self.norm is not None:
            u = self.norm(u)
        seqlen = u.shape[1]
        k, k_rev = bank.filters(self.long_conv, seqlen)
        residual: tuple[Any, Any, Any] = (None, None, None)
        if self.residual_long_conv is not None:
            residual = (*bank.filters(self.residual_long_conv, seqlen), self.residual_long_conv.skip)
        p = self.in_proj(u)
        mixed = kernel(self.config, "monarch_mixer")(
            p,
            u.to(p.dtype),  # autocast on CUDA leaves layer norm's output in float32
            self.short_conv.weight,
            self.short_conv.bias,
            k,
            k_rev,
            self.long_conv.skip,
            *residual,
            mask=mask,
        )
        return self.out_proj(self.dropout(mixed))


class Mlp(nn.Module):
    """The dimension mixer: block-diagonal (or dense, `mlp_nblocks` = 1) two-layer MLP, gated or plain.

    w_in (nblocks, out, in) to the intermediate size (twice that with the gate), w_out back, bias (dim,).
    """

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.config = config
        nblocks, dim, inter = config.mlp_nblocks, config.hidden_size, config.intermediate_size
        width = 2 * inter if config.use_glu else inter
        self.w_in = nn.Parameter(torch.empty(nblocks, width // nblocks, dim // nblocks))
        self.w_out = nn.Parameter(torch.empty(nblocks, dim // nblocks, inter // nblocks))
        self.bias = nn.Parameter(torch.empty(dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `hidden (..., dim)` to the same shape."""
        if self.config.use_glu and not (self.training and self.dropout.p > 0):
            return kernel(self.config, "blockdiag_glu")(hidden, self.w_in, self.w_out, self.bias)
        matmul = kernel(self.config, "blockdiag_matmul")
        inner = matmul(hidden, self.w_in)
        if self.config.use_glu:
            gate, value = inner.chunk(2, dim=-1)
            inner = F.gelu(gate) * value
        else:
            inner = F.gelu(inner)
        return matmul(self.dropout(inner), self.w_out, self.bias)


class Block(GradientCheckpointingLayer):
    """One layer: the sequence mixer replaces the stream, the MLP is added to it, LayerNorm last."""

    def __init__(self, config: M2BertConfig, layer: int) -> None:
        super().__init__()
        self.sequence_mixer = SequenceMixer(config, layer)
        self.mlp = Mlp(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None, bank: FilterBank) -> Tensor:
        mixed = self.sequence_mixer(hidden, mask, bank)
        return self.norm(self.mlp(mixed) + mixed)


class Encoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.num_hidden_layers)])

    def forward(self, hidden: Tensor, mask: Tensor | None, bank: FilterBank) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden, mask, bank)
        return hidden


class Pooler(nn.Module):
    """Dense layer and tanh on the state of the first token, as in the released retrieval models."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden))


class TokenWeights(nn.Linear):
    """What each token counts in weighted pooling, from its state: softplus(a . h + b), which starts as 1."""

    def __init__(self, config: M2BertConfig) -> None:
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

    def __init__(self, config: M2BertConfig) -> None:
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

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.size = config.lexical_features
        self.weight = nn.Parameter(torch.empty(config.vocab_size))

    def signed_weights(self) -> Tensor:
        """Weights (vocab_size,) times the sign of each piece, which depends on its id alone; float32."""
        return self.weight.float() * piece_signs(len(self.weight), self.weight.device)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map `input_ids (batch, seqlen)` int64 to (batch, lexical_features) float32; nothing counts where
        `attention_mask` is 0."""
        mask = None if attention_mask is None else attention_mask.bool()
        with torch.autocast(input_ids.device.type, enabled=False):
            counts = piece_counts(input_ids, mask, len(self.weight))
            values = torch.log2(1 + counts) * self.signed_weights()
            rows = F.pad(values, (0, -len(self.weight) % self.size))
            return rows.view(len(rows), -1, self.size).sum(dim=1)


class MaskedLMHead(nn.Module):
    """Dense layer, GELU and LayerNorm before the tied decoder."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))


def positions_of_tokens(mask: Tensor) -> Tensor | None:
    """Position of every token counted over real tokens (batch, seqlen); None where that is 0, 1, 2, ..."""
    if bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return None  # Padding on the right only: positions of padded places do not matter.
    return (mask.long().cumsum(dim=1) - 1).clamp_(min=0)


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


def repetition_factors(input_ids: Tensor, mask: Tensor | None, vocab_size: int) -> Tensor:
    """log2(1 + n) / n (batch, seqlen) float32 for a token whose id occurs n times in its row, 0 at padding.

    All n occurrences together count log2(1 + n), as in sublinear term frequency; one alone counts 1. `input_ids`
    (batch, seqlen) int64 below `vocab_size`; occurrences where `mask` is False are none.
    """
    own = piece_counts(input_ids, mask, vocab_size).gather(1, input_ids)
    factors = torch.log2(1 + own) / own.clamp(min=1)
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
    parts = F.normalize(dense.float(), dim=-1), F.normalize(lexical.float(), dim=-1)
    return torch.cat([parts[0] * (1 - lexical_share) ** 0.5, parts[1] * lexical_share**0.5], dim=-1)


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
