"""Where a score comes from: parts and passages add up, the place of the match is found, and the command shows both."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_of_words import BagOfWords
from tiny import WORDS, story, tiny_embedder, tiny_model_folder

from m2bert.cli.explain import format_explanation
from m2bert.errors import M2BertError
from m2bert.search.explain import Contribution, explain_stored, explain_text
from m2bert.search.index import SearchIndex

QUERY = "copper harbor in winter"


@pytest.fixture(scope="module")
def embedder() -> Any:
    return tiny_embedder()


@pytest.mark.parametrize("words", [3, 60, 900])
def test_parts_add_up_to_the_score_and_contributions_to_the_cosine(embedder: Any, words: int) -> None:
    """The oracle is the cosine of two separate encodings, and of the query and two neighbouring passages.

    Float32 shares of a unit vector, 16 channels each; pairs are of passages rounded by at most half a 127th.
    """
    text = story(words)
    found = explain_text(embedder, QUERY, text, "tale")
    query, document = embedder.encode([QUERY])[0], embedder.encode([text])[0]
    values = [part.value for part in found.contributions]
    assert found.cosine == pytest.approx(float(query @ document), abs=2e-6)
    assert sum(values) == pytest.approx(found.cosine, abs=1e-6)
    assert found.num_windows == -(-found.num_tokens // 62) and len(values) == max(1, round(found.num_tokens / 192))
    vectors = [passage.vector for passage in embedder.encode_documents([text])[0].passages]
    sums = [one + other for one, other in pairwise(vectors)] or vectors
    cosines = [float(query @ vector / np.linalg.norm(vector)) for vector in sums]
    assert [pair.value for pair in found.pairs] == pytest.approx(cosines, abs=0.01)
    bounds = [(part.start, part.end) for part in found.contributions]
    assert [(pair.start, pair.end) for pair in found.pairs] == (
        [(one[0], other[1]) for one, other in pairwise(bounds)] or bounds
    )
    assert all(pair.text == text[pair.start : pair.end] for pair in found.pairs)
    # A text in no store has no words of worth.
    best = max(pair.value for pair in found.pairs)
    assert found.parts == pytest.approx({"whole": 0.7 * found.cosine, "passages": 0.3 * best}, abs=1e-6)
    assert found.score == pytest.approx(0.7 * float(query @ document) + 0.3 * max(cosines), abs=0.01)
    assert found.score == pytest.approx(sum(found.parts.values()), abs=1e-6) and found.words == {}
    assert "".join(part.text for part in found.contributions) == text
    if len(values) > 1:
        # Negative control: shares that are all alike, or shifted by one place, are not the document's.
        assert np.ptp(values) > 1e-3
        assert sum(values[1:]) != pytest.approx(found.cosine, abs=1e-4)


def test_joined_passages_keep_the_sum_and_the_text(embedder: Any) -> None:
    found = explain_text(embedder, QUERY, story(900), "tale")
    for most in (1, 4, 10_000):
        parts = found.merged(most)
        assert len(parts) == min(most, len(found.contributions))
        assert sum(part.value for part in parts) == pytest.approx(found.cosine, abs=1e-6)
        assert "".join(part.text for part in parts) == story(900)
        assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
    with pytest.raises(M2BertError, match="must be at least 1, got 0"):
        found.merged(0)


class WordSpotter:
    """An encoder whose passages contribute how often they say "copper": the place of a match is known.

    Their second number is what else they say, of which no query asks.
    """

    name, fingerprint = "spotter", "0" * 16

    def encode(self, texts: Any) -> Any:
        return np.tile(np.array([1, 0], dtype=np.float32), (len(texts), 1))

    def encode_documents(self, texts: Any) -> Any:
        from types import SimpleNamespace

        bounds = [(start, start + 50) for start in range(0, len(texts[0]), 50)]
        counts = [texts[0][start:end].count("copper") / 10 for start, end in bounds]
        passages = [
            SimpleNamespace(start=start, end=end, vector=np.array([count, 0.2], dtype=np.float32))
            for (start, end), count in zip(bounds, counts, strict=True)
        ]
        return [SimpleNamespace(vector=np.array([sum(counts), 0.2 * len(counts)]), passages=passages, num_tokens=9,
                                num_windows=1, num_truncated=0)]  # fmt: skip


def test_the_longest_bar_stands_where_the_match_is() -> None:
    text = "." * 200 + " copper copper ".ljust(50, ".") + "." * 250
    lines = format_explanation(explain_text(WordSpotter(), "copper", text, "t.txt")).splitlines()
    bars = [line for line in lines if "%" in line[:6]]
    # Of two passages one says it twice: (0.2, 0.2 + 0.2), whose cosine with (1, 0) is 1 / sqrt(5).
    assert [line[41:47] for line in bars] == [" 0.000"] * 3 + [" 0.447"] * 2 + [" 0.000"] * 4 + ["      "]
    assert len(bars) == 10
    assert [line[:4].strip() for line in bars if "█" in line] == ["40%"]
    assert "+0.2000" in bars[4] and "copper copper" in bars[4]
    assert lines[2] == "score     0.2742 = whole 0.1400 + passages 0.1342"
    assert lines[-1] == "sum       0.2000 of 10 rows, the cosine of the whole"


def test_a_stored_document_is_explained_without_its_text_being_embedded(tmp_path: Path, embedder: Any) -> None:
    texts = {f"d{number}": story(150 + 200 * number, seed=number) for number in range(12)}
    index = SearchIndex(tmp_path / "store", embedder)
    index.add(texts)
    encode_documents = embedder.encode_documents
    embedder.encode_documents = None
    try:
        found = {name: explain_stored(index, QUERY, name) for name in texts}
    finally:
        embedder.encode_documents = encode_documents
    scores = {result.id: result.score for result in index.search(QUERY, k=12)}
    cosines = dict(zip(texts, embedder.encode(list(texts.values())) @ embedder.encode([QUERY])[0], strict=True))
    assert max(len(each.contributions) for each in found.values()) > 5
    for name, text in texts.items():
        one = found[name]
        assert one.score == pytest.approx(scores[name], abs=1e-6)
        assert one.score == pytest.approx(sum(one.parts.values()), abs=1e-6)
        assert one.cosine == pytest.approx(float(cosines[name]), abs=1e-6)
        assert sum(part.value for part in one.contributions) == pytest.approx(one.cosine, abs=1e-6)
        assert "".join(part.text for part in one.contributions) == text
        assert one.parts["whole"] == pytest.approx(0.7 * one.cosine, abs=1e-6)
        assert one.parts["passages"] == pytest.approx(0.3 * max(pair.value for pair in one.pairs), abs=1e-6)
        assert one.parts["words"] == pytest.approx(sum(one.words.values()), abs=1e-6)
        # From the text itself: passages that were not rounded for the curve, and no worth of words.
        plain = explain_text(embedder, QUERY, text, name)
        own, kept = ([part.value for part in each.contributions] for each in (plain, one))
        np.testing.assert_allclose(kept, own, atol=2e-3)
        assert [pair.value for pair in one.pairs] == pytest.approx([pair.value for pair in plain.pairs], abs=1e-6)
    with pytest.raises(M2BertError, match="no document 'x' in the store"):
        explain_stored(index, QUERY, "x")


def test_words_of_a_stored_document_are_worth_what_counting_says(tmp_path: Path) -> None:
    """BM25 of each word by its formula: k1 = 1.2, b = 0.75, over sqrt(words of the query) ln(1 + documents), times 0.7.

    Of four documents three say river and one says stone; they have 4, 2, 3 and 1 words, in the mean 2.5.
    """
    texts = {"a": "Rivers, river: stone thread", "b": "river market", "c": "a river bed slept", "d": "paper"}
    index = SearchIndex(tmp_path, BagOfWords())
    index.add(texts)
    query = "The stone in the RIVER of rivers? unheard"  # stone, river, river, unheard

    def worth(count: int, holding: int, length: int, asked: int) -> float:
        idf = math.log(1 + (4 - holding + 0.5) / (holding + 0.5))
        score = idf * 2.2 * count / (count + 1.2 * (0.25 + 0.75 * length / 2.5))
        return 0.7 * asked * score / (math.sqrt(4) * math.log(5))

    expected = {
        "a": {"stone": worth(1, 1, 4, 1), "river": worth(2, 3, 4, 2)},
        "b": {"river": worth(1, 3, 2, 2)},
        "c": {"river": worth(1, 3, 3, 2)},
        "d": {},
    }
    for name, words in expected.items():
        found = explain_stored(index, query, name)
        assert found.words == pytest.approx(words, rel=1e-5)
        assert found.parts["words"] == pytest.approx(sum(words.values()), rel=1e-5, abs=0)
    assert explain_stored(index, "the of", "a").parts["words"] == 0.0


def test_a_document_of_several_sources_must_be_named_with_its_own(tmp_path: Path, embedder: Any) -> None:
    from m2bert.search.documents import Document

    index = SearchIndex(tmp_path / "store", embedder)
    index.add([Document("it's", "river stone", "one"), Document("it's", "paper engine", "two")])
    with pytest.raises(M2BertError, match="in several sources, one, two; say which"):
        explain_stored(index, QUERY, "it's")
    assert explain_stored(index, QUERY, "it's", "two").contributions[0].text == "paper engine"


def test_models_without_parts_and_empty_texts_are_refused(embedder: Any) -> None:
    with pytest.raises(M2BertError, match="does not pool by the mean"):
        explain_text(tiny_embedder(pooling="cls"), QUERY, WORDS)
    with pytest.raises(M2BertError, match="query must be some words"):
        explain_text(embedder, "  ", WORDS)
    with pytest.raises(M2BertError, match="document 'empty' is empty"):
        explain_text(embedder, QUERY, " ", "empty")


def test_the_command_prints_draws_and_writes_json(run: Any, tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "tiny")
    (tmp_path / "tale.txt").write_text(story(900))
    arguments = ("explain", QUERY, tmp_path / "tale.txt", "--model", model, "--rows", 7)
    code, out, _ = run(*arguments, "--json", tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text())
    assert code == 0 and saved["kind"] == "explanation"
    assert sum(part["value"] for part in saved["contributions"]) == pytest.approx(saved["cosine"], abs=1e-6)
    assert sum(saved["parts"].values()) == pytest.approx(saved["score"], abs=1e-6) and saved["version"] == 2
    assert f"score     {saved['score']:.4f}" in out and "of 7 rows" in out
    pytest.importorskip("matplotlib", reason="needs matplotlib to draw")
    assert run(*arguments, "--png", tmp_path / "curve.png")[0] == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("none.txt",),
            "explain: none.txt must be a document that can be read, got one that is: cannot be read: No such",
        ),
        (("none.txt", "--rows", 0), "--rows must be at least 1"),
        (("none.txt", "--source", "x"), "give --store too"),
        (("none.txt", "--png", "no/such.png"), "no such folder for --png"),
        (("d1", "--store", "no-store"), "there is no store"),
    ],
)
def test_mistakes_are_one_sentence(run: Any, arguments: tuple[Any, ...], message: str) -> None:
    code, out, err = run("explain", QUERY, *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_negative_parts_have_light_bars() -> None:
    from m2bert.search.explain import Explanation

    parts = [Contribution(0, 1, 0.5, "a"), Contribution(1, 2, -0.25, "b")]
    text = format_explanation(Explanation("q", "d", "m", "f", 0.5, {"whole": 0.5}, 0.25, 2, 2, 1, 0, parts, [], {}))
    assert "█" * 24 + "  +0.5000" in text and "░" * 12 in text and "-0.2500" in text
