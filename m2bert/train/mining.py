"""Hard negatives: the best-scored documents that do not answer a query, by BM25 once or by the model again and again.

Test: tests/train/test_mining.py.

Which lists a batch draws from depends on its number alone, and lists are kept on disk, so that a resumed run sees
what an uninterrupted one would. A batch is prepared while the step before it runs; so lists made after step n serve
from the second step after it on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from m2bert.data.contrast import LabelledSource
from m2bert.data.examples import SpecialIds, pad_rows, wrap_special
from m2bert.errors import M2BertError
from m2bert.files import whole_file
from m2bert.ranking.bm25 import BM25

ROWS_AT_ONCE = 64
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


def model_scorer(
    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    model: Any,
    ids: SpecialIds,
    *,
    longest: int,
    bf16: bool,
) -> Scorer:
    """Cosines by the model as it is when called; texts are cut to their first `longest` tokens."""

    def vectors(rows: Sequence[np.ndarray]) -> torch.Tensor:
        made = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            group = [wrap_special(row[: longest - 2], ids) for row in rows[start : start + ROWS_AT_ONCE]]
            tokens, mask = (torch.as_tensor(array, device=model.device) for array in pad_rows(group, ids.pad))
            made.append(torch.nn.functional.normalize(encode(tokens, mask).float(), dim=-1))
        return torch.cat(made)

    def score(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        was_training = model.training
        model.eval()
        with torch.no_grad(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            one, two = vectors(queries), vectors(documents)
        model.train(was_training)
        for start in range(0, len(one), ROWS_AT_ONCE):
            yield from (one[start : start + ROWS_AT_ONCE] @ two.T).cpu().numpy()

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


def mine(
    sources: Sequence[LabelledSource], scorer: Scorer, *, depth: int, pool: int, rng: np.random.Generator
) -> np.ndarray:
    """Negatives (num_queries, depth) int64 of every query of `sources`, best-scored first, -1 where there are no more.

    Queries and documents are numbered as in their PairData, of which `sources` are the parts. Each data set is mined
    by itself, among `pool` of its documents at most. A document that answers the query, under this or another number,
    is never among its negatives.
    """
    mined = np.full((len(sources[0].data.queries), depth), NONE, dtype=np.int64)
    for source in sources:
        store = source.data.documents
        documents = np.asarray(source.documents)
        if len(documents) > pool:
            documents = np.sort(rng.choice(documents, pool, replace=False))
        texts = [store.document(int(document)) for document in documents]
        keys = [text.tobytes() for text in texts]
        numbers = sorted(number for several in source.queries.values() for number in several)
        queries = [source.data.queries.document(number) for number in numbers]
        for number, query, scores in zip(numbers, queries, scorer(queries, texts), strict=True):
            answers = {store.document(answer).tobytes() for answer in source.answers[query.tobytes()]}
            order = (i for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf)
            found: list[int] = []
            for i in order:
                if len(found) == depth:
                    break
                if keys[i] not in answers:
                    found.append(int(documents[i]))
            mined[number, : len(found)] = found
    return mined
