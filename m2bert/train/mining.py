"""Hard negatives: the best-scored documents that do not answer a query, by BM25 once or by the model again and again.

Documents that say nearly the same as an answer are none: they would answer too.
Test: tests/train/test_mining.py.

Which lists a batch draws from depends on its number alone, and lists are kept on disk, so that a resumed run sees
what an uninterrupted one would. A batch is prepared while the step before it runs; so lists made after step n serve
from the second step after it on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from m2bert.data.contrast import LabelledSource
from m2bert.data.examples import SpecialIds, pad_rows, wrap_special
from m2bert.errors import M2BertError
from m2bert.files import whole_file
from m2bert.ranking.bm25 import BM25, word_scale
from m2bert.ranking.words import words_of
from m2bert.train.retrieval import Scoring

ROWS_AT_ONCE = 64
RUN_TOKENS, SKETCH_SIZE = 8, 64
HASH_FACTOR = 0x9E3779B97F4A7C15
NONE = -1
QUERIES_AT_ONCE = 64
# Token ids of queries and documents -> for each query, scores (num_documents,); -inf: not a candidate.
Scorer = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Iterable[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """depth: negatives kept of each query; pool: documents of a data set looked at; refresh_steps: optimizer steps
    between two minings, 0 for one at the start; batches_per_step: of all processes together; folder: of the lists."""

    depth: int
    pool: int
    refresh_steps: int
    batches_per_step: int
    folder: Path
    seed: int


class Mining(TrainerCallback):
    """Lists of negatives by the number of a batch; makes new ones as the training goes on."""

    def __init__(self, sources: Sequence[LabelledSource], scorer: Scorer, settings: MiningSettings) -> None:
        self.sources, self.scorer, self.settings = sources, scorer, settings
        self._kept: dict[int, np.ndarray] = {}

    def begin(self, resumed: bool) -> None:
        """Before training: forget the lists of an earlier run unless it is resumed, and make the first ones."""
        if not resumed:
            shutil.rmtree(self.settings.folder, ignore_errors=True)
        if not self._path(0).is_file():
            self._mine(0)

    def negatives_of(self, index: int) -> np.ndarray:
        """Lists (num_queries, depth) for batch `index`. Raises M2BertError when a resumed run lacks them."""
        step = index // self.settings.batches_per_step
        every = self.settings.refresh_steps
        version = max(step - 1, 0) // every if every > 0 else 0
        if version not in self._kept:
            if not self._path(version).is_file():
                raise M2BertError(
                    f"finetune: {self._path(version)} must hold the mined negatives of the run that is resumed, got no "
                    f"file; restore it, or start again with --no-resume"
                )
            self._kept = {version: np.load(self._path(version))}
        return self._kept[version]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self.settings.refresh_steps
        ends = control.should_training_stop or state.global_step >= state.max_steps
        if every > 0 and state.global_step % every == 0 and not ends:
            self._mine(state.global_step // every)

    def _path(self, version: int) -> Path:
        return self.settings.folder / f"negatives-{version}.npy"

    def _mine(self, version: int) -> None:
        rng = np.random.default_rng([self.settings.seed, 6, version])
        lists = mine(self.sources, self.scorer, depth=self.settings.depth, pool=self.settings.pool, rng=rng)
        with whole_file(self._path(version), who="finetune", parents=True) as file:
            np.save(file, lists)


def model_scorer(scoring: Scoring, model: Any, ids: SpecialIds, *, longest: int, bf16: bool) -> Scorer:
    """Scores by the model as it is when called; texts are cut to their first `longest` tokens."""

    def groups(rows: Sequence[np.ndarray]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            group = [wrap_special(row[: longest - 2], ids) for row in rows[start : start + ROWS_AT_ONCE]]
            tokens, mask = pad_rows(group, ids.pad)
            yield torch.as_tensor(tokens, device=model.device), torch.as_tensor(mask, device=model.device)

    @torch.no_grad()
    def score(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        was_training = model.training
        model.eval()
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            asked = [scoring.queries(model, *group) for group in groups(queries)]
            read = [scoring.documents(model, *group) for group in groups(documents)]
        model.train(was_training)
        for vectors in asked:
            yield from torch.cat([scoring.scores(vectors, each) for each in read], dim=1).cpu().numpy()

    return score


def search_scorer(by_model: Scorer, tokenizer: Any, weight: float) -> Scorer:
    """What search ranks by: the model's scores and `weight` times those of the words (m2bert.ranking.parts).

    Raises M2BertError, when used, without the packages bm25s and PyStemmer.
    """

    def score(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        index = BM25(_texts(tokenizer, documents))
        for query, row in zip(_texts(tokenizer, queries), by_model(queries, documents), strict=True):
            yield row + weight * word_scale(len(words_of(query)), len(documents)) * index.score([query])[0]

    return score


def bm25_scorer(tokenizer: Any) -> Scorer:
    """BM25 over the decoded texts; documents that share no word with a query are no candidates.

    Raises M2BertError, when used, without the packages bm25s and PyStemmer.
    """

    def score(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        index = BM25(_texts(tokenizer, documents))
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            for row in index.score(_texts(tokenizer, queries[start : start + QUERIES_AT_ONCE])):
                yield np.where(row > 0, row, -np.inf)

    return score


def _texts(tokenizer: Any, rows: Sequence[np.ndarray]) -> list[str]:
    return [str(tokenizer.decode(row.tolist())) for row in rows]


def sketch(ids: np.ndarray) -> frozenset[int]:
    """The SKETCH_SIZE smallest hashes of all runs of RUN_TOKENS tokens of `ids (tokens,)`; of a shorter text, of it.

    What two texts share of them is about what they share of all (Broder 1997, "On the resemblance and containment of
    documents").
    """
    width = min(RUN_TOKENS, len(ids))
    if width == 0:
        return frozenset()
    factors = np.full(width, HASH_FACTOR, dtype=np.uint64) ** np.arange(1, width + 1, dtype=np.uint64)
    hashes: np.ndarray = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), width) @ factors
    mixed = (hashes ^ np.right_shift(hashes, np.uint64(29))) * np.uint64(HASH_FACTOR)
    return frozenset(np.unique(mixed)[:SKETCH_SIZE].tolist())


def nearly_same(one: frozenset[int], two: frozenset[int]) -> bool:
    """Whether texts of these sketches share more than half of them."""
    return 2 * len(one & two) > max(len(one), len(two))


def answers_too(source: LabelledSource) -> Callable[[int, Collection[int]], bool]:
    """A function that says whether a document is one of some answers, or nearly the same as one."""

    @cache
    def sketch_of(document: int) -> frozenset[int]:
        return sketch(source.data.documents.document(document))

    def test(document: int, answers: Collection[int]) -> bool:
        return document in answers or any(nearly_same(sketch_of(document), sketch_of(each)) for each in answers)

    return test


def mine(
    sources: Sequence[LabelledSource], scorer: Scorer, *, depth: int, pool: int, rng: np.random.Generator
) -> np.ndarray:
    """Negatives (num_queries, depth) int64 of every query of `sources`, best-scored first, -1 where there are no more.

    Queries and documents are numbered as in their PairData, of which `sources` are the parts. Each data set is mined
    by itself, among `pool` of its documents at most. A document that answers the query, or is nearly_same as one that
    does, is never among its negatives.
    """
    mined = np.full((len(sources[0].data.queries), depth), NONE, dtype=np.int64)
    for source in sources:
        store = source.data.documents
        documents = np.asarray(source.documents)
        if len(documents) > pool:
            documents = np.sort(rng.choice(documents, pool, replace=False))
        is_answer = answers_too(source)
        numbers = sorted(number for several in source.queries.values() for number in several)
        queries = [source.data.queries.document(number) for number in numbers]
        rows = scorer(queries, [store.document(int(document)) for document in documents])
        for number, query, scores in zip(numbers, queries, rows, strict=True):
            answers = source.answers[query.tobytes()]
            found: list[int] = []
            for i in np.argsort(-scores, kind="stable"):
                document = int(documents[i])
                if len(found) == depth or scores[i] == -np.inf:
                    break
                if not is_answer(document, answers):
                    found.append(document)
            mined[number, : len(found)] = found
    return mined
