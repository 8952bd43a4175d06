"""Small models and tokenizers for tests: every switch of the configuration, at sizes that take milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from m2bert.model.configuration import M2BertConfig

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
    "filter_order": 16,
}


def tiny_config(**overrides: Any) -> M2BertConfig:
    """A two-layer configuration; large initial values so that every parameter visibly changes the output."""
    return M2BertConfig(**{**SIZES, "initializer_range": 0.2, **overrides})


def tiny_inputs(batch: int = 2, seqlen: int = 40) -> torch.Tensor:
    """Token ids (batch, seqlen) without the padding id."""
    return torch.randint(1, SIZES["vocab_size"], (batch, seqlen), generator=torch.Generator().manual_seed(1))


def tiny_tokenizer() -> Any:
    """A word-level tokenizer of 97 words `w5` ... `w96` and the five special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{i}" for i in range(len(special), SIZES["vocab_size"])]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
