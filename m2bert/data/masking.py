"""Masked-LM corruption of token ids.

Test: tests/train/test_data.py.
"""

from __future__ import annotations

import numpy as np

IGNORED = -100
REPLACED_BY_MASK = 0.8
REPLACED_BY_RANDOM = 0.1


def mask_tokens(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float,
    mask_id: int,
    vocab_size: int,
    special_ids: frozenset[int],
    continues: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt `ids` for masked LM: each ordinary token is chosen with probability `rate`.

    Of the chosen 80 % become [MASK], 10 % a random ordinary token and 10 % stay (BERT's rule). Special tokens are
    never chosen and never inserted. With `continues (vocab_size,)` bool, the pieces that go on with the word before
    them, all pieces of a word are chosen or none.

    ids (batch, seqlen) integers -> (corrupted ids, labels), both (batch, seqlen) int64; labels are -100 where
    nothing is to be predicted.
    """
    ids = ids.astype(np.int64)
    ordinary = ~np.isin(ids, list(special_ids))
    draws = rng.random(ids.shape)
    if continues is not None:
        draws = np.take_along_axis(draws, _word_numbers(ids, ordinary, continues), axis=1)
    chosen = (draws < rate) & ordinary
    labels = np.where(chosen, ids, IGNORED)
    fate = rng.random(ids.shape)
    corrupted = np.where(chosen & (fate < REPLACED_BY_MASK), mask_id, ids)
    first_ordinary = max(special_ids) + 1 if special_ids else 0
    random_ids = rng.integers(first_ordinary, vocab_size, ids.shape)
    use_random = chosen & (fate >= REPLACED_BY_MASK) & (fate < REPLACED_BY_MASK + REPLACED_BY_RANDOM)
    return np.where(use_random, random_ids, corrupted), labels


def _word_numbers(ids: np.ndarray, ordinary: np.ndarray, continues: np.ndarray) -> np.ndarray:
    """Number of the word of each token within its row, from 0, (batch, seqlen) int64.

    A piece that continues nothing, because the text was cut before it, is a word.
    """
    goes_on = continues[ids] & ordinary
    goes_on[:, 1:] &= ordinary[:, :-1]
    goes_on[:, :1] = False
    return np.cumsum(~goes_on, axis=1) - 1
