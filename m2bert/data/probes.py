"""The long-range probe: masked words that only text more than 1,000 tokens away can tell.

Test: tests/train/test_probes.py.

A probe is a stretch of a document whose last word but `late` is a name: a whole word that at most 2 % of the
documents hold, that occurs in the stretch's first `early` tokens, and nowhere in the `gap` tokens before its masked
place nor in the `late` behind it. Its control has the first tokens of another document, without the name, in the
place of the early ones. Within `gap` tokens of the mask the two are equal, so whatever reads no further scores them
alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from m2bert.data.examples import SpecialIds, wrap_special
from m2bert.data.tokens import TokenStore

GAP, EARLY, LATE = 1000, 400, 60
RARE_SHARE = 0.02
PER_DOCUMENT = 4


@dataclass(frozen=True)
class Probe:
    """ids, control (seqlen,) int64, [MASK] in both at `place`, where `target` was."""

    ids: np.ndarray
    control: np.ndarray
    place: int
    target: int


def probe_length(*, gap: int = GAP, early: int = EARLY, late: int = LATE) -> int:
    """Tokens of every probe, [CLS] and [SEP] included."""
    return early + gap + 1 + late + 2


def long_range_probes(
    store: TokenStore,
    ids: SpecialIds,
    continues: np.ndarray | None,
    *,
    count: int,
    seed: int,
    gap: int = GAP,
    early: int = EARLY,
    late: int = LATE,
) -> list[Probe]:
    """At most `count` probes, no more than four of one document and one of each of its names; fewer where the text
    has fewer. They depend on the text, the tokenizer and the seed alone.

    `continues` are the pieces that go on with the word before them (continuing_pieces); None where pieces are words.
    """
    goes_on = np.zeros(ids.vocab_size, dtype=np.bool_) if continues is None else continues
    rare = _rare_pieces(store, ids, goes_on)
    rng = np.random.default_rng([seed, 5])
    probes: list[Probe] = []
    for index in rng.permutation(len(store)):
        if len(probes) >= count:
            break
        document = store.document(int(index)).astype(np.int64)
        places = list(_places(document, rare, goes_on, gap, early, late))
        for place in [places[i] for i in rng.permutation(len(places))[:PER_DOCUMENT]]:
            other = _other_text(store, int(index), int(document[place]), early, rng)
            if other is not None and len(probes) < count:
                probes.append(_probe(document, place, other, ids, gap, early, late))
    return probes


def _rare_pieces(store: TokenStore, ids: SpecialIds, goes_on: np.ndarray) -> np.ndarray:
    """Which pieces begin a word and are in 2 % of the documents at most, (vocab_size,) bool."""
    holding = np.zeros(ids.vocab_size, dtype=np.int64)
    for index in range(len(store)):
        holding[np.unique(store.document(index))] += 1
    rare = (holding > 0) & (holding <= max(1, int(RARE_SHARE * len(store)))) & ~goes_on
    rare[list(ids.unmaskable)] = False
    return rare


def _places(
    document: np.ndarray, rare: np.ndarray, goes_on: np.ndarray, gap: int, early: int, late: int
) -> Iterator[int]:
    """Places of names that the definition above fits, one for each name."""
    whole = rare[document]
    whole[:-1] &= ~goes_on[document[1:]]
    found = set()
    for place in np.flatnonzero(whole):
        name = int(document[place])
        if name in found or place < early + gap or place + late >= len(document):
            continue
        occurs = np.flatnonzero(document == name) - place
        near = (occurs >= -gap) & (occurs <= late) & (occurs != 0)
        if not near.any() and ((occurs < -gap) & (occurs >= -gap - early)).any():
            found.add(name)
            yield int(place)


def _other_text(store: TokenStore, index: int, name: int, size: int, rng: np.random.Generator) -> np.ndarray | None:
    """The first `size` tokens of another document that lack the name; None when none of ten has them."""
    for other in rng.integers(0, len(store), 10):
        text = store.document(int(other))[:size].astype(np.int64)
        if other != index and len(text) == size and not (text == name).any():
            return text
    return None


def _probe(
    document: np.ndarray, place: int, other: np.ndarray, ids: SpecialIds, gap: int, early: int, late: int
) -> Probe:
    start = place - gap - early
    row = wrap_special(document[start : place + late + 1], ids)
    at = 1 + early + gap
    row[at] = ids.mask
    control = row.copy()
    control[1 : 1 + early] = other
    return Probe(row, control, at, int(document[place]))
