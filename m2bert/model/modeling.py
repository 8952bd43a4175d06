"""M2-BERT as transformers models: M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification.

Tests: tests/model/test_modeling.py, tests/model/test_parity.py, tests/model/test_weighted_pooling.py,
tests/model/test_bilinear_features.py, tests/model/test_lexical_features.py.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from m2bert.errors import M2BertError
from m2bert.model.configuration import M2BertConfig
from m2bert.model.cross_entropy import cross_entropy_sum
from m2bert.model.filters import FilterBank, FilterOutput, LongConv, positional_features
from m2bert.model.layers import (
    AddedEmbedding,
    Block,
    Embeddings,
    Encoder,
    MaskedLMHead,
    MixerOutput,
    Mlp,
    ShortConv,
    positions_of_tokens,
)
from m2bert.model.pooling import (
    BilinearFeatures,
    LexicalFeatures,
    Pooler,
    TokenWeights,
    joined,
    mean_pool,
    repetition_factors,
    weighted_pool,
)

IGNORED_LABEL = -100
# Shares of the published scale that filters and the MLP start with under `identity_init`.
FILTER_GAIN, MLP_GAIN = 0.02, 0.2


class M2BertPreTrainedModel(PreTrainedModel):
    """Initialisation and loading rules shared by all M2-BERT models."""

    config_class = M2BertConfig
    base_model_prefix = "m2bert"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - transformers' own spelling
    _can_record_outputs = {"hidden_states": Block}  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["long_conv", "residual_long_conv", "token_weights"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std, identity = self.config.initializer_range, self.config.identity_init
        if identity and isinstance(module, MixerOutput):
            init.eye_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, BilinearFeatures):
            # States have the norm sqrt(dim): so many products then have it too.
            std = (self.config.hidden_size / self.config.bilinear_features) ** 0.25 * self.config.hidden_size**-0.5
            init.normal_(module.left, mean=0.0, std=std)
            init.normal_(module.right, mean=0.0, std=std)
        elif isinstance(module, LexicalFeatures):
            init.ones_(module.weight)
        elif isinstance(module, TokenWeights):
            init.zeros_(module.weight)
            init.constant_(module.bias, math.log(math.e - 1))  # softplus makes 1 of it
        elif isinstance(module, nn.Linear):
            small = FILTER_GAIN if identity and isinstance(module, FilterOutput) else 1.0
            init.normal_(module.weight, mean=0.0, std=std * small)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            self._init_embedding(module)
        elif isinstance(module, ShortConv):
            bound = module.weight.shape[1] ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias) if identity else init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, Mlp):
            self._init_mlp(module)
        elif isinstance(module, LongConv):
            init.ones_(module.skip) if identity else init.normal_(module.skip)
            init.copy_(module.features, positional_features(*module.features.shape))
            init.constant_(module.frequency, self.config.filter_w)

    def _init_embedding(self, module: nn.Embedding) -> None:
        silent = self.config.identity_init and isinstance(module, AddedEmbedding)
        init.normal_(module.weight, mean=0.0, std=0.0 if silent else self.config.initializer_range)
        if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
            init.zeros_(module.weight[module.padding_idx])

    def _init_mlp(self, module: Mlp) -> None:
        # The bound of a dense layer with the inputs of one block: what the reference's rescaling amounts to.
        for weight in (module.w_in, module.w_out):
            if weight.shape[0] == 1:
                init.normal_(weight, mean=0.0, std=self.config.initializer_range)
            else:
                bound = weight.shape[2] ** -0.5
                if self.config.identity_init and weight is module.w_out:
                    bound *= MLP_GAIN
                init.uniform_(weight, -bound, bound)
        init.zeros_(module.bias)


class M2BertModel(M2BertPreTrainedModel):
    """The encoder: token ids to hidden states and one vector per text."""

    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^decoder\.", r"^classifier\."]  # noqa: RUF012

    def __init__(self, config: M2BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.add_pooling = add_pooling_layer
        self.make_pooling_layers()
        self.filter_bank = FilterBank(config)
        self.post_init()

    def make_pooling_layers(self) -> None:
        """The layers that `config.pooling` has, not initialised, in place of those there are."""
        pooling = self.config.pooling if self.add_pooling else ""
        self.pooler = Pooler(self.config) if pooling == "cls_dense" else None
        self.token_weights = TokenWeights(self.config) if pooling == "weighted" else None
        bilinear, lexical = (
            self.add_pooling and number > 0 for number in (self.config.bilinear_features, self.config.lexical_features)
        )
        self.bilinear_features = BilinearFeatures(self.config) if bilinear else None
        self.lexical_features = LexicalFeatures(self.config) if lexical else None

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def cached_filters(self) -> AbstractContextManager[None]:
        """Context in which, without gradients, filters are made once per transform length and reused.

        Outside of it evaluation without gradients keeps them too, but looks each time whether parameters
        changed. The memory is bounded by the environment's M2OPS_SPECTRUM_CACHE_MB (default 1024) and freed
        at the end.
        """
        return self.filter_bank.pin()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode `input_ids (batch, seqlen)` int64 or `inputs_embeds (batch, seqlen, dim)`.

        `attention_mask (batch, seqlen)` is nonzero at real tokens, on whichever side the padding is: padding
        changes nothing for them. Returns last_hidden_state (batch, seqlen, dim) and pooler_output (batch,
        dim) by `config.pooling`, not normalised. Raises M2BertError on inputs that are too long or do not fit
        together.
        """
        seqlen = self._check_inputs(input_ids, attention_mask, inputs_embeds)
        mask = None if attention_mask is None else attention_mask.bool()
        if mask is not None and bool(mask.all()):
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
        hidden = self.encoder(hidden, None if self.config.pad_to_max_length else mask, self.filter_bank)
        hidden = hidden[:, :seqlen]
        ids = None if input_ids is None else input_ids[:, :seqlen]
        pooled = self._pool(hidden, ids, mask) if self.add_pooling else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def _check_inputs(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None
    ) -> int:
        """Sequence length of the inputs; raises M2BertError where they cannot be encoded."""
        if (input_ids is None) == (inputs_embeds is None):
            raise M2BertError("M2BertModel: exactly one of input_ids and inputs_embeds must be given")
        if input_ids is None and not (self.token_weights is None and self.lexical_features is None):
            raise M2BertError(
                "M2BertModel: weighted pooling and lexical features must know which tokens there are, got "
                "inputs_embeds; give input_ids"
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
        return self.token_weights(hidden) * repetition_factors(input_ids, mask, rows)

    def features(self, hidden: Tensor) -> Tensor:
        """What embeddings are means of: `hidden (..., dim)` with its bilinear features behind it, if there are any."""
        return hidden if self.bilinear_features is None else self.bilinear_features(hidden)

    def _pool(self, hidden: Tensor, input_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        pooled = self._pool_states(hidden, input_ids, mask)
        if self.lexical_features is None:
            return pooled
        assert input_ids is not None
        lexical = self.lexical_features(input_ids, mask)
        return joined(pooled, lexical, self.config.lexical_share).to(hidden.dtype)

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


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """The encoder with a masked language modelling head, its decoder tied to the word embeddings."""

    _tied_weights_keys = {"decoder.weight": "m2bert.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.m2bert = M2BertModel(config, add_pooling_layer=False)
        self.head = MaskedLMHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Score every vocabulary entry; with `labels (batch, seqlen)` (-100: none) the cross-entropy as well.

        Without labels, logits are (batch, seqlen, vocab). With labels only the labelled positions are
        computed: logits are (labelled, vocab) in row-major order of the positions. The loss is the mean over
        the labelled positions, or their sum divided by `num_items_in_batch`; 0 if there are none.
        """
        outputs = self.m2bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        hidden, loss = outputs.last_hidden_state, None
        if labels is None:
            logits = self.decoder(self.head(hidden))
        else:
            flat = labels.reshape(-1)
            chosen = (flat != IGNORED_LABEL).nonzero().squeeze(1)
            logits = self.decoder(self.head(hidden.flatten(0, 1).index_select(0, chosen)))
            total = cross_entropy_sum(logits, flat.index_select(0, chosen))
            loss = total / (max(chosen.numel(), 1) if num_items_in_batch is None else num_items_in_batch)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class M2BertForSequenceClassification(M2BertPreTrainedModel):
    """The encoder with a linear classifier on its pooled vector."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.m2bert = M2BertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.embedding_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (batch, num_labels); with `labels` the loss by `config.problem_type` or their dtype."""
        outputs = self.m2bert(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


AutoConfig.register(M2BertConfig.model_type, M2BertConfig, exist_ok=True)
AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(M2BertConfig, M2BertForSequenceClassification, exist_ok=True)
