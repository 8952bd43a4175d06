"""What counts as a word: by hand, and by a loop over characters that knows nothing of regular expressions."""

from __future__ import annotations

import tracemalloc

import pytest

from m2bert.ranking.words import STOP_WORDS, words_as_text, words_of


def runs(text: str) -> list[str]:
    """Runs of letters and digits in lower case, character by character."""
    found, run = [], ""
    for character in text.lower() + " ":
        if character.isalnum():
            run += character
        elif run:
            found.append(run)
            run = ""
    return found


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("The RUNNERS were running", ["runner", "run"]),
        ("How can't I do what I don't know?", ["know"]),
        ("Ponies, ponies: connection-connected!", ["poni", "poni", "connect", "connect"]),
        ("C and R are languages; a is not", ["c", "r", "languag"]),
        ("in 2024, v2.10 cost 3,50", ["2024", "v2", "10", "cost", "3", "50"]),
        ("max_token__length _x_", ["max", "token", "length", "x"]),
        ("Käse aus Überlingen, ÄRGER", ["käse", "aus", "überlingen", "ärger"]),
        ("x" * 60 + " 東京 Москва", ["x" * 60, "東京", "москва"]),
        ("to be or not to be, that is the", []),
        ("--- ... ___ \n\t", []),
        ("", []),
    ],
)
def test_words_are_stems_of_runs_without_stop_words(text: str, stems: list[str]) -> None:
    assert words_of(text) == stems


def test_words_of_no_english_ending_are_the_runs_themselves() -> None:
    text = "zzk Kxq7 b2b, q-q_zz 007\u00a0öäü\nnull0 (zzk)"
    assert words_of(text) == runs(text) == ["zzk", "kxq7", "b2b", "q", "q", "zz", "007", "öäü", "null0", "zzk"]


def test_stop_words_are_those_of_nltk_and_of_lucene() -> None:
    """Both lists as bm25s has them; what has an apostrophe is no run of letters."""
    stopwords = pytest.importorskip("bm25s.stopwords")
    nltk, lucene = set(stopwords.STOPWORDS_EN_PLUS), set(stopwords.STOPWORDS_EN)
    assert {word for word in nltk if word.isalnum()} | lucene == STOP_WORDS
    assert len(lucene) == 33 and {"how", "what", "can"} <= STOP_WORDS and not {"c", "r", "go", "use"} & STOP_WORDS


def test_a_text_is_the_words_of_its_halves() -> None:
    first, second = "Herons waded slowly;", "the reeds were burning"
    assert words_of(f"{first} {second}") == words_of(first) + words_of(second) == [
        "heron", "wade", "slowli", "reed", "burn",
    ]  # fmt: skip


def test_a_long_text_has_the_words_of_its_lines_in_little_memory() -> None:
    """Words that are objects of their own take 60 bytes each: 20 MB a million letters before they were shared."""
    lines = [f"Herons waded slowly past reed{n % 7} and stones; in {n} winters." for n in range(18_000)]
    text = "\n".join(lines)
    assert len(text) > 1_000_000
    expected = [word for line in lines for word in words_of(line)]
    tracemalloc.start()
    found = words_of(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == expected and len(found) > 100_000
    assert peak < 9 * len(text)
    assert words_of("x" * 300_000 + " zzk") == ["x" * 10_000, "zzk"], "no word is cut in two"


def test_words_in_one_text_are_those_of_the_list_in_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of the text, and no list of them: it alone took eight bytes a word, and the texts joined came twice."""
    text = "\n".join(f"Herons, {n:x}b{n * 7919:x} 川の石。ΟΔΟΣ; the reeds" for n in range(9000)) + "\nthe"
    expected = " ".join(words_of(text)).encode()
    tracemalloc.start()
    found = words_as_text(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == expected and found.count(b" ") == 5 * 9000 - 1 and "οδος".encode() in found
    assert peak < 3.2e6 + 1.3 * len(found)
    monkeypatch.setattr("m2bert.ranking.words.CHARACTERS_AT_ONCE", 1)
    assert words_as_text(text[:900]) == " ".join(words_of(text[:900])).encode()
    assert words_as_text("the of ?") == words_as_text("") == b""
