"""Layers of M2-BERT: embeddings, sequence mixer, MLP, block, encoder, and the small heads.

Tests: tests/model/test_modeling.py, tests/model/test_parity.py, tests/model/test_weighted_pooling.py,
tests/model/test_bilinear_features.py, tests/model/test_term_weights.py.

A block replaces the hidden states by its sequence mixer's output (no residual around it) and adds its MLP:

    p = in_proj(u);  s = short_conv(p);  x1, x2, v = s
    o = x2 * long_conv(x1 * v) + residual_long_conv(u)
    h = out_proj(o);  block(u) = norm(h + mlp(h))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2bert.model.architecture import Architecture
from m2bert.model.filters import FilterBank, LongConv, kernel


class AddedEmbedding(nn.Embedding):
    """Positions and token types; a type of its own because it is initialised by a rule of its own."""


class MixerOutput(nn.Linear):
    """The last projection of a sequence mixer; a type of its own for the same reason."""


class Embeddings(nn.Module):
    """Word + position + token type embeddings, then LayerNorm."""

    def __init__(self, config: Architecture) -> None:
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

    def __init__(self, config: Architecture, layer: int) -> None:
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

    def __init__(self, config: Architecture) -> None:
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


class Block(nn.Module):
    """One layer: the sequence mixer replaces the stream, the MLP is added to it, LayerNorm last.

    `checkpoint`, where it is set, runs the layer in training so that the backward pass computes it again instead of
    keeping its states: torch.utils.checkpoint.checkpoint, its options bound.
    """

    checkpoint: Callable[..., Tensor] | None = None

    def __init__(self, config: Architecture, layer: int) -> None:
        super().__init__()
        self.sequence_mixer = SequenceMixer(config, layer)
        self.mlp = Mlp(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None, bank: FilterBank) -> Tensor:
        if self.checkpoint is not None and self.training:
            return self.checkpoint(self._layer, hidden, mask, bank)
        return self._layer(hidden, mask, bank)

    def _layer(self, hidden: Tensor, mask: Tensor | None, bank: FilterBank) -> Tensor:
        mixed = self.sequence_mixer(hidden, mask, bank)
        return self.norm(self.mlp(mixed) + mixed)


class Encoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.num_hidden_layers)])

    def forward(self, hidden: Tensor, mask: Tensor | None, bank: FilterBank) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden, mask, bank)
        return hidden


class MaskedLMHead(nn.Module):
    """Dense layer, GELU and LayerNorm before the tied decoder."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))


def positions_of_tokens(mask: Tensor) -> Tensor | None:
    """Position of every token counted over real tokens (batch, seqlen); None where that is 0, 1, 2, ..."""
    if not torch.compiler.is_compiling() and bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return None  # Padding on the right only: positions of padded places do not matter.
    return (mask.long().cumsum(dim=1) - 1).clamp_(min=0)
