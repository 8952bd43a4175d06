"""Pretraining examples: a mixture of variable-length and packed maximum-length runs of tokens, in batches.

Every batch is a function of (seed, index) alone, so that a resumed run sees what an uninterrupted one would.
Test: tests/train/test_data.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from m2bert.data.masking import mask_tokens
from m2bert.data.tokens import TokenStore
from m2bert.errors import M2BertError

MIN_TOKENS = 10
Example = TypeVar("Example")


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens and the size of the vocabulary."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    vocab_size: int

    @property
    def unmaskable(self) -> frozenset[int]:
        """Tokens that masked LM never chooses."""
        return frozenset((self.pad, self.unk, self.cls, self.sep, self.mask))


def special_ids(tokenizer: object) -> SpecialIds:
    """Read the special ids of a tokenizer."""
    names = ("pad", "unk", "cls", "sep", "mask")
    return SpecialIds(
        **{name: int(getattr(tokenizer, f"{name}_token_id")) for name in names},
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
    )


def continuing_pieces(tokenizer: object) -> np.ndarray | None:
    """Which pieces go on with the word before them (`##ing`), (vocab_size,) bool; None where none does."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    found = np.zeros(max(vocabulary.values()) + 1, dtype=np.bool_)
    found[[number for piece, number in vocabulary.items() if piece.startswith("##")]] = True
    return found if found.any() else None


def cut_documents(
    store: TokenStore, order: np.ndarray, lengths: np.ndarray, rng: np.random.Generator, payload: int
) -> list[np.ndarray]:
    """Variable-length examples: a document that fits is kept whole; a longer one is cut into consecutive parts.

    Parts have log-uniform lengths between 10 and `payload` tokens, so that short texts are as common as in a
    natural mixture; every token of every document is in exactly one part. `lengths` are the documents' lengths.
    """
    examples = []
    for index in order:
        ids = store.document(int(index))
        start = 0
        while start < lengths[index]:
            left = int(lengths[index]) - start
            size = left
            if left > payload:
                drawn = int(np.exp(rng.uniform(np.log(MIN_TOKENS), np.log(payload))))
                # The last part must not be shorter than the least useful length.
                size = min(drawn, left - MIN_TOKENS)
            examples.append(ids[start : start + size])
            start += size
    return examples


def pack_documents(store: TokenStore, order: np.ndarray, payload: int, sep_id: int) -> list[np.ndarray]:
    """Packed examples: documents joined in `order` with [SEP] between, cut every `payload` tokens.

    Every token of every document is in exactly one example; only the last example is shorter.
    """
    if len(order) == 0:
        return []
    separator = np.asarray([sep_id], dtype=store.tokens.dtype)
    pieces = [piece for index in order for piece in (store.document(int(index)), separator)]
    stream = np.concatenate(pieces[:-1])
    return [stream[start : start + payload] for start in range(0, len(stream), payload)]


def part_documents(store: TokenStore, order: np.ndarray, payload: int) -> list[np.ndarray]:
    """Examples of one document each: whole where it fits, else in consecutive parts of `payload` tokens.

    Every token of every document is in exactly one example; the last part of a document has at least ten tokens.
    """
    examples = []
    for index in order:
        ids = store.document(int(index))
        start = 0
        while start < len(ids):
            left = len(ids) - start
            size = left if left <= payload else min(payload, left - MIN_TOKENS)
            examples.append(ids[start : start + size])
            start += size
    return examples


class PretrainBatches:
    """Batches of masked examples by index; epoch after epoch, reshuffled, without end.

    Each length of `lengths` (tokens per example incl. [CLS] and [SEP] -> share of the tokens) makes its own share
    of the documents into examples, 30 % of them (`variable_share`) of variable length and the rest packed.
    A batch holds examples of about one length and about `batch_tokens` tokens with padding.
    Without `mix_documents` nothing is packed: every row holds text of one document, whole or in full-length parts.
    `weights` (source -> how often its documents appear per epoch; default 1) may be fractions. With `continues`
    (continuing_pieces) words are masked whole.
    """

    def __init__(
        self,
        store: TokenStore,
        ids: SpecialIds,
        *,
        lengths: Mapping[int, float],
        batch_tokens: int,
        variable_share: float = 0.3,
        mix_documents: bool = True,
        mask_rate: float = 0.3,
        continues: np.ndarray | None = None,
        weights: Mapping[str, float] | None = None,
        seed: int = 17,
    ) -> None:
        if not lengths or min(lengths) < MIN_TOKENS + 2 or min(lengths.values()) < 0 or sum(lengths.values()) <= 0:
            raise M2BertError(
                f"pretrain: lengths must map tokens (at least {MIN_TOKENS + 2}) to shares that are not all 0, got "
                f"{dict(lengths)}; write for example 512:0.7,2048:0.3"
            )
        if batch_tokens < max(lengths):
            raise M2BertError(
                f"pretrain: batch_tokens must hold one example of the longest length {max(lengths)}, got "
                f"{batch_tokens}; raise it"
            )
        unknown = set(weights or {}) - set(store.sources)
        if unknown:
            raise M2BertError(
                f"pretrain: weights name sources that the data has, got {sorted(unknown)}; "
                f"it has {', '.join(sorted(store.sources))}"
            )
        self.store, self.ids, self.seed = store, ids, seed
        self.shares = {length: share / sum(lengths.values()) for length, share in lengths.items() if share > 0}
        self.batch_tokens, self.variable_share = batch_tokens, variable_share
        self.mix_documents, self.mask_rate, self.continues = mix_documents, mask_rate, continues
        self.weights = np.asarray([(weights or {}).get(name, 1.0) for name in store.sources])
        self._first_of_epoch = [0]
        self._plans: dict[int, list[list[np.ndarray]]] = {}

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Batch `index`: input_ids, attention_mask, labels, each (batch, seqlen) int64."""
        while index >= self._first_of_epoch[-1]:
            self._plan(len(self._first_of_epoch) - 1)
        epoch = int(np.searchsorted(self._first_of_epoch, index, side="right")) - 1
        examples = self._plan(epoch)[index - self._first_of_epoch[epoch]]
        rng = np.random.default_rng([self.seed, 1, index])
        return masked_batch(examples, self.ids, rng, self.mask_rate, self.continues)

    def _plan(self, epoch: int) -> list[list[np.ndarray]]:
        if epoch not in self._plans:
            self._plans = {epoch: self._make_plan(epoch)}
            if epoch + 1 == len(self._first_of_epoch):
                self._first_of_epoch.append(self._first_of_epoch[-1] + len(self._plans[epoch]))
        return self._plans[epoch]

    def _make_plan(self, epoch: int) -> list[list[np.ndarray]]:
        rng = np.random.default_rng([self.seed, 0, epoch])
        weight = self.weights[self.store.source_ids]
        copies = np.floor(weight + rng.random(len(self.store))).astype(np.int64)
        order = rng.permutation(np.repeat(np.arange(len(self.store)), copies))
        if len(order) == 0:
            raise M2BertError("pretrain: weights must leave some documents, got none; raise them")
        doc_lengths = self.store.lengths
        batches: list[list[np.ndarray]] = []
        for length, documents in self._split(order, doc_lengths, rng):
            payload = length - 2
            # Parts are shorter than packed examples (mean of a log-uniform length), so fewer tokens make 30 %.
            mean_part = (payload - MIN_TOKENS) / np.log(payload / MIN_TOKENS)
            tokens_variable = self.variable_share * mean_part
            share = tokens_variable / (tokens_variable + (1 - self.variable_share) * payload)
            is_variable = rng.random(len(documents)) < share
            examples = cut_documents(self.store, documents[is_variable], doc_lengths, rng, payload)
            batches += batches_by_length(examples, self.batch_tokens, len)
            if self.mix_documents:
                packed = pack_documents(self.store, documents[~is_variable], payload, self.ids.sep)
            else:
                packed = part_documents(self.store, documents[~is_variable], payload)
            batches += batches_by_length([packed[i] for i in rng.permutation(len(packed))], self.batch_tokens, len)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _split(
        self, order: np.ndarray, doc_lengths: np.ndarray, rng: np.random.Generator
    ) -> list[tuple[int, np.ndarray]]:
        """Deal documents to the lengths by their shares of tokens; long documents go to long lengths first.

        A long length is filled, as far as they reach, with documents that fill an example by themselves, so that
        long-range text is really long-range; what is dealt is drawn at random among those.
        """
        left = order
        dealt = []
        total = float(doc_lengths[order].sum())
        for length in sorted(self.shares, reverse=True):
            if length == min(self.shares):
                dealt.append((length, left))
                break
            first = left[np.argsort(doc_lengths[left] < length - 2, kind="stable")]
            taken = int(np.searchsorted(np.cumsum(doc_lengths[first]), self.shares[length] * total)) + 1
            dealt.append((length, rng.permutation(first[:taken])))
            left = rng.permutation(first[taken:])
        return dealt


def batches_by_length(
    examples: Sequence[Example], batch_tokens: int, length: Callable[[Example], int]
) -> list[list[Example]]:
    """Group examples of similar length so that rows x longest stays within `batch_tokens`, [CLS] and [SEP] included."""
    batches: list[list[Example]] = []
    current: list[Example] = []
    # Stable sort: packed examples, all of one length, keep their shuffled order.
    for example in sorted(examples, key=length):
        if current and (len(current) + 1) * (length(example) + 2) > batch_tokens:
            batches.append(current)
            current = []
        current.append(example)
    return [*batches, current] if current else batches


def pad_rows(rows: list[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad rows of ids to the longest: (ids, mask), both (batch, seqlen) int64, mask 1 for real tokens."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def wrap_special(row: np.ndarray, ids: SpecialIds) -> np.ndarray:
    """[CLS] row [SEP] as int64."""
    return np.concatenate([[ids.cls], row.astype(np.int64), [ids.sep]])


def masked_batch(
    examples: list[np.ndarray],
    ids: SpecialIds,
    rng: np.random.Generator,
    mask_rate: float,
    continues: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Pad and mask examples: input_ids, attention_mask, labels, each (batch, seqlen) int64."""
    input_ids, attention_mask = pad_rows([wrap_special(example, ids) for example in examples], ids.pad)
    input_ids, labels = mask_tokens(
        input_ids,
        rng,
        rate=mask_rate,
        mask_id=ids.mask,
        vocab_size=ids.vocab_size,
        special_ids=ids.unmaskable,
        continues=continues,
    )
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
