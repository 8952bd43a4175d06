"""What counts as a word: the analysis that the benchmark's BM25 and the store's index of words share.

Runs of letters and digits in lower case, without English stop words (those of NLTK and of Lucene), by their Snowball
stems. Single letters stay, but for those that contractions leave: C and R are names. Of a word of more than LETTERS
the first ones count. A leaf: text in, words out.
Test: tests/ranking/test_words.py.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

WORD = re.compile(r"[^\W_]+")
# Where a text may be cut: no letters or digits, nor signs that a capital sigma looks across for the end of its word.
CUTS = re.compile(r"[\s,;!?()、。，；！？]")
CHARACTERS_AT_ONCE = 100_000
# What tells a word: an index of words takes 66 bytes a letter of it, 1.5 GB for a file of 24 MB without a space.
LETTERS = 10_000
_MOST_COMMON = (
    "a about above after again against ain all am an and any are aren as at be because been before being below "
    "between both but by can couldn d did didn do does doesn doing don down during each few for from further had "
    "hadn has hasn have haven having he her here hers herself him himself his how i if in into is isn it its "
    "itself just ll m ma me mightn more most mustn my myself needn no nor not now o of off on once only or other "
    "our ours ourselves out over own re s same shan she should shouldn so some such t than that the their theirs "
    "them themselves then there these they this those through to too under until up ve very was wasn we were "
    "weren what when where which while who whom why will with won wouldn y you your yours yourself yourselves"
)
STOP_WORDS = frozenset(_MOST_COMMON.split())
_of_thread = threading.local()


def _stemmer() -> Any:
    """One for each thread, because a stemmer keeps its state between calls.

    It remembers no words: a text of more different ones than it may keep takes four times as long with them.
    """
    if not hasattr(_of_thread, "stemmer"):
        import Stemmer

        _of_thread.stemmer = Stemmer.Stemmer("english", 0)
    return _of_thread.stemmer


def words_of(text: str) -> list[str]:
    """The stems of a text's words, in order, with repeats; empty where only stop words and signs are.

    Of a long text a stretch at a time, and equal stems are one object: a word of its own takes 60 bytes.
    """
    known: dict[str, str] = {}
    return [known.setdefault(stem, stem) for stretch in _stretches(text) for stem in _stems(stretch)]


def words_as_text(text: str) -> bytearray:
    """The words of :func:`words_of` with spaces between, in UTF-8; in memory for them and a stretch of the text."""
    written = bytearray()
    for stretch in _stretches(text):
        if stems := _stems(stretch):
            written += (" " if written else "").encode() + " ".join(stems).encode()
    return written


def _stems(text: str) -> list[str]:
    words = [word[:LETTERS] for word in WORD.findall(text.lower()) if word not in STOP_WORDS]
    stems: list[str] = _stemmer().stemWords(words)
    return stems


def _stretches(text: str) -> Iterator[str]:
    """A text in pieces of some CHARACTERS_AT_ONCE, cut between words."""
    start = 0
    while start < len(text):
        found = CUTS.search(text, start + CHARACTERS_AT_ONCE)
        end = len(text) if found is None else found.start()
        yield text[start:end]
        start = end
