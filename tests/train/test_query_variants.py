"""Changed queries: each change against what it may make, shares, and batches that depend on seed and index alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_data import small_tokenizer, topic_words, write_pairs

from m2bert.data.contrast import ContrastBatches, labelled_sources
from m2bert.data.examples import special_ids
from m2bert.data.pairs import load_pairs
from m2bert.data.query_variants import QueryVariants, keywords, misspelt, other_case, slip
from m2bert.model.tokenization import encode_ids
from m2bert.ranking.words import STOP_WORDS
from m2bert.train.settings import FinetuneConfig


def slips(word: str) -> dict[str, set[str]]:
    """All that a hand may make of a word, by what it did; the first letter stays."""
    letters = list(word)
    swapped = {
        "".join([*letters[:i], letters[i + 1], letters[i], *letters[i + 2 :]]) for i in range(1, len(word) - 1)
    }  # fmt: skip
    dropped = {word[:i] + word[i + 1 :] for i in range(1, len(word))}
    doubled = {word[:i] + word[i] + word[i:] for i in range(1, len(word))}
    return {"swapped": swapped - {word}, "dropped": dropped, "doubled": doubled}


@pytest.mark.parametrize("word", ["sequence", "Boot", "être", "abc", "gggg"])
def test_a_slip_is_one_letter(word: str) -> None:
    possible = slips(word)
    made = [slip(word, np.random.default_rng(seed)) for seed in range(200)]
    assert set(made) <= set().union(*possible.values()) and word not in made
    assert all(possible[kind] & set(made) for kind in possible if possible[kind])


def test_misspelt_queries_keep_short_words_and_signs() -> None:
    text = "how do I run the C++ compiler on 20000 files in parallel, without make?"
    counts = []
    for seed in range(300):
        made = misspelt(text, np.random.default_rng(seed))
        before, after = (re.split(r"([^\W\d_]+)", each) for each in (text, made))
        assert before[::2] == after[::2]  # everything between words
        changed = [(a, b) for a, b in zip(before[1::2], after[1::2], strict=True) if a != b]
        assert all(len(a) >= 4 and b in set().union(*slips(a).values()) for a, b in changed)
        counts.append(len(changed))
    # Of five long words, one for certain and a fifth of the others.
    assert min(counts) == 1 and np.mean(counts) == pytest.approx(1 + 0.2 * 4, abs=0.2)
    assert misspelt("is it on 12345?", np.random.default_rng(0)) == "is it on 12345?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How do I undo the last commit in git?", "undo last commit git"),
        ("What is an e-mail's MIME type", "mail MIME type"),
        ("who are you", "who are you"),
        ("C or R", "C or R"),
    ],
)
def test_keywords(text: str, expected: str) -> None:
    assert keywords(text, np.random.default_rng(0)) == expected
    assert {"how", "who", "you"} <= STOP_WORDS


def test_other_case() -> None:
    made = {other_case("Which OS has a Mac?", np.random.default_rng(seed)) for seed in range(20)}
    assert made == {"which os has a mac?", "WHICH OS HAS A MAC?"}


def ids_of(texts: list[str]) -> list[np.ndarray]:
    return [np.asarray(ids, dtype=np.uint16) for ids in encode_ids(small_tokenizer(), texts)]


def test_a_share_of_the_queries_is_changed() -> None:
    words = [word for topic in range(6) for word in topic_words(topic)]
    queries = ids_of([f"the {' '.join(np.random.default_rng(i).choice(words, 4))}" for i in range(400)])
    for share in (0.0, 0.3, 1.0):
        made = QueryVariants(small_tokenizer(), share, longest=12)(queries, np.random.default_rng(1))
        changed = [two for one, two in zip(queries, made, strict=True) if one.tolist() != two.tolist()]
        # Five standard deviations of a binomial; a slip may still give the same pieces.
        assert len(changed) / 400 == pytest.approx(share, abs=0.12 if 0 < share < 1 else 0.02)
        assert all(len(row) <= 12 for row in changed) and all(row.dtype == np.uint16 for row in made)
        assert len({row.tobytes() for row in made}) == len({row.tobytes() for row in queries})


def test_queries_do_not_become_equal() -> None:
    """The keywords of all these are the same; only one may be reduced to them."""
    word = topic_words(0)[0]
    queries = ids_of([f"the {word}", f"of the {word}", f"to the {word}", word])
    variants = QueryVariants(small_tokenizer(), 1.0, longest=30)
    variants.changes = [keywords]
    made = variants(queries, np.random.default_rng(0))
    assert [row.tolist() for row in made] == [row.tolist() for row in queries]
    made = variants(queries[:3], np.random.default_rng(0))
    assert [row.tolist() for row in made] == [row.tolist() for row in [queries[3], *queries[1:3]]]


def test_capitals_are_changed_where_the_tokenizer_knows_them() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", "a", "A", "Why", "why", "WHY"])}))
    core.model.unk_token = "[UNK]"
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    cased = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    assert other_case in QueryVariants(cased, 0.5, longest=9).changes
    assert other_case not in QueryVariants(small_tokenizer(), 0.5, longest=9).changes
    variants = QueryVariants(cased, 1.0, longest=9)
    variants.changes = [other_case]
    made = [variants([np.asarray([3, 0])], np.random.default_rng(seed))[0].tolist() for seed in range(9)]
    assert {tuple(row) for row in made} == {(4,), (5,)}  # what the tokenizer does not know is left out


def contrast(folder: Path, share: float, seed: int = 17) -> ContrastBatches:
    tokenizer = small_tokenizer()
    settings = FinetuneConfig(
        lengths={64: 1.0}, batch_size=8, batch_tokens=640, max_query_tokens=16, query_variants=share
    )
    sources = labelled_sources(load_pairs([write_pairs(folder)], [], tokenizer))
    vary = QueryVariants(tokenizer, share, longest=14) if share else None
    return ContrastBatches(sources, [], special_ids(tokenizer), settings, vary=vary, seed=seed)


def test_batches_depend_on_seed_and_index_alone(tmp_path: Path) -> None:
    one, two, plain = contrast(tmp_path, 0.5), contrast(tmp_path, 0.5), contrast(tmp_path, 0.0)
    batches: list[dict[str, Any]] = [one[index] for index in range(12)]
    changed = 0
    for index in (11, 3, 0, 7):
        for name, array in two[index].items():
            assert np.array_equal(array, batches[index][name])
        assert np.array_equal(plain[index]["document_input_ids"], batches[index]["document_input_ids"])
        same = plain[index]["query_input_ids"].shape == batches[index]["query_input_ids"].shape
        changed += not (same and np.array_equal(plain[index]["query_input_ids"], batches[index]["query_input_ids"]))
    assert changed >= 3
