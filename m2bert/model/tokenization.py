"""The WordPiece tokenizer of our models: training, saving, loading with and without transformers, counting.

Test: tests/model/test_tokenization.py.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2bert.errors import M2BertError, missing_package

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 1000
# What a tokenizer reads that says nothing about it.
UNLIMITED = 1 << 60


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

    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return _fast_tokenizer()(
        tokenizer_object=core,
        model_max_length=max_tokens,
        padding_side="right",
        truncation_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    )


def _fast_tokenizer() -> Any:
    """transformers' class of such tokenizers."""
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise missing_package("tokenizer", "transformers", "transformers") from error
    return PreTrainedTokenizerFast


def load_tokenizer(path: str | Path) -> Any:
    """Load a tokenizer from a folder holding tokenizer.json (a trained tokenizer or a model folder).

    Raises M2BertError when the folder holds none or a broken one.
    """
    folder = Path(path)
    read_core(folder)
    read_facts(folder)
    return _fast_tokenizer().from_pretrained(str(folder))


def read_core(folder: Path) -> Tokenizer:
    """The tokenizers.Tokenizer in a folder's tokenizer.json. Raises M2BertError when there is none or a broken one."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise M2BertError(
            f"load_tokenizer: {str(folder)!r} must be a folder with tokenizer.json; make one with "
            f"`m2bert train-tokenizer`"
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise M2BertError(f"load_tokenizer: {file} cannot be read ({error}); restore the file") from error


def read_facts(folder: Path) -> dict[str, Any]:
    """What a folder's tokenizer_config.json says, nothing where there is none. Raises M2BertError on a broken one."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise M2BertError(f"load_tokenizer: {file} cannot be read ({error}); restore the file") from error
    if not isinstance(facts, dict):
        raise M2BertError(
            f"load_tokenizer: {file} must hold a JSON object, got {type(facts).__name__}; restore the file"
        )
    longest = facts.get("model_max_length", UNLIMITED)
    is_number = isinstance(longest, int | float) and not isinstance(longest, bool)
    # transformers writes 1e30 where there is no limit; a NaN is not at least 3.
    if longest is not None and not (is_number and 3 <= longest < math.inf):
        raise M2BertError(
            f"load_tokenizer: model_max_length in {file} must be a number of tokens, 3 (a word, [CLS] and [SEP]) "
            f"or more, got {longest!r:.80}; restore the file"
        )
    return facts


def write_facts(folder: Path, **facts: Any) -> None:
    """Put these into what a folder's tokenizer_config.json says."""
    text = json.dumps({**read_facts(folder), **facts}, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class PlainTokenizer:
    """A tokenizer and the few facts that encoding needs of it. Loading one takes a hundredth of a transformers one.

    backend_tokenizer: neither pads nor truncates; nobody else's. cls_token_id, sep_token_id, pad_token_id: None where
    there is no such token. model_max_length: tokens, special ones included.
    """

    backend_tokenizer: Tokenizer
    cls_token_id: int | None
    sep_token_id: int | None
    pad_token_id: int | None
    model_max_length: int

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    @classmethod
    def of(cls, tokenizer: Any) -> PlainTokenizer:
        """That of a transformers tokenizer, copied: what is done to the one afterwards does not reach the other.

        Raises M2BertError for one that the tokenizers package does not run.
        """
        from tokenizers import Tokenizer

        if not hasattr(tokenizer, "backend_tokenizer"):
            raise M2BertError(
                f"PlainTokenizer: tokenizer must be a fast one, with a backend_tokenizer, got "
                f"{type(tokenizer).__name__}; load it with load_tokenizer"
            )
        core = _bare(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
        ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
        return cls(core, *ids, int(tokenizer.model_max_length))

    @classmethod
    def load(cls, folder: Path) -> PlainTokenizer:
        """That of a folder as save_pretrained writes it: tokenizer.json and tokenizer_config.json.

        Raises M2BertError as load_tokenizer does.
        """
        core, facts = _bare(read_core(folder)), read_facts(folder)

        def identity(name: str) -> int | None:
            token = facts.get(name)
            text = token.get("content") if isinstance(token, dict) else token
            return None if text is None else core.token_to_id(str(text))

        longest = facts.get("model_max_length")
        ids = (identity("cls_token"), identity("sep_token"), identity("pad_token"))
        return cls(core, *ids, UNLIMITED if longest is None else int(longest))


def _bare(core: Tokenizer) -> Tokenizer:
    """`core` itself, which from now on neither pads nor truncates."""
    core.no_truncation()
    core.no_padding()
    return core


def encode_ids(tokenizer: Any, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """Token ids of each text, never truncated, without [CLS] and [SEP] unless `special`.

    Quiet about length: what does not fit a model is the caller's decision.
    """
    core = _bare(tokenizer.backend_tokenizer)
    return [encoding.ids for encoding in core.encode_batch_fast(list(texts), add_special_tokens=special)]


def check_frame(tokenizer: Any, who: str) -> None:
    """Raise M2BertError, beginning with `who`, unless a text's tokens come between one [CLS] and one [SEP]."""
    (plain,), (framed,) = (encode_ids(tokenizer, ["a text"], special=special) for special in (False, True))
    if framed != [tokenizer.cls_token_id, *plain, tokenizer.sep_token_id]:
        made = " ".join(map(str, tokenizer.convert_ids_to_tokens(framed)))
        raise M2BertError(
            f"{who}: the tokenizer must put a text between its cls_token and its sep_token, it makes `{made}` of "
            "`a text`; set the post_processor of its backend_tokenizer"
        )


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
