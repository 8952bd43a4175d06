"""What teachers make of the text that a student is distilled on: their vectors of all segments, in one space.

Unit vectors of several teachers stand side by side, so that the cosine of two rows is the mean of the teachers'
cosines: a student whose embeddings are as long learns from all of them by the losses for one, and needs no layers that
only training uses (concatenated teachers: Jasper and Stella, arXiv 2412.19048). Before that the mean over the text is
taken off each teacher's vectors: some teachers' all point one way, which says nothing and would hide what does.
Test: tests/train/test_teachers.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2bert.data.segments import Window, segment_bounds
from m2bert.errors import M2BertError
from m2bert.train.budget import OnProgress, Progress

logger = logging.getLogger(__name__)


def open_teachers(names: Sequence[str], cache: Path) -> list[Any]:
    """Teachers by folder or name, with their vectors kept in `cache`, so that an interrupted run goes on."""
    from m2bert.encoders.cache import CachedEncoder
    from m2bert.encoders.opening import open_encoder

    encoders = [open_encoder(name) for name in names]
    return [
        CachedEncoder(encoder, cache / "teacher", f"overflow={getattr(encoder, 'overflow', 'truncate')}")
        for encoder in encoders
    ]


class TeacherSpace:
    """The space of teachers whose vectors of the training text are given, each (n, its dim) float32 of unit norm."""

    def __init__(self, vectors: Sequence[NDArray[np.float32]]) -> None:
        self.means = [each.mean(axis=0) for each in vectors]
        self.dim = sum(len(mean) for mean in self.means)

    def joined(self, vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Unit vectors (n, dim) float32 of the teachers' vectors of the same n texts, each (n, its dim).

        Raises M2BertError where a teacher's are not finite, or nothing is left of one without the mean.
        """
        parts = [_unit(each - mean) for each, mean in zip(vectors, self.means, strict=True)]
        joined: NDArray[np.float32] = np.concatenate(parts, axis=1) / np.float32(len(parts) ** 0.5)
        return joined


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise M2BertError("distill: the teacher's vectors must be finite and differ, got others; use another teacher")
    unit: NDArray[np.float32] = rows / norms
    return unit


def segment_texts(
    windows: Sequence[Window], tokenizer: Any, segment_tokens: int
) -> tuple[list[str], NDArray[np.bool_], NDArray[np.int64]]:
    """All segments of `windows` as text, whether each is of a query, and how many of the student's tokens it has."""
    parts = []
    for window in windows:
        bounds = segment_bounds(len(window.ids), segment_tokens)
        parts += [(window.ids[a:b], window.is_query) for a, b in pairwise(bounds)]
    texts = tokenizer.batch_decode([ids.tolist() for ids, _ in parts])
    return texts, np.asarray([query for _, query in parts]), np.asarray([len(ids) for ids, _ in parts], dtype=np.int64)


def teacher_vectors(
    teacher: Any, windows: Sequence[Window], tokenizer: Any, segment_tokens: int, on_progress: OnProgress | None = None
) -> NDArray[np.float32]:
    """The teacher's unit vectors (segments, dim) of all segments of `windows`, queries as queries."""
    texts, queries, sizes = segment_texts(windows, tokenizer, segment_tokens)
    # In order of length, so that the teacher's batches hold little padding.
    order = np.argsort(sizes, kind="stable")
    vectors: NDArray[np.float32] | None = None
    stage, before = f"{teacher.name} reads {sizes.sum() / 1e6:.1f}M tokens", 0
    for is_query in (True, False):
        chosen = order[queries[order] == is_query]
        if len(chosen) == 0:
            continue
        tokens = int(sizes[chosen].sum())
        report = _reporter(on_progress, stage, before, tokens, int(sizes.sum()))
        rows = _encode(teacher, [texts[number] for number in chosen], is_query, report)
        vectors = np.empty((len(texts), rows.shape[1]), dtype=np.float32) if vectors is None else vectors
        vectors[chosen] = rows
        before += tokens
    assert vectors is not None
    return _unit(vectors)


def _encode(teacher: Any, texts: list[str], is_query: bool, report: Callable[[int, int], None]) -> NDArray[np.float32]:
    if is_query:
        return np.asarray(teacher.encode(texts, progress=report), dtype=np.float32)
    made = teacher.encode_documents(texts, passages=False, progress=report)
    lost = sum(document.num_truncated > 0 for document in made)
    if lost:
        logger.warning("the teacher did not read all of %d of %d segments; lower segment_tokens", lost, len(made))
    return np.stack([document.vector for document in made])


def _reporter(
    on_progress: OnProgress | None, stage: str, before: int, tokens: int, total: int
) -> Callable[[int, int], None]:
    def report(done: int, of: int) -> None:
        if on_progress is not None:
            read = before + tokens * done // max(of, 1)
            on_progress(Progress(stage, fraction=read / max(total, 1), tokens=read))

    return report


def vocabulary_vectors(teacher: Any, tokenizer: Any, std: float) -> Tensor:
    """The teacher's vectors (pieces, dim) float32 of all pieces read as texts, centred, of standard deviation `std`.

    A mean of such rows is a crude embedding of a text already, which a student that starts near the identity has from
    its first step on.
    """
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    vectors = torch.from_numpy(np.array(teacher.encode([piece.removeprefix("##") for piece in pieces])))
    vectors = vectors.float() - vectors.float().mean(dim=0)
    return vectors * (std / vectors.std())
