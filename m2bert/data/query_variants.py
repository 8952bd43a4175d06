"""Queries as people type them: misspelt, as keywords alone, without capitals or in nothing else.

Test: tests/train/test_query_variants.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from m2bert.model.tokenization import encode_ids
from m2bert.ranking.words import STOP_WORDS, WORD

# A slip of the hand is likely in a longer word, and shows there: of shorter ones it often makes another word.
LONGER_WORD = re.compile(r"[^\W\d_]{4,}")
MISSPELT_SHARE = 0.2
SHORTEST_KEYWORD = 3
Change = Callable[[str, np.random.Generator], str]


def slip(word: str, rng: np.random.Generator) -> str:
    """`word`, of 3 letters or more, with two neighbours swapped, a letter left out, or one twice; never the first."""
    place = int(rng.integers(1, len(word) - 1))
    before, letter, following, after = word[:place], word[place], word[place + 1], word[place + 2 :]
    kind = int(rng.integers(3))
    if kind == 0 and letter != following:
        return before + following + letter + after
    return before + (letter + letter if kind == 1 else "") + following + after


def misspelt(text: str, rng: np.random.Generator) -> str:
    """`text` with a slip in about one in five of its words of 4 letters or more, in one at least if there are any."""
    words = list(LONGER_WORD.finditer(text))
    if not words:
        return text
    chosen = rng.random(len(words)) < MISSPELT_SHARE
    chosen[rng.integers(len(words))] = True
    for word in (word for word, struck in zip(reversed(words), reversed(chosen), strict=True) if struck):
        text = text[: word.start()] + slip(word.group(), rng) + text[word.end() :]
    return text


def keywords(text: str, rng: np.random.Generator) -> str:
    """The words of `text` in order, without stop words and those of one or two letters; `text` if none are left."""
    kept = [w for w in WORD.findall(text) if len(w) >= SHORTEST_KEYWORD and w.lower() not in STOP_WORDS]
    return " ".join(kept) or text


def other_case(text: str, rng: np.random.Generator) -> str:
    """`text` in small letters alone or, as often, in capitals alone."""
    return text.lower() if rng.random() < 0.5 else text.upper()


class QueryVariants:
    """Shows a share of queries in a changed form, each change as often; what is changed depends on the rng alone.

    tokenizer: what the queries are made of; where it knows no capitals, their case is no change. share: 0 to 1.
    longest: tokens of a changed query at most.
    """

    def __init__(self, tokenizer: Any, share: float, *, longest: int) -> None:
        self.tokenizer, self.share, self.longest = tokenizer, share, longest
        small, capital = encode_ids(tokenizer, ["a", "A"])
        self.changes: list[Change] = [misspelt, keywords, *([] if small == capital else [other_case])]

    def __call__(self, queries: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """`queries`, ids without special tokens, some of them changed.

        A change that would leave nothing, or make a query equal to another one, is left out: equal queries would each
        make the other's answer a negative.
        """
        seen = {query.tobytes() for query in queries}
        made = list(queries)
        for i in np.flatnonzero(rng.random(len(queries)) < self.share).tolist():
            changed = self._changed(queries[i], self.changes[rng.integers(len(self.changes))], rng)
            if len(changed) and changed.tobytes() not in seen:
                seen.add(changed.tobytes())
                made[i] = changed
        return made

    def _changed(self, query: np.ndarray, change: Change, rng: np.random.Generator) -> np.ndarray:
        known = query[query != self.tokenizer.unk_token_id]
        text = change(self.tokenizer.decode(known.tolist()), rng)
        (ids,) = encode_ids(self.tokenizer, [text])
        return np.asarray(ids[: self.longest], dtype=query.dtype)
