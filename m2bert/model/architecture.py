"""The sizes and switches of a network, checked: Architecture. Needs neither torch nor transformers.

M2BertConfig (m2bert.model.configuration) is the same fields as an ordinary transformers configuration.
Test: tests/model/test_configuration.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m2bert.errors import M2BertError

MODEL_TYPE = "m2_bert"
POOLINGS = ("mean", "cls", "cls_dense", "weighted")
KERNELS = ("m2ops", "reference")
WINDOWS = ("exponential", "multiscale")
FEATURES = ("bilinear_features", "projection_dim")  # 0 for none
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
# Far beyond any model there is: a configuration that says more would take the memory or the day before it is found
# not to fit its weights.
MOST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 16,
    "num_hidden_layers": 1000,
    "intermediate_size": 1 << 20,
    "max_position_embeddings": 1 << 22,
    "type_vocab_size": 1 << 16,
    "filter_order": 1 << 14,
    "mlp_nblocks": 1 << 16,
    "filter_emb_dim": 1 << 14,
    "bilinear_features": 1 << 20,
    "projection_dim": 1 << 20,
}


@dataclass(repr=False, eq=False)
class Architecture:
    """What a network is made from. The fields are described in m2bert.model.configuration.M2BertConfig.

    Raises M2BertError when a field is out of range or two fields do not fit together.
    """

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
    projection_dim: int = 0
    term_weights: bool = False
    pad_to_max_length: bool = False
    kernels: str = "m2ops"
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        self.check()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Architecture:
        """The architecture in the fields of a config.json; those of transformers alone are passed over."""
        known = {field.name for field in dataclasses.fields(Architecture)}
        return cls(**{name: value for name, value in fields.items() if name in known})

    @property
    def pooled_size(self) -> int:
        """Length of what is pooled: hidden_size and the bilinear features."""
        return self.hidden_size + self.bilinear_features

    @property
    def embedding_size(self) -> int:
        """Length of an embedding: projection_dim, or without a projection what is pooled."""
        return self.projection_dim or self.pooled_size

    @property
    def sums_states(self) -> bool:
        """Whether embeddings are sums over tokens, so that they have parts: pooling by a mean."""
        return self.pooling in ("mean", "weighted")

    @property
    def counts_repetitions(self) -> bool:
        """Whether it matters for an embedding how often a token occurs in its text."""
        return self.pooling == "weighted"

    def check(self) -> None:
        """Raise M2BertError when a field is out of range or two fields do not fit together."""
        self._check_ranges()
        self._check_choices()
        self._check_features()

    def _check_ranges(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise M2BertError(f"M2BertConfig: {name} must be a whole number of at least 1, got {value!r}")
        for name in FEATURES:
            extra = getattr(self, name)
            if isinstance(extra, bool) or not isinstance(extra, int) or extra < 0:
                raise M2BertError(f"M2BertConfig: {name} must be a whole number of at least 0, got {extra!r}")
        for field in dataclasses.fields(Architecture):
            value = getattr(self, field.name)
            if field.name in MOST and isinstance(value, int) and value > MOST[field.name]:
                raise M2BertError(
                    f"M2BertConfig: {field.name} must be at most {MOST[field.name]:,}, got {_few_digits(value)}"
                )
            # Annotations are text here: `from __future__ import annotations`.
            if field.type == "bool" and not isinstance(value, bool):
                raise M2BertError(f"M2BertConfig: {field.name} must be true or false, got {value!r}")
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if (field.type == "int" and not is_whole) or (
                field.type == "int | None" and not (value is None or is_whole)
            ):
                raise M2BertError(f"M2BertConfig: {field.name} must be a whole number, got {value!r:.80}")
            if field.type == "float" and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise M2BertError(f"M2BertConfig: {field.name} must be a number, got {value!r}")
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

    def _check_features(self) -> None:
        for name in FEATURES:
            if getattr(self, name) > 0 and not self.sums_states:
                raise M2BertError(
                    f"M2BertConfig: {name} needs pooling mean or weighted, got {self.pooling!r}; set it to 0"
                )


def _few_digits(value: int) -> str:
    return f"{value:,}" if value < 10**15 else "a number of more than 15 digits"


# The fields that there were when fingerprints began to name stores: always hashed, whatever their values.
FIRST_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings",
    "type_vocab_size", "hidden_dropout_prob", "layer_norm_eps", "initializer_range", "identity_init", "pad_token_id",
    "bidirectional", "residual_long_conv", "short_conv_width", "filter_order", "filter_emb_dim", "filter_w",
    "filter_window", "use_glu", "mlp_nblocks", "mixer_layer_norm", "pooling", "bilinear_features", "pad_to_max_length",
    "tie_word_embeddings",
)  # fmt: skip
# How numbers are computed is no property of the model.
UNNAMED_FIELDS = ("kernels",)


def fields_of_fingerprint(config: Architecture) -> dict[str, Any]:
    """What a fingerprint says of a configuration: the first fields, and of later ones those that are not the default.

    A field that a later version adds, left at its default, thus leaves the fingerprints of all models as they were.
    """
    named: dict[str, Any] = {"model_type": MODEL_TYPE}
    for field in dataclasses.fields(Architecture):
        value = getattr(config, field.name)
        if field.name in UNNAMED_FIELDS:
            continue
        if field.name in FIRST_FIELDS or value != field.default:
            named[field.name] = value
    return named
