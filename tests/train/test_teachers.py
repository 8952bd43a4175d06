"""What teachers make of segments: read as text, each in its place, several in one space."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_data import Stopped, make_text, small_tokenizer

from m2bert import Embedder
from m2bert.data.segments import Window, segment_bounds
from m2bert.encoders import cache
from m2bert.errors import M2BertError
from m2bert.train.budget import Progress
from m2bert.train.teachers import TeacherSpace, open_teachers, teacher_vectors


def test_the_teacher_reads_segments_as_text(world: Path) -> None:
    """Vectors in the order of windows and segments, whatever order they were encoded in."""
    tokenizer = small_tokenizer()
    texts = [make_text(topic, words, 4) for topic, words in ((0, 60), (3, 8), (5, 31))]
    windows = [Window(np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"]), "any") for text in texts]
    teacher = Embedder(str(world / "teacher"))
    vectors = teacher_vectors(teacher, windows, tokenizer, 16)
    row = 0
    for window in windows:
        bounds = segment_bounds(len(window.ids), 16)
        for start, end in pairwise(bounds):
            expected = teacher.encode([tokenizer.decode(window.ids[start:end].tolist())])[0]
            assert np.allclose(vectors[row], expected, atol=1e-5)
            row += 1
    assert row == len(vectors) and np.abs(vectors[0] - vectors[-1]).max() > 1e-2


def test_the_cosine_of_joined_vectors_is_the_mean_of_the_teachers() -> None:
    rng = np.random.default_rng(0)
    # The second teacher's vectors all point one way, as some do.
    one, two = rng.normal(size=(50, 6)), rng.normal(size=(50, 10)) * 0.2 + np.arange(10)
    vectors = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (one, two)]
    assert (vectors[1] @ vectors[1].T).min() > 0.8
    space = TeacherSpace(vectors)
    joined = space.joined(vectors)
    assert joined.shape == (50, space.dim) == (50, 16) and joined.dtype == np.float32
    wanted = []
    for each in vectors:
        rest = each.astype(np.float64) - each.astype(np.float64).mean(axis=0)
        rest /= np.linalg.norm(rest, axis=1, keepdims=True)
        wanted.append(rest @ rest.T)
    assert np.allclose(joined @ joined.T, (wanted[0] + wanted[1]) / 2, atol=1e-5)
    assert (joined @ joined.T).min() < -0.2
    # Other text is brought into the same space, whatever its own mean.
    assert np.allclose(space.joined([each[:3] for each in vectors]), joined[:3], atol=1e-6)


def test_teachers_that_say_nothing_are_refused() -> None:
    same = np.ones((4, 3), dtype=np.float32)
    with pytest.raises(M2BertError, match="must be finite and differ"):
        TeacherSpace([same]).joined([same])
    broken = np.eye(3, dtype=np.float32)
    broken[1, 1] = np.nan
    with pytest.raises(M2BertError, match="must be finite and differ"):
        TeacherSpace([broken]).joined([broken])


def test_reading_goes_on_where_it_was_stopped(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 segments, kept ten at a time, a run that ends in the third ten has twenty left."""
    monkeypatch.setattr(cache, "TEXTS_WRITTEN_AT_ONCE", 10)
    windows = [Window(np.arange(10 + number, 26 + number), "any") for number in range(40)]
    read: list[int] = []
    encode_documents = Embedder.encode_documents

    def counted(self: Embedder, texts: list[str], **options: Any) -> Any:
        read.append(len(texts))
        return encode_documents(self, texts, **options)

    monkeypatch.setattr(Embedder, "encode_documents", counted)

    def stop(progress: Progress) -> None:
        if progress.fraction > 0.5:
            raise Stopped

    name = str(world / "teacher")
    with pytest.raises(Stopped):
        teacher_vectors(open_teachers([name], tmp_path)[0], windows, small_tokenizer(), 16, stop)
    assert read == [10, 10, 10]
    vectors = teacher_vectors(open_teachers([name], tmp_path)[0], windows, small_tokenizer(), 16)
    assert sum(read[3:]) == 20
    assert np.allclose(vectors, teacher_vectors(Embedder(name), windows, small_tokenizer(), 16), atol=1e-5)
