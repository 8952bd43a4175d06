"""M2-BERT as transformers models: M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification.

`import m2bert` is enough for transformers' Auto classes to know them.
Tests: tests/model/test_modeling.py, tests/model/test_parity.py, tests/model/test_weighted_pooling.py,
tests/model/test_bilinear_features.py, tests/model/test_term_weights.py, tests/model/test_auto_classes.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m2bert.errors import M2BertError, missing_package
from m2bert.model.checkpoints import EXACT
from m2bert.model.companions import describe, is_described, name_code
from m2bert.model.configuration import M2BertConfig
from m2bert.model.cross_entropy import cross_entropy_sum
from m2bert.model.filters import FilterOutput, LongConv, positional_features
from m2bert.model.layers import (
    AddedEmbedding,
    Block,
    MaskedLMHead,
    MixerOutput,
    Mlp,
    ShortConv,
)
from m2bert.model.long_texts import pooled_in_windows
from m2bert.model.network import M2BertNetwork
from m2bert.model.pooling import BilinearFeatures, TermWeights, TokenWeights

try:
    from transformers import (
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
except ImportError as error:
    raise missing_package("M2BertModel", "transformers", "transformers") from error

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
    _keep_in_fp32_modules_strict = list(EXACT)  # noqa: RUF012

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """What activation_checkpointing_enable calls: every n-th block is computed again in the backward pass."""
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        for number, block in enumerate(blocks):
            block.checkpoint = gradient_checkpointing_func if enable and number % every_n_layers == 0 else None

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """As of transformers; sentence-transformers too then opens the folder with our pooling.

        A folder that sentence-transformers itself has described is left so.
        """
        super().save_pretrained(save_directory, **options)
        name_code(save_directory)
        if not is_described(save_directory):
            describe(save_directory, self.config)

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether a block is computed again in the backward pass."""
        return any(isinstance(module, Block) and module.checkpoint is not None for module in self.modules())

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
        elif isinstance(module, TermWeights):
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


class M2BertModel(M2BertNetwork, M2BertPreTrainedModel):
    """The encoder: token ids to hidden states and one vector per text."""

    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^decoder\.", r"^classifier\."]  # noqa: RUF012

    if TYPE_CHECKING:
        config: M2BertConfig

        def __getattr__(self, name: str) -> Any:
            """What transformers, which has no types, gives all its models."""

    def __init__(self, config: M2BertConfig, add_pooling_layer: bool = True) -> None:
        PreTrainedModel.__init__(self, config)
        self.make_layers(add_pooling_layer)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value
        if self.term_weights is not None:
            self.term_weights.resize(value.num_embeddings)

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
        embedding_size) by `config.pooling`, not normalised. More `input_ids` than `config.max_position_embeddings` are
        read in windows (m2bert.model.long_texts), except where torch compiles or positions are given. Raises
        M2BertError on inputs that are too long or do not fit together.
        """
        if input_ids is not None and self._needs_windows(input_ids, token_type_ids, position_ids):
            states, vectors = pooled_in_windows(self, input_ids, attention_mask)
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=vectors)
        hidden, pooled = M2BertNetwork.forward(
            self, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def text_vectors(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """What `forward` gives as pooler_output, as (batch, 1, embedding_size): one state for each text.

        sentence-transformers calls this (m2bert.model.companions): its own pooling then has nothing to choose from.
        """
        if self._needs_windows(input_ids, token_type_ids, None):
            return pooled_in_windows(self, input_ids, attention_mask, with_states=False)[1][:, None]
        return self(input_ids, attention_mask, token_type_ids, return_dict=True).pooler_output[:, None]

    def term_vectors(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Texts' words as learned weights (batch, 1, vocab_size) float32 of unit norm, as Embedder.encode_sparse.

        Each row is [CLS], text, [SEP] and padding, of any length; the first and the last token do not count. A text of
        no word of weight is all 0. Called by sentence-transformers, as `text_vectors`. Raises M2BertError for a model
        without term weights.
        """
        if self.term_weights is None:
            raise M2BertError("M2BertModel: this model has no term weights; fine-tune it with term_weights")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        place = mask.long().cumsum(dim=1)
        within = mask.bool() & (place > 1) & (place < place[:, -1:])
        return F.normalize(self.term_weights(input_ids, within), dim=1)[:, None]

    def _needs_windows(self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> bool:
        """Whether texts are longer than the model and can be read in windows."""
        if input_ids.dim() != 2 or position_ids is not None or not self.add_pooling:
            return False
        too_long = input_ids.shape[0] > 0 and input_ids.shape[1] > self.config.max_position_embeddings
        if not too_long or torch.compiler.is_compiling():
            return False
        return token_type_ids is None or not bool(token_type_ids.any())


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
        wanted = {name: kwargs.pop(name) for name in ("output_hidden_states",) if name in kwargs}
        outputs = self.m2bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **wanted
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(M2BertConfig, M2BertForSequenceClassification, exist_ok=True)
