"""Batches for retrieval training: labelled pairs and pairs cut from plain text, each batch from one data set.

Every batch is a function of (seed, index) alone, so that a resumed run sees what an uninterrupted one would.
Tests: tests/train/test_data.py, tests/model/test_term_weights.py.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from m2bert.data.examples import SpecialIds, pad_rows, wrap_special
from m2bert.data.pairs import PairData
from m2bert.data.tokens import TokenStore
from m2bert.errors import M2BertError

logger = logging.getLogger(__name__)
COMMON_TOKENS = 150
MIN_CLOZE_DOCUMENT = 96
FREQUENCY_DOCUMENTS = 1500
RAREST_SHARE = 1e-4
# Queries, documents, and (queries, documents) bool: answers a query without being its own positive.
Rows = tuple[list[np.ndarray], list[np.ndarray], np.ndarray]
# Queries of a batch -> the same, some in another form.
Variation = Callable[[Sequence[np.ndarray], np.random.Generator], list[np.ndarray]]


class ContrastSettings(Protocol):
    """How pairs are drawn, as FinetuneConfig of m2bert.train.settings says. Lengths count [CLS] and [SEP].

    lengths: longest document -> share of the batches. batch_size: queries per batch at most; negatives: extra
    documents per batch; batch_tokens bounds documents x longest.
    """

    lengths: dict[int, float]
    batch_size: int
    negatives: int
    batch_tokens: int
    max_query_tokens: int
    crop: str
    cloze_share: float
    keep_share: float
    keyword_share: float
    similar_lengths: bool


class PairSource(Protocol):
    """A data set that pairs are drawn from."""

    name: str
    size: float

    def draw(
        self, rng: np.random.Generator, settings: ContrastSettings, payload: int, mined: np.ndarray | None = None
    ) -> Rows:
        """Queries and documents (ids without special tokens), documents beyond the queries being negatives; and
        which documents answer a query besides its own positive. `mined` (num_queries, depth), documents or -1: where
        extra negatives are taken from first."""


def batch_rows(settings: ContrastSettings, longest: int, available: int) -> tuple[int, int]:
    """(queries, documents) that fit the token budget when documents have `longest` tokens."""
    wanted = settings.batch_size + settings.negatives
    documents = max(2, min(wanted, available, settings.batch_tokens // max(longest + 2, 1)))
    documents = min(documents, available)
    return max(1, min(settings.batch_size, documents - settings.negatives)), documents


def crop_tokens(ids: np.ndarray, size: int, crop: str, rng: np.random.Generator) -> np.ndarray:
    """At most `size` consecutive tokens: the head, a random window, or (mixed) either with equal chance."""
    if len(ids) <= size:
        return ids
    if crop == "head" or (crop == "mixed" and rng.random() < 0.5):
        return ids[:size]
    start = int(rng.integers(0, len(ids) - size + 1))
    return ids[start : start + size]


class LabelledSource:
    """Pairs of one data set; a batch has distinct documents of similar length and distinct queries.

    Documents of the same tokens are one, the first of them: two rows of one batch would each be the other's negative.
    """

    def __init__(self, name: str, data: PairData, pairs: np.ndarray) -> None:
        self.name, self.data = name, data
        by_document: dict[int, list[int]] = {}
        answers: dict[bytes, set[int]] = {}
        first: dict[bytes, int] = {}
        for number, document in pairs.tolist():
            text = hashlib.blake2b(data.documents.document(document).tobytes(), digest_size=16).digest()
            document = first.setdefault(text, document)
            by_document.setdefault(document, []).append(number)
            # A query with several answers is stored once for each: its text is what tells.
            answers.setdefault(data.queries.document(number).tobytes(), set()).add(document)
        self.answers = answers
        self.several = {text: documents for text, documents in answers.items() if len(documents) > 1}
        lengths = data.documents.lengths
        self.documents = sorted(by_document, key=lambda document: int(lengths[document]))
        self.queries = by_document
        self.size = float(len(pairs)) ** 0.5

    def draw(
        self, rng: np.random.Generator, settings: ContrastSettings, payload: int, mined: np.ndarray | None = None
    ) -> Rows:
        """See PairSource. A window of neighbours in length is drawn first, where asked, then documents within it."""
        window = self._window(rng, settings)
        longest = int(min(max(self.data.documents.lengths[i] for i in window), payload))
        num_queries, num_documents = batch_rows(settings, longest, len(window))
        queries, numbers = list[np.ndarray](), list[int]()
        texts, places = list[np.ndarray](), list[int]()
        asked, read = set[bytes](), set[bytes]()
        for document in window:
            if len(texts) == num_documents:
                break
            text = crop_tokens(self.data.documents.document(document), payload, settings.crop, rng)
            # Texts that only differ beyond the crop would each be a negative of the other's query.
            if text.tobytes() in read:
                continue
            if len(queries) < num_queries:
                number = int(rng.choice(self.queries[document]))
                query = crop_tokens(
                    self.data.queries.document(number), settings.max_query_tokens - 2, settings.crop, rng
                )
                # Two equal queries with different documents would each make the other's positive a negative.
                if query.tobytes() in asked:
                    continue
                asked.add(query.tobytes())
                queries.append(query)
                numbers.append(number)
            read.add(text.tobytes())
            texts.append(text)
            places.append(document)
        if mined is not None:
            count = num_documents - len(queries)
            hard = self._hard(mined[numbers], places[: len(queries)], count, rng)
            rest = [i for i in range(len(queries), len(texts)) if places[i] not in hard][: count - len(hard)]
            cropped = [crop_tokens(self.data.documents.document(i), longest, settings.crop, rng) for i in hard]
            texts[len(queries) :] = cropped + [texts[i] for i in rest]
            places[len(queries) :] = hard + [places[i] for i in rest]
        return queries, texts, self._also_answers(numbers, places)

    def _window(self, rng: np.random.Generator, settings: ContrastSettings) -> list[int]:
        """Documents that a batch is drawn from, shuffled: neighbours in length, where asked, else all."""
        total = len(self.documents)
        centre = int(rng.integers(0, total))
        reach = 2 * (settings.batch_size + settings.negatives) if settings.similar_lengths else total
        first = min(max(0, centre - reach), max(0, total - 2 * reach))
        window: list[int] = rng.permutation(self.documents[first : first + 2 * reach]).tolist()
        return window

    def _hard(self, mined: np.ndarray, taken: list[int], count: int, rng: np.random.Generator) -> list[int]:
        """At most `count` of the mined documents that are not in the batch yet, with equal chances."""
        candidates = [int(place) for place in np.unique(mined) if place >= 0 and int(place) not in taken]
        return [candidates[i] for i in rng.permutation(len(candidates))[:count]]

    def _also_answers(self, numbers: list[int], documents: list[int]) -> np.ndarray:
        also = np.zeros((len(numbers), len(documents)), dtype=np.bool_)
        for i, number in enumerate(numbers):
            text = self.data.queries.document(number).tobytes()
            if text in self.several:
                also[i] = [j != i and document in self.several[text] for j, document in enumerate(documents)]
        return also


class ClozeSource:
    """Pairs cut from plain text: a span of a document as the query, the text around it as the positive."""

    def __init__(self, name: str, store: TokenStore, documents: np.ndarray, ends: frozenset[int]) -> None:
        self.name, self.store = name, store
        lengths = store.lengths[documents]
        self.documents = documents[lengths >= MIN_CLOZE_DOCUMENT]
        self.size = float(lengths[lengths >= MIN_CLOZE_DOCUMENT].sum()) ** 0.5
        self.ends = np.asarray(sorted(ends))
        self.common = np.asarray([], dtype=np.int64)

    def draw(
        self, rng: np.random.Generator, settings: ContrastSettings, payload: int, mined: np.ndarray | None = None
    ) -> Rows:
        """See PairSource. Half of the batches take several disjoint crops of the same document (hard negatives)."""
        # Lengths vary from batch to batch, not within, so that little is padded.
        shortest = min(MIN_CLOZE_DOCUMENT, payload)
        size = int(np.exp(rng.uniform(np.log(shortest), np.log(payload + 1))))
        per_document = 1 if rng.random() < 0.5 else 4
        num_queries, num_documents = batch_rows(settings, size, len(self.documents))
        crops: list[np.ndarray] = []
        for document in rng.permutation(self.documents)[:num_documents]:
            crops += self._crops(self.store.document(int(document)), size, per_document, rng)
            if len(crops) >= num_documents:
                break
        queries, positives = [], []
        for crop in crops[: min(num_queries, len(crops))]:
            query, positive = self._pair(crop, settings, rng)
            queries.append(query)
            positives.append(positive)
        documents = positives + crops[len(queries) : num_documents]
        return queries, documents, np.zeros((len(queries), len(documents)), dtype=np.bool_)

    def _crops(self, ids: np.ndarray, size: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        if len(ids) <= size:
            return [ids]
        slots = len(ids) // size
        offset = int(rng.integers(0, len(ids) - slots * size + 1))
        chosen = rng.permutation(slots)[:count]
        return [ids[offset + slot * size : offset + (slot + 1) * size] for slot in chosen]

    def _pair(
        self, crop: np.ndarray, settings: ContrastSettings, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        longest = min(settings.max_query_tokens - 2, 52, len(crop) // 2)
        size = int(rng.integers(min(10, longest), longest + 1))
        start = int(rng.integers(0, len(crop) - size + 1))
        # Begin after the end of a sentence where one is near.
        ends = np.flatnonzero(np.isin(crop[start : start + 30], self.ends))
        if len(ends) and start + int(ends[0]) + 1 + size <= len(crop):
            start += int(ends[0]) + 1
        query = crop[start : start + size]
        keep = rng.random() < settings.keep_share
        positive = crop if keep else np.concatenate([crop[:start], crop[start + size :]])
        if rng.random() < settings.keyword_share:
            rare = query[~np.isin(query, self.common)]
            if len(rare) >= 3:
                first = int(rng.integers(0, max(1, len(rare) - 8)))
                query = rare[first : first + int(rng.integers(3, 13))]
        return query, positive


def labelled_sources(data: PairData) -> list[LabelledSource]:
    """One source per data set of `data`; those of a single document, which has no negatives, are left out."""
    names = data.documents.sources
    of_pair = data.documents.source_ids[data.pairs[:, 1]]
    sources = [LabelledSource(name, data, data.pairs[of_pair == i]) for i, name in enumerate(names)]
    single = [source.name for source in sources if len(source.documents) < 2]
    if single:
        logger.info("left out, a single document each: %s", ", ".join(single))
    return [source for source in sources if len(source.documents) > 1]


def inverse_document_frequencies(sources: Sequence[LabelledSource], vocab_size: int) -> np.ndarray:
    """-log of the share of documents that hold each piece (vocab_size,) float32, at least 0.

    Each data set counts the same, whatever its size, by at most FREQUENCY_DOCUMENTS of its documents: a piece is
    common that is common in one kind of text, such as the punctuation of code.
    """
    shares = np.zeros(vocab_size)
    for source in sources:
        step = -(-len(source.documents) // FREQUENCY_DOCUMENTS)
        chosen = source.documents[::step]
        counts = np.zeros(vocab_size)
        for document in chosen:
            counts[np.unique(source.data.documents.document(document))] += 1
        shares += counts / len(chosen) / len(sources)
    return np.maximum(-np.log(shares + RAREST_SHARE), 0.0).astype(np.float32)


def cloze_sources(store: TokenStore, sentence_ends: frozenset[int]) -> list[PairSource]:
    """One source per collection of `store`, named `cloze/<collection>`, where it has long enough texts."""
    counts = np.bincount(store.tokens, minlength=1)
    common = np.argsort(counts)[::-1][:COMMON_TOKENS]
    sources = []
    for i, name in enumerate(store.sources):
        source = ClozeSource(f"cloze/{name}", store, np.flatnonzero(store.source_ids == i), sentence_ends)
        source.common = common
        if len(source.documents) >= 2:
            sources.append(source)
    return list(sources)


class ContrastBatches:
    """Batches by index: query_input_ids, query_attention_mask, document_input_ids, document_attention_mask, int64;
    ignored (queries, documents) bool, pairs that are no negatives because the document answers the query too.

    A data set is drawn with probability proportional to the square root of its size times its entry in `weights`
    (default 1); `settings.cloze_share` of the batches come from plain text when there is any. `vary` changes
    queries (m2bert.data.query_variants), one that comes again in another way. `negatives_of` may be set to what gives
    the mined negatives for a batch by its index.
    """

    def __init__(
        self,
        labelled: Sequence[PairSource],
        cloze: Sequence[PairSource],
        ids: SpecialIds,
        settings: ContrastSettings,
        *,
        weights: Mapping[str, float] | None = None,
        vary: Variation | None = None,
        seed: int = 17,
    ) -> None:
        self.ids, self.settings, self.vary, self.seed = ids, settings, vary, seed
        self.negatives_of: Callable[[int], np.ndarray | None] = lambda index: None
        self.sources = [*labelled, *cloze]
        if not self.sources:
            raise M2BertError("finetune: needs pairs, tasks or plain text, got none; pass --pairs, --loco or --cloze")
        unknown = set(weights or {}) - {source.name for source in self.sources}
        if unknown:
            raise M2BertError(
                f"finetune: weights name data sets that are there, got {', '.join(sorted(unknown))}; there are "
                f"{', '.join(source.name for source in self.sources)}"
            )
        share = settings.cloze_share if labelled and cloze else float(bool(cloze))
        chances = [(weights or {}).get(source.name, 1.0) * source.size for source in self.sources]
        for group, part in ((slice(0, len(labelled)), 1 - share), (slice(len(labelled), None), share)):
            total = sum(chances[group])
            if total <= 0 and part > 0:
                raise M2BertError("finetune: weights must leave some data, got all 0; raise them")
            chances[group] = [part * chance / total if total > 0 else 0.0 for chance in chances[group]]
        self.chances = np.asarray(chances)
        self.lengths = np.asarray(sorted(settings.lengths))
        shares = np.asarray([settings.lengths[length] for length in self.lengths], dtype=np.float64)
        self.length_chances = shares / shares.sum()

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Batch `index`."""
        rng = np.random.default_rng([self.seed, 3, index])
        length = int(rng.choice(self.lengths, p=self.length_chances))
        source = self.sources[int(rng.choice(len(self.sources), p=self.chances))]
        queries, documents, ignored = source.draw(rng, self.settings, length - 2, self.negatives_of(index))
        if self.vary is not None:
            # Of its own, so that a run without changes sees the same rows.
            queries = self.vary(queries, np.random.default_rng([self.seed, 8, index]))
        batch = {"ignored": ignored}
        for name, rows in (("query", queries), ("document", documents)):
            ids, mask = pad_rows([wrap_special(row, self.ids) for row in rows], self.ids.pad)
            batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"] = ids, mask
        return batch
