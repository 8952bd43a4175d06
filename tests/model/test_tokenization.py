"""The tokenizer: its rules, its special tokens, a save and load round trip, sampling, errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from tiny import tiny_tokenizer
from training_data import make_text, train_small_tokenizer

from m2bert.data.text import Document
from m2bert.errors import M2BertError
from m2bert.model.tokenization import (
    PlainTokenizer,
    count_tokens,
    encode_ids,
    load_tokenizer,
    sample_evenly,
    train_tokenizer,
)


def test_special_tokens_and_rules() -> None:
    tokenizer = train_small_tokenizer()
    assert len(tokenizer) == 160
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.pad_token_id == 0
    assert tokenizer.mask_token_id == 4
    assert tokenizer.model_max_length == 128
    encoded = tokenizer("the", "of it")
    words = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert words[0] == "[CLS]"
    assert words[-1] == "[SEP]"
    assert words.count("[SEP]") == 2
    assert set(encoded) == {"input_ids", "attention_mask"}


def test_case_and_punctuation() -> None:
    texts = ["import os path exists write_text read.line foo(bar) " * 3]
    tokenizer = train_tokenizer(texts, 70)
    assert encode_ids(tokenizer, ["OS.Path_Exists(x)"]) == encode_ids(tokenizer, ["os . path _ exists ( x )"])
    assert tokenizer.tokenize("os.path_exists")[:2] == ["os", "."]
    assert "_" in tokenizer.tokenize("os.path_exists")


def test_save_and_load_give_the_same_ids(tmp_path: Path) -> None:
    tokenizer = train_small_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    text = make_text(1, 20, 7) + " Unseen Words, 42!"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.pad_token_id, again.mask_token_id, again.model_max_length) == (0, 4, 128)
    assert again(text)["input_ids"] != again(make_text(1, 20, 8))["input_ids"]


def test_long_texts_are_never_truncated() -> None:
    tokenizer = train_small_tokenizer()
    text = make_text(2, 500, 1)
    parts = sum(len(ids) for ids in encode_ids(tokenizer, text.split(" ")))
    assert len(encode_ids(tokenizer, [text])[0]) == parts
    assert count_tokens(tokenizer, [text, "the"]) == [parts + 2, 3]


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(M2BertError, match="must hold 500 pieces"):
        train_tokenizer(["a few words"], 500)
    with pytest.raises(M2BertError, match="must exceed 5"):
        train_tokenizer(["a few words"], 5)


def test_loading_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(M2BertError, match=r"folder with tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(M2BertError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_sampling_limits_every_source() -> None:
    documents = [Document("x " * 600, "big") for _ in range(50)] + [Document("y " * 100, "small")]
    texts = list(sample_evenly(documents, 5000))
    big = sum(len(text) for text in texts if text.startswith("x"))
    assert 5000 <= big <= 6200
    assert sum(text.startswith("y") for text in texts) == 1
    long = next(iter(sample_evenly([Document("word " * 10_000, "long")], 5000)))
    assert 0.25 * 50_000 < len(long) < 0.4 * 50_000
    assert set(long.split()) == {"word"}


def test_a_plain_tokenizer_is_that_of_transformers(tmp_path: Path) -> None:
    full = tiny_tokenizer(48)
    full.save_pretrained(tmp_path)
    for plain in (PlainTokenizer.of(full), PlainTokenizer.load(tmp_path)):
        assert (plain.cls_token_id, plain.sep_token_id, plain.pad_token_id) == (2, 3, 0)
        assert plain.model_max_length == 48 and len(plain) == len(full)
        texts = ["a river, [SEP] stone", "unheard-of 7"]
        assert encode_ids(plain, texts) == [full(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_a_plain_tokenizer_is_a_copy() -> None:
    """What somebody else makes of the tokenizer, such as truncation for a call of theirs, is not ours."""
    full = copy.deepcopy(tiny_tokenizer())
    plain = PlainTokenizer.of(full)
    full(["river stone paper"], truncation=True, max_length=2)
    assert len(plain.backend_tokenizer.encode("river stone paper", add_special_tokens=False).ids) == 3


def test_a_plain_tokenizer_says_what_it_does_not_know(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    facts = tmp_path / "tokenizer_config.json"
    facts.write_text(json.dumps({"cls_token": {"content": "[CLS]"}, "sep_token": "[nowhere]"}))
    plain = PlainTokenizer.load(tmp_path)
    assert (plain.cls_token_id, plain.sep_token_id, plain.pad_token_id) == (2, None, None)
    assert plain.model_max_length > 1 << 30
    wrong = ("Infinity", "-Infinity", "NaN", "2", "true", '"many"', "[64]")
    for text in ("{", "[1]", *(f'{{"model_max_length": {length}}}' for length in wrong)):
        facts.write_text(text)
        for load in (PlainTokenizer.load, load_tokenizer):
            with pytest.raises(M2BertError, match=r"tokenizer_config.json .*restore the file"):
                load(tmp_path)
    with pytest.raises(M2BertError, match="must be a fast one, with a backend_tokenizer, got str"):
        PlainTokenizer.of("words")
