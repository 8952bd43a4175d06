"""Token ids of texts of any length, a stretch at a time: the tokenizer's objects take hundreds of bytes a token.

Test: tests/encoders/test_tokens.py.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert.encoders.windows import groups_of_characters

CHARACTERS_AT_ONCE = 100_000
# Where words end, so that a text cut there has the tokens it has as a whole: at white space, and for BERT at marks too,
# which are words of their own (those that names of special tokens are made of are not among these).
SPACE = re.compile(r"[ \t\n\r\u3000]")
SPACE_OR_MARK = re.compile(r"[ \t\n\r\u3000.,;:!?、。，；：！？]")
CUTS = {"BertPreTokenizer": SPACE_OR_MARK, "Whitespace": SPACE, "WhitespaceSplit": SPACE}
# A longer one, which no vocabulary has, is cut anywhere.
LONGEST_WORD = 1_000_000
MOST_OF_INT32 = 2**31 - 1

Tokens = tuple[NDArray[np.int32], NDArray[np.signedinteger[Any]]]
"""Ids (tokens,), and the start and end characters of each (tokens, 2), int32 but in texts of 2 GB; of 0 tokens where
they were not asked for."""


def tokens_of(core: Any, texts: Sequence[str], *, offsets: bool) -> Iterator[Tokens]:
    """The tokens of each text by a tokenizers.Tokenizer, without special ones."""
    ends = CUTS.get(type(core.pre_tokenizer).__name__)
    stretches = [
        (number, range(start, end))
        for number, text in enumerate(texts)
        for start, end in pairwise([*([0] if ends is None else _starts(text, ends)), len(text)])
    ]
    encode = core.encode_batch if offsets else core.encode_batch_fast
    # Arrays of machine numbers that grow in place: joined at the end, they would lie in memory twice.
    ids, spans = array("i"), array("i")
    for first, last in groups_of_characters([stretch for _, stretch in stretches], CHARACTERS_AT_ONCE):
        some = stretches[first:last]
        made = _tokens_of_pieces(encode, [texts[number][each.start : each.stop] for number, each in some], offsets)
        for (number, stretch), (own_ids, own_spans) in zip(some, made, strict=True):
            if stretch.start == 0:
                ids, spans = array("i"), array("i" if len(texts[number]) <= MOST_OF_INT32 else "q")
            ids.frombytes(own_ids.tobytes())
            spans.frombytes((own_spans + stretch.start).astype(spans.typecode).tobytes())
            if stretch.stop == len(texts[number]):
                yield np.asarray(ids), np.asarray(spans).reshape(-1, 2)


def _tokens_of_pieces(encode: Callable[..., Any], pieces: Sequence[str], offsets: bool) -> list[Tokens]:
    """Of pieces that are encoded together; the tokenizer's objects go before the next ones are made."""
    return [
        (
            np.asarray(encoding.ids, dtype=np.int32),
            np.asarray(encoding.offsets if offsets else [], dtype=np.int64),
        )
        for encoding in encode(pieces, add_special_tokens=False)
    ]


def _starts(text: str, ends: re.Pattern[str]) -> list[int]:
    """Where the stretches of a text begin: each some CHARACTERS_AT_ONCE long, up to the next end of a word."""
    starts = [0]
    while (least := starts[-1] + CHARACTERS_AT_ONCE) < len(text):
        found = ends.search(text, least, least + LONGEST_WORD)
        place = least + LONGEST_WORD if found is None else found.start()
        if place >= len(text):
            break
        starts.append(place)
    return starts
