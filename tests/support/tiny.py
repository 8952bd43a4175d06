"""Tiny random models and tokenizers that take milliseconds, and long texts.

tiny_model, tiny_tokenizer, tiny_embedder and story: of words, for tests of everything above the model. tiny_config,
tiny_inputs and numbered_tokenizer: of numbers, for tests of the model itself, with every switch of the configuration.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from m2bert.model.configuration import M2BertConfig

WORDS = "river stone light paper engine market garden winter signal harbor copper window thread ladder summer"


@functools.cache
def tiny_tokenizer(max_tokens: int = 64) -> Any:
    """A lower-cased WordPiece tokenizer of WORDS, letters and punctuation; texts lie between [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *letters, *".,!?()-_0123456789"]
    pieces += ["##" + letter for letter in letters]
    core = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=max_tokens, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def tiny_model(*, pooling: str = "mean", max_tokens: int = 64, seed: int = 0, **fields: Any) -> Any:
    """A random M2BertModel of two layers and 16 channels, in evaluation mode."""
    import torch

    from m2bert.model.configuration import M2BertConfig
    from m2bert.model.modeling import M2BertModel

    torch.manual_seed(seed)
    config = M2BertConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=16, num_hidden_layers=2, intermediate_size=32,
        max_position_embeddings=max_tokens, filter_order=8, mlp_nblocks=2, pooling=pooling,
        initializer_range=0.3, **fields,
    )  # fmt: skip
    return M2BertModel(config).eval()


def tiny_embedder(**options: Any) -> Any:
    """An Embedder on the tiny model; windows of 64 tokens unless `max_tokens` says otherwise."""
    from m2bert.encoders.embedder import Embedder

    model_options = {key: options.pop(key) for key in ("pooling", "max_tokens", "seed") if key in options}
    max_tokens = model_options.get("max_tokens", 64)
    return Embedder((tiny_model(**model_options), tiny_tokenizer(max_tokens)), **options)


def tiny_model_folder(folder: Path, **model_options: Any) -> Path:
    """The tiny model saved as a model folder."""
    import torch

    from m2bert.model.checkpoints import save_model

    max_tokens = model_options.get("max_tokens", 64)
    save_model(tiny_model(**model_options), tiny_tokenizer(max_tokens), folder, dtype=torch.float32)
    return folder


def story(num_words: int, seed: int = 0) -> str:
    """About `num_words` words in lines, sentences and paragraphs."""
    generator = random.Random(seed)
    words = WORDS.split()
    text = ""
    for number in range(num_words):
        text += generator.choice(words)
        text += generator.choice([" ", " ", " ", " ", ", ", ". ", ".\n", "\n    ", ".\n\n"])
        text += f"{number} " if generator.random() < 0.1 else ""
    return text.strip()


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
    from m2bert.model.configuration import M2BertConfig

    return M2BertConfig(**{**SIZES, "initializer_range": 0.2, **overrides})


def tiny_inputs(batch: int = 2, seqlen: int = 40) -> torch.Tensor:
    """Token ids (batch, seqlen) without the padding id."""
    import torch

    return torch.randint(1, SIZES["vocab_size"], (batch, seqlen), generator=torch.Generator().manual_seed(1))


def numbered_tokenizer() -> Any:
    """A word-level tokenizer of 97 words `w5` ... `w96` and the five special tokens; texts lie between two of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{i}" for i in range(len(special), SIZES["vocab_size"])]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
