"""The configuration of an M2-BERT model: M2BertConfig, an ordinary transformers configuration.

Test: tests/model/test_configuration.py.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from m2bert.errors import M2BertError

POOLINGS = ("mean", "cls", "cls_dense", "weighted")
KERNELS = ("m2ops", "reference")
WINDOWS = ("exponential", "multiscale")
COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "filter_order",
    "mlp_nblocks",
)


class M2BertConfig(PreTrainedConfig):
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
        lexical_features: numbers behind these that tell which pieces of the vocabulary a text holds, each piece with a
            learned weight and hashed into one of them; 0 for none.
        lexical_share: share of the lexical features in a cosine of two vectors, the rest being that of the states.
        pad_to_max_length: as the released models were trained: inputs are padded to `max_position_embeddings`
            and the padding flows through the sequence mixer.
        kernels: "m2ops" for the kernels, "reference" for their plain-torch meaning.

    Raises M2BertError when a field is out of range or two fields do not fit together.
    """

    model_type = "m2_bert"

    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 2048
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    identity_init: bool = False
    pad_token_id: int | None = 0
    bidirectional: bool = True
    residual_long_conv: bool = True
    short_conv_width: int = 3
    filter_order: int = 128
    filter_emb_dim: int = 5
    filter_w: float = 10.0
    filter_window: str = "exponential"
    use_glu: bool = True
    mlp_nblocks: int = 4
    mixer_layer_norm: bool = False
    pooling: str = "mean"
    bilinear_features: int = 0
    lexical_features: int = 0
    lexical_share: float = 0.75
    pad_to_max_length: bool = False
    kernels: str = "m2ops"
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check_ranges()
        self._check_choices()

    @property
    def embedding_size(self) -> int:
        """Length of an embedding: hidden_size, the bilinear and the lexical features."""
        return self.hidden_size + self.bilinear_features + self.lexical_features

    def _check_ranges(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise M2BertError(f"M2BertConfig: {name} must be a whole number of at least 1, got {value!r}")
        if not 2 <= self.short_conv_width <= 7:
            raise M2BertError(f"M2BertConfig: short_conv_width must be 2 to 7, got {self.short_conv_width!r}")
        if self.filter_emb_dim < 3 or self.filter_emb_dim % 2 == 0:
            raise M2BertError(
                f"M2BertConfig: filter_emb_dim must be odd and at least 3 (time, then cosines and sines), "
                f"got {self.filter_emb_dim!r}"
            )
        if not 0.0 <= self.hidden_dropout_prob < 1.0:
            raise M2BertError(f"M2BertConfig: hidden_dropout_prob must be in [0, 1), got {self.hidden_dropout_prob!r}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise M2BertError(
                f"M2BertConfig: pad_token_id must be a row of the vocabulary of {self.vocab_size}, "
                f"got {self.pad_token_id!r}"
            )

    def _check_choices(self) -> None:
        for name in ("bilinear_features", "lexical_features"):
            extra = getattr(self, name)
            if isinstance(extra, bool) or not isinstance(extra, int) or extra < 0:
                raise M2BertError(f"M2BertConfig: {name} must be a whole number of at least 0, got {extra!r}")
            if extra > 0 and self.pooling not in ("mean", "weighted"):
                raise M2BertError(
                    f"M2BertConfig: {name} need pooling mean or weighted, got {self.pooling!r}; set them to 0"
                )
        share = self.lexical_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 < share < 1.0:
            raise M2BertError(f"M2BertConfig: lexical_share must lie between 0 and 1, got {share!r}")
        for name, size in (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)):
            if size % self.mlp_nblocks:
                raise M2BertError(
                    f"M2BertConfig: {name} must be a multiple of mlp_nblocks ({self.mlp_nblocks}), got {size}"
                )
        for name, choices in (("pooling", POOLINGS), ("kernels", KERNELS), ("filter_window", WINDOWS)):
            if getattr(self, name) not in choices:
                raise M2BertError(
                    f"M2BertConfig: {name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
