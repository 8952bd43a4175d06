"""M2BertConfig: defaults, rules, round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2bert.errors import M2BertError
from m2bert.model.configuration import M2BertConfig


def test_configuration_defaults_are_the_published_80m_model() -> None:
    config = M2BertConfig()
    sizes = (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.intermediate_size)
    assert sizes == (30528, 768, 12, 3072)
    assert (config.max_position_embeddings, config.filter_order, config.mlp_nblocks) == (2048, 128, 4)
    assert config.tie_word_embeddings and config.bidirectional and config.residual_long_conv


def test_configuration_survives_saving(tmp_path: Path) -> None:
    config = M2BertConfig(hidden_size=96, pooling="cls", identity_init=True, kernels="reference", num_labels=5)
    config.save_pretrained(tmp_path)
    again = M2BertConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert (again.hidden_size, again.pooling, again.identity_init, again.num_labels) == (
        96,
        "cls",
        True,
        5,
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 0, "hidden_size must be a whole number of at least 1, got 0"),
        ("num_hidden_layers", 2.5, "num_hidden_layers must be a whole number of at least 1, got 2.5"),
        ("hidden_size", 90, "hidden_size must be a multiple of mlp_nblocks .4., got 90"),
        ("intermediate_size", 30, "intermediate_size must be a multiple of mlp_nblocks .4., got 30"),
        ("num_hidden_layers", 10**6, "num_hidden_layers must be at most 1,000, got 1,000,000"),
        ("short_conv_width", 1, "short_conv_width must be 2 to 7, got 1"),
        ("filter_emb_dim", 4, "filter_emb_dim must be odd and at least 3"),
        ("hidden_dropout_prob", 1.0, r"hidden_dropout_prob must be in \[0, 1\), got 1.0"),
        ("pad_token_id", 30528, "pad_token_id must be a row of the vocabulary of 30528, got 30528"),
        ("pooling", "max", "pooling must be one of mean, cls, cls_dense, weighted, got 'max'"),
        ("kernels", "cuda", "kernels must be one of m2ops, reference, got 'cuda'"),
    ],
)
def test_configuration_refuses(field: str, value: object, message: str) -> None:
    with pytest.raises(M2BertError, match=message):
        M2BertConfig(**{field: value})


def test_a_refusal_of_something_long_keeps_both_its_ends() -> None:
    """For every error of the library; without the bound this one had 100,061 characters."""
    with pytest.raises(M2BertError) as refused:
        M2BertConfig(residual_long_conv="A" * 100_000)
    said = str(refused.value)
    assert said.startswith("M2BertConfig: residual_long_conv must be true or false, got 'AAA") and said.endswith("AAA'")
    assert 2900 < len(said) <= 3000 and said.count("A [...] A") == 1
    whole = M2BertError("x" * 3000)
    assert str(whole) == "x" * 3000
