"""The whole forward pass in plain torch: M2BertNetwork, token ids to states, pooled vectors and sums over passages.

transformers is not imported here, which takes as long as encoding some hundred texts: m2bert.encoders runs a network as
it is, m2bert.model.modeling wraps it as a transformers model.
Tests: tests/model/test_modeling.py, tests/model/test_network.py, tests/model/test_parity.py.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2bert.errors import M2BertError
from m2bert.model.architecture import Architecture
from m2bert.model.filters import FilterBank
from m2bert.model.layers import Embeddings, Encoder, positions_of_tokens
from m2bert.model.pooling import (
    BilinearFeatures,
    Pooler,
    Projection,
    TermWeights,
    TokenWeights,
    mean_pool,
    repetition_factors,
    sums_of_runs,
    weighted_pool,
)

Module = TypeVar("Module", bound=nn.Module)


class M2BertNetwork(nn.Module):
    """The encoder: token ids to hidden states, one vector per text, and what stretches of a text add to its vector."""

    config: Architecture

    def __init__(self, config: Architecture, add_pooling: bool = True) -> None:
        nn.Module.__init__(self)  # by name: m2bert.model.modeling.M2BertModel has another class in between
        self.config = config
        self.make_layers(add_pooling)

    def make_layers(self, add_pooling: bool) -> None:
        """All layers, not initialised."""
        self.embeddings = Embeddings(self.config)
        self.encoder = Encoder(self.config)
        self.add_pooling = add_pooling
        self.make_pooling_layers()
        self.filter_bank = FilterBank(self.config)

    def make_pooling_layers(self) -> None:
        """The layers that `config.pooling` has, not initialised, in place of those there are."""
        pooling = self.config.pooling if self.add_pooling else ""
        self.pooler = Pooler(self.config) if pooling == "cls_dense" else None
        self.token_weights = TokenWeights(self.config) if pooling == "weighted" else None
        bilinear, projected, terms = (
            self.add_pooling and bool(field)
            for field in (self.config.bilinear_features, self.config.projection_dim, self.config.term_weights)
        )
        self.bilinear_features = BilinearFeatures(self.config) if bilinear else None
        self.projection = Projection(self.config) if projected else None
        self.term_weights = TermWeights(self.config) if terms else None

    def cached_filters(self) -> AbstractContextManager[None]:
        """Context in which, without gradients, filters are made once per transform length and reused.

        Outside of it evaluation without gradients keeps them too, but looks each time whether parameters
        changed. The memory is bounded by the environment's M2OPS_SPECTRUM_CACHE_MB (default 1024, on a GPU an
        eighth of its memory) and freed at the end.
        """
        return self.filter_bank.pin()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        bank: FilterBank | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Encode `input_ids (batch, seqlen)` int64 or `inputs_embeds (batch, seqlen, dim)`.

        `attention_mask (batch, seqlen)` is nonzero at real tokens, on whichever side the padding is: padding
        changes nothing for them. bank: where long filters are kept, by default with the network. Returns states
        (batch, seqlen, dim) and vectors (batch, embedding_size) by `config.pooling`, not normalised, None without
        pooling. Raises M2BertError on inputs that are too long or do not fit together.
        """
        hidden, mask = self.states(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, bank=bank)
        ids = None if input_ids is None else input_ids[:, : hidden.shape[1]]
        return hidden, self.pool(hidden, ids, mask) if self.add_pooling else None

    def states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        bank: FilterBank | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """States (batch, seqlen, dim) as in `forward`, and the mask as bool, None where every token is real."""
        seqlen = self._check_inputs(input_ids, attention_mask, inputs_embeds)
        mask = None if attention_mask is None else attention_mask.bool()
        # A graph cannot branch on values; masks that hide nothing change nothing, they only take time.
        if mask is not None and not torch.compiler.is_compiling() and bool(mask.all()):
            mask = None
        if self.config.pad_to_max_length:
            input_ids, inputs_embeds, token_type_ids, position_ids = self._pad_to_max_length(
                seqlen, input_ids, inputs_embeds, token_type_ids, position_ids
            )
        elif mask is not None and position_ids is None:
            position_ids = positions_of_tokens(mask)
        hidden = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        mixed = None if self.config.pad_to_max_length else mask
        hidden = self.encoder(hidden, mixed, self.filter_bank if bank is None else bank)
        return hidden[:, :seqlen], mask

    def sums(
        self,
        input_ids: Tensor,
        mask: Tensor,
        counts: Tensor,
        factors: Tensor | None = None,
        *,
        bank: FilterBank | None = None,
    ) -> Tensor:
        """What stretches of texts add to their vectors (stretches, embedding_size) float32.

        `input_ids (batch, seqlen)`, `mask` bool alike: windows of texts. counts (stretches,) int64: the first stretch
        is the first counts[0] real tokens, row by row, and so on. factors (real tokens,) float64: what each counts for
        being repeated (repetition_weights over its whole text), needed where `config.counts_repetitions`. Poolings
        that are no mean have no stretches: a vector per window. The sum over all stretches of a text is a vector of the
        direction that `forward` gives a whole text.
        """
        hidden, _ = self.states(input_ids, mask, bank=bank)
        if not self.config.sums_states:
            return self.pool(hidden, input_ids, mask).float()
        chosen = hidden[mask]
        weights = torch.ones(len(chosen), device=chosen.device, dtype=torch.float32)
        if self.token_weights is not None:
            weights = (self.token_weights(chosen) * factors).float()
        return self.projected(sums_of_runs(self.features(chosen).float(), weights, counts))

    def _check_inputs(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None
    ) -> int:
        """Sequence length of the inputs; raises M2BertError where they cannot be encoded."""
        if (input_ids is None) == (inputs_embeds is None):
            raise M2BertError("M2BertModel: exactly one of input_ids and inputs_embeds must be given")
        if input_ids is None and self.token_weights is not None:
            raise M2BertError(
                "M2BertModel: weighted pooling must know which tokens there are, got inputs_embeds; give input_ids"
            )
        given = input_ids if inputs_embeds is None else inputs_embeds
        axes = 2 if inputs_embeds is None else 3
        assert given is not None
        if given.dim() != axes:
            raise M2BertError(
                f"M2BertModel: input_ids must have shape (batch, seqlen) and inputs_embeds "
                f"(batch, seqlen, dim), got {tuple(given.shape)}"
            )
        if not 1 <= given.shape[1] <= self.config.max_position_embeddings:
            raise M2BertError(
                f"M2BertModel: a sequence must have 1 to {self.config.max_position_embeddings} tokens, got "
                f"{given.shape[1]}; truncate it, split it into windows, or use a model of more positions"
            )
        if attention_mask is not None and attention_mask.shape != given.shape[:2]:
            raise M2BertError(
                f"M2BertModel: attention_mask must have shape (batch, seqlen) = {tuple(given.shape[:2])}, "
                f"got {tuple(attention_mask.shape)}"
            )
        return given.shape[1]

    def _pad_to_max_length(
        self,
        seqlen: int,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        extra = self.config.max_position_embeddings - seqlen
        pad = self.config.pad_token_id or 0
        if input_ids is not None:
            input_ids = F.pad(input_ids, (0, extra), value=pad)
        if inputs_embeds is not None:
            row = self.embeddings.word_embeddings.weight[pad].to(inputs_embeds.dtype)
            inputs_embeds = torch.cat([inputs_embeds, row.expand(inputs_embeds.shape[0], extra, -1)], dim=1)
        if token_type_ids is not None:
            token_type_ids = F.pad(token_type_ids, (0, extra))
        if position_ids is not None:
            rest = torch.arange(seqlen, seqlen + extra, device=position_ids.device)
            position_ids = torch.cat([position_ids, rest.expand(position_ids.shape[0], -1)], dim=1)
        return input_ids, inputs_embeds, token_type_ids, position_ids

    def pooling_weights(self, hidden: Tensor, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each token counts in the mean (batch, seqlen) float32: 0 where `mask` is False, else above 0.

        `hidden (batch, seqlen, dim)` are the last states of `input_ids (batch, seqlen)`. Under weighted pooling a
        learned weight of the state times m2bert.model.pooling.repetition_factors; otherwise 1.
        """
        mask = None if mask is None else mask.bool()
        if self.token_weights is None:
            return torch.ones_like(input_ids, dtype=torch.float32) if mask is None else mask.float()
        rows = self.embeddings.word_embeddings.weight.shape[0]
        weights: Tensor = self.token_weights(hidden) * repetition_factors(input_ids, mask, rows)
        return weights

    def features(self, hidden: Tensor) -> Tensor:
        """What embeddings are means of: `hidden (..., dim)` with its bilinear features behind it, if there are any."""
        return hidden if self.bilinear_features is None else self.bilinear_features(hidden)

    def projected(self, pooled: Tensor) -> Tensor:
        """`pooled (..., pooled_size)` as an embedding (..., embedding_size), by the projection if there is one."""
        return pooled if self.projection is None else self.projection(pooled)

    def pool(self, hidden: Tensor, input_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """Vectors (batch, embedding_size) of whole texts from their states, by `config.pooling`; not normalised."""
        return self.projected(self._pool_states(hidden, input_ids, mask))

    def _pool_states(self, hidden: Tensor, input_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        if self.config.pooling == "mean":
            return mean_pool(self.features(hidden), mask)
        if self.config.pooling == "weighted":
            assert input_ids is not None
            weights = self.pooling_weights(hidden, input_ids, mask)
            return weighted_pool(self.features(hidden), weights).to(hidden.dtype)
        if mask is None:
            first = hidden[:, 0]
        else:
            first = hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.int().argmax(dim=1)]
        return first if self.pooler is None else self.pooler(first)


def for_evaluation(module: Module) -> Module:
    """`module` itself if all of it is in evaluation mode, else a view of it that is: the same parameters and buffers.

    The module stays as it is, so that somebody may train it at the same time.
    """
    return _evaluating(module) if any(part.training for part in module.modules()) else module


def _evaluating(module: Module) -> Module:
    view = copy.copy(module)
    view.training = False
    children = module._modules.items()
    view._modules = {name: None if child is None else _evaluating(child) for name, child in children}
    return view
