"""The WordPiece tokenizer of our models: training, saving, loading, counting.

Test: tests/model/test_tokenization.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from m2bert.errors import M2BertError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 1000


def train_tokenizer(texts: Iterable[str], vocab_size: int = 16384, *, max_tokens: int = 8192) -> Any:
    """Train a lower-cased WordPiece tokenizer with BERT's rules and special tokens ([PAD] = 0 ... [MASK] = 4).

    Words are split at white space and at every punctuation character, so `os.path_exists(x)` becomes
    `os . path _ exists ( x )`. The number of pieces is rounded up to exactly `vocab_size` only when the texts
    hold that many; a smaller vocabulary is an error, because the model's size is chosen to match.

    Returns a transformers PreTrainedTokenizerFast with model_max_length `max_tokens`.
    Raises M2BertError when the texts hold too few pieces.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if vocab_size <= len(SPECIAL_TOKENS):
        raise M2BertError(f"train_tokenizer: vocab_size must exceed {len(SPECIAL_TOKENS)}, got {vocab_size}; raise it")
    core = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        limit_alphabet=min(MAX_ALPHABET, max(vocab_size // 8, 64)),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    if core.get_vocab_size() < vocab_size:
        raise M2BertError(
            f"train_tokenizer: the texts must hold {vocab_size} pieces, got {core.get_vocab_size()}; "
            f"pass more text or lower --vocab-size"
        )
    return _wrap(core, max_tokens)


def _wrap(core: Any, max_tokens: int) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_tokens,
        padding_side="right",
        truncation_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    )


def load_tokenizer(path: str | Path) -> Any:
    """Load a tokenizer from a folder holding tokenizer.json (a trained tokenizer or a model folder).

    Raises M2BertError when the folder holds none or a broken one.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(path)
    if not (folder / "tokenizer.json").is_file():
        raise M2BertError(
            f"load_tokenizer: {str(folder)!r} must be a folder with tokenizer.json; make one with "
            f"`m2bert train-tokenizer`"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:
        raise M2BertError(
            f"load_tokenizer: {folder / 'tokenizer.json'} cannot be read ({error}); restore the file"
        ) from error


def encode_ids(tokenizer: Any, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """Token ids of each text, never truncated, without [CLS] and [SEP] unless `special`.

    Quiet about length: what does not fit a model is the caller's decision.
    """
    core = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    return [encoding.ids for encoding in core.encode_batch_fast(list(texts), add_special_tokens=special)]


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text including [CLS] and [SEP]."""
    return [len(ids) for ids in encode_ids(tokenizer, texts, special=True)]


def sample_evenly(documents: Iterable[Any], max_chars: int) -> Iterator[str]:
    """Texts of `documents` (each with .text and .source), at most about `max_chars` characters per source.

    Keeps a large source (novels) from deciding the vocabulary. Of a long document every third kilobyte is taken:
    its variety at a third of the cost.
    """
    taken: dict[str, int] = defaultdict(int)
    for document in documents:
        if taken[document.source] >= max_chars:
            continue
        text = document.text
        if len(text) > 20_000:
            pieces = (text[start : start + 1000] for start in range(0, len(text), 3000))
            text = "\n".join(piece[piece.find(" ") + 1 : piece.rfind(" ")] for piece in pieces)
        taken[document.source] += len(text)
        yield text
