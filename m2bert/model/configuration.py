"""The configuration of an M2-BERT model: M2BertConfig, an ordinary transformers configuration.

Test: tests/model/test_configuration.py.
"""

from __future__ import annotations

from typing import Any

from m2bert.errors import missing_package
from m2bert.model.architecture import MODEL_TYPE, Architecture

try:
    from transformers import AutoConfig, PreTrainedConfig
except ImportError as error:
    raise missing_package("M2BertConfig", "transformers", "transformers") from error


class M2BertConfig(Architecture, PreTrainedConfig):
    """Sizes and switches of an M2-BERT encoder; the defaults are the published 80M model of 2,048 tokens.

    Fields
        vocab_size, hidden_size, num_hidden_layers, intermediate_size, max_position_embeddings,
        type_vocab_size,
        hidden_dropout_prob, layer_norm_eps, initializer_range, pad_token_id, tie_word_embeddings: as in BERT.
        identity_init: a fresh model starts near the identity: mixers pass their input on, filters and the MLP are
            small, positions and token types are zero (docs/training.md); False is the published
            initialisation.
        bidirectional: long convolutions also see later tokens.
        residual_long_conv: a second long convolution carries the un-projected input of each sequence mixer.
        short_conv_width: taps of the causal short convolution (2 to 7).
        filter_order, filter_emb_dim, filter_w: width, input features (odd) and initial sine frequency of the
            networks that generate the long filters.
        filter_window: "exponential" as in the reference, whose memory is a share of `max_position_embeddings` in
            every channel; "multiscale" from one token up, of sum 1, which small budgets of training need.
        use_glu: gated MLP; otherwise a plain two-layer MLP.
        mlp_nblocks: diagonal blocks of the weights of the MLP; 1 is dense.
        mixer_layer_norm: legacy layer norm on the input of the sequence mixer.
        pooling: "mean" over real tokens, "cls" (state of the first token), "cls_dense" (then dense, tanh) or
            "weighted": a mean in which each state has a learned weight, and tokens that repeat count less.
        bilinear_features: products of two projections of a state that are put behind it before a mean is taken, which
            makes vectors that much longer; 0 for none.
        projection_dim: length of an embedding, where a matrix without bias makes it of what was pooled; 0 without one.
        term_weights: whether there is a weight for each piece of the vocabulary, for sparse vectors of a text's words.
        pad_to_max_length: as the released models were trained: inputs are padded to `max_position_embeddings`
            and the padding flows through the sequence mixer.
        kernels: "m2ops" for the kernels, "reference" for their plain-torch meaning.

    Raises M2BertError when a field is out of range or two fields do not fit together.
    """

    model_type = MODEL_TYPE

    def __post_init__(self, **kwargs: Any) -> None:
        PreTrainedConfig.__post_init__(self, **kwargs)
        self.check()


AutoConfig.register(MODEL_TYPE, M2BertConfig, exist_ok=True)
