"""Token ids of texts of any length, a stretch at a time: the tokenizer's objects take hundreds of bytes a token.

Test: tests/encoders/test_tokens.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert.encoders.windows import groups_of_characters

CHARACTERS_AT_ONCE = 200_000
# They end words at white space, so that a text cut there has the tokens it has as a whole.
SPLIT_AT_SPACE = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
SPACES = (" ", "\n")

Tokens = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Ids (tokens,), and the start and end characters of each (tokens, 2); of 0 tokens where they were not asked for."""


def tokens_of(core: Any, texts: Sequence[str], *, offsets: bool) -> Iterator[Tokens]:
    """The tokens of each text by a tokenizers.Tokenizer, without special ones."""
    cut = type(core.pre_tokenizer).__name__ in SPLIT_AT_SPACE
    stretches = [(number, start) for number, text in enumerate(texts) for start in (_starts(text) if cut else [0])]
    ends = [*(start for _, start in stretches[1:]), 0][: len(stretches)]
    pieces = [texts[number][start : end or None] for (number, start), end in zip(stretches, ends, strict=True)]
    encode = core.encode_batch if offsets else core.encode_batch_fast
    made: list[Tokens] = []
    for first, last in groups_of_characters(pieces, CHARACTERS_AT_ONCE):
        encodings = encode(pieces[first:last], add_special_tokens=False)
        for place, encoding in zip(range(first, last), encodings, strict=True):
            _, start = stretches[place]
            spans = np.asarray(encoding.offsets if offsets else [], dtype=np.int64).reshape(-1, 2) + start
            made.append((np.asarray(encoding.ids, dtype=np.int32), spans))
            if ends[place] == 0:  # the text's last piece
                yield (
                    made[0]
                    if len(made) == 1
                    else (
                        np.concatenate([ids for ids, _ in made]),
                        np.concatenate([each for _, each in made]),
                    )
                )
                made = []


def _starts(text: str) -> list[int]:
    """Where the stretches of a text begin: each some CHARACTERS_AT_ONCE long, up to the next white space."""
    starts = [0]
    while (end := starts[-1] + CHARACTERS_AT_ONCE) < len(text):
        found = [place for space in SPACES if (place := text.find(space, end)) >= 0]
        if not found:
            break
        starts.append(min(found))
    return starts
