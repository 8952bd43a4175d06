"""A text tokenised by stretches has the tokens it has as a whole, in time and memory that grow with its length."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from tiny import story, tiny_embedder, tiny_tokenizer

import m2bert.encoders.tokens
from m2bert.encoders.embedder import Embedder
from m2bert.encoders.tokens import tokens_of


@pytest.mark.parametrize("offsets", [True, False])
def test_stretches_have_the_tokens_of_the_whole(monkeypatch: Any, offsets: bool) -> None:
    core = tiny_tokenizer().backend_tokenizer
    texts = [
        story(300, 1), "river", "x" * 900, story(40, 2) + " \n\n ÀÉ stone" * 30, " " * 300 + "paper ",
        "川の石。light！" * 20, '{"stone":[1.5,2],"river":"a\\tb"};' * 9, "river,[SEP],stone.e\u0301;\u0301a" * 9,
        "paper\tgarden\r\nwinter\u3000signal " * 9,
    ]  # fmt: skip
    whole = core.encode_batch(texts, add_special_tokens=False)
    for at_once in (7, 64, 10_000):
        monkeypatch.setattr(m2bert.encoders.tokens, "CHARACTERS_AT_ONCE", at_once)
        made = list(tokens_of(core, texts, offsets=offsets))
        assert len(made) == len(texts)
        for (ids, spans), encoding in zip(made, whole, strict=True):
            assert ids.tolist() == encoding.ids
            assert spans.tolist() == ([list(each) for each in encoding.offsets] if offsets else [])


def test_a_text_without_white_space_is_cut_too(monkeypatch: Any) -> None:
    """At marks, and in a word of no end anywhere: of one stretch the tokenizer would make gigabytes."""
    monkeypatch.setattr(m2bert.encoders.tokens, "CHARACTERS_AT_ONCE", 1000)
    monkeypatch.setattr(m2bert.encoders.tokens, "LONGEST_WORD", 2000)
    core, seen = tiny_tokenizer().backend_tokenizer, []

    class Watched:
        pre_tokenizer = core.pre_tokenizer

        def encode_batch_fast(self, pieces: list[str], **options: Any) -> Any:
            seen.append(max(map(len, pieces)))
            return core.encode_batch_fast(pieces, **options)

    for text, most in (("川の石。" * 9000, 1004), ("stone,river;" * 3000, 1010), ("🙂" * 30_000, 3000)):
        seen.clear()
        ((ids, _),) = tokens_of(Watched(), [text], offsets=False)
        assert max(seen) <= most and sum(seen) >= len(text)
        unknown = len(core.encode(text, add_special_tokens=False).ids)
        assert len(ids) == (10 if "🙂" in text else unknown)


def test_a_tokenizer_that_does_not_split_at_space_reads_texts_whole(monkeypatch: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "a b": 1}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    monkeypatch.setattr(m2bert.encoders.tokens, "CHARACTERS_AT_ONCE", 2)
    ((ids, _),) = tokens_of(core, ["a b\na b"], offsets=False)
    assert ids.tolist() == [1, 1]


def test_stretches_give_the_embedding_of_the_whole(monkeypatch: Any) -> None:
    embedder, text = tiny_embedder(), story(700, 3)
    (want,) = embedder.encode_documents([text])
    monkeypatch.setattr(m2bert.encoders.tokens, "CHARACTERS_AT_ONCE", 100)
    (got,) = embedder.encode_documents([text])
    np.testing.assert_array_equal(got.vector, want.vector)
    assert [(one.start, one.end) for one in got.passages] == [(one.start, one.end) for one in want.passages]


def test_time_and_memory_grow_with_the_length() -> None:
    """Twice the text at most 2.5 times the time and memory; a row for every passage in every window made it 4 times."""
    embedder: Embedder = tiny_embedder(batch_tokens=1 << 15)
    block = story(10_000, 4) + "\n"
    embedder.encode_documents([block])

    def cost(copies: int) -> tuple[float, int]:
        text = block * copies
        tracemalloc.start()
        start = time.process_time()
        embedder.encode_documents([text])
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return seconds, peak

    (short, small), (long, large) = cost(3), cost(6)
    assert long < 2.5 * short and large < 2.5 * small, (short, long, small, large)


def test_tokens_of_a_long_document_take_less_than_its_text() -> None:
    """Pieces of the text, numbers of eight bytes, and all of them joined in the end, were 12 bytes a character."""
    embedder, block = tiny_embedder(), story(20_000, 4) + "\n"

    def peak(copies: int) -> int:
        text = block * copies
        tracemalloc.start()
        (plan,) = embedder.plans([text])
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(plan.ids) > 20_000 * copies and plan.spans[-1][1] == len(text)
        return most

    short, long = peak(2), peak(6)
    bytes_each = (long - short) / (4 * len(block))
    print(f"{bytes_each:.1f} bytes a character")
    assert 0.5 < bytes_each < 5
