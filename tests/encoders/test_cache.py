"""The cache gives back what was encoded, encodes nothing twice, and survives a kill without a change of the numbers."""

from __future__ import annotations

import copy
import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from bag_of_words import BagOfWords

import m2bert.encoders.cache
from m2bert.bench.evaluate import evaluate_tasks
from m2bert.bench.systems import EncoderSystem
from m2bert.bench.tasks import RetrievalTask
from m2bert.encoders.cache import CachedEncoder
from m2bert.errors import M2BertError
from m2bert.files import cache_folder
from m2bert.ranking.parts import Mixture, mixture_of

TEXTS = [f"word{i} common text number{i % 7}" for i in range(40)]
# A program that evaluates one task with a cache, and is killed after LIFE encoded texts.
PROGRAM = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], os.path.join(os.path.dirname(sys.argv[1]), "support")]
from test_cache import Counting, evaluate_with_cache
class Mortal(Counting):
    def vector(self, text):
        if len(self.seen) == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().vector(text)
evaluate_with_cache(Mortal(limit=3), sys.argv[2], sys.argv[3])
"""


class Counting(BagOfWords):
    """Remembers what it was asked to encode."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def vector(self, text):
        self.seen.append(text)
        return super().vector(text)


def evaluate_with_cache(encoder, cache, path):
    """Evaluate 40 documents in slices of eight; write the report and what was encoded."""
    m2bert.encoders.cache.TEXTS_WRITTEN_AT_ONCE = 8
    documents = {f"d{i:02}": text for i, text in enumerate(TEXTS)}
    queries = {f"q{i}": f"word{i} number{i % 5}" for i in range(12)}
    task = RetrievalTask("t", "test", documents, queries, {f"q{i}": {f"d{i:02}": 1} for i in range(12)})
    report = evaluate_tasks([task], [EncoderSystem(CachedEncoder(encoder, cache))], metrics=["nDCG@10", "RR@10"])
    saved = report.to_dict()
    saved["encoded"] = len(encoder.seen)
    Path(path).write_text(json.dumps(saved))
    return saved


def comparable(saved):
    for system in saved["tasks"][0]["systems"]:
        del system["seconds"]
    return {key: saved[key] for key in ("tasks", "comparison", "buckets", "settings", "means")}


def test_what_comes_back_is_what_went_in(tmp_path):
    plain, counting = BagOfWords(limit=3), Counting(limit=3)
    cached = CachedEncoder(counting, tmp_path)
    for _ in range(2):
        assert np.array_equal(cached.encode(TEXTS), plain.encode(TEXTS))
        for found, made in zip(*(x.encode_documents(TEXTS, passages=False) for x in (cached, plain)), strict=True):
            assert np.array_equal(found.vector, made.vector) and found.vector.dtype == np.float32
            for name in ("num_tokens", "num_windows", "num_truncated"):
                assert getattr(found, name) == getattr(made, name)
    # Queries and documents are kept apart: a model may have a prompt for each.
    assert sorted(counting.seen) == sorted(TEXTS * 2)
    again = Counting(limit=3)
    CachedEncoder(again, tmp_path).encode([*TEXTS, "new"])
    assert again.seen == ["new"]
    # A text that comes twice is encoded once.
    CachedEncoder(again, tmp_path).encode(["twice", "twice"])
    assert again.seen == ["new", "twice"]


LONG = [" ".join(f"word{i * j % 11} text{j}" for j in range(3 + 5 * i)) for i in range(9)]


def rounded(vectors):
    """Each row in whole steps of its largest number over 127, number by number."""
    steps = [float(np.float32(max(abs(float(x)) for x in row) / 127)) for row in vectors]
    return [[round(float(x) / step) * step for x in row] for row, step in zip(vectors, steps, strict=True)]


def test_passages_come_back_in_a_byte_a_number_and_are_made_once(tmp_path):
    plain, counting = BagOfWords(passage_words=4, dim=64), Counting(passage_words=4, dim=64)
    made, seen = plain.encode_documents(LONG), []
    for _ in range(2):
        cached = CachedEncoder(counting, tmp_path)
        seen.append(cached.encode_documents(LONG))
        assert counting.seen == LONG
    assert max(len(document.passages) for document in made) > 9
    for first, second, document in zip(*seen, made, strict=True):
        expected = rounded([passage.vector for passage in document.passages])
        for found in (first, second):
            assert np.array_equal(found.vector, document.vector) and found.num_tokens == document.num_tokens > 0
            spans = [(passage.start, passage.end) for passage in document.passages]
            assert [(passage.start, passage.end) for passage in found.passages] == spans
            np.testing.assert_allclose([passage.vector for passage in found.passages], expected, rtol=1e-6)
            assert {passage.vector.dtype for passage in found.passages} == {np.dtype(np.float32)}
        # To the last bit, so that a run that goes on after a kill gives the same numbers.
        for one, other in zip(first.passages, second.passages, strict=True):
            assert np.array_equal(one.vector, other.vector)
    # Without passages a document is another one; its counts are the same.
    (document,) = CachedEncoder(Counting(limit=3), tmp_path).encode_documents(["one two three four"], passages=False)
    assert document.passages == [] and document.num_truncated == 1


def test_documents_without_passages_are_kept_as_well(tmp_path):
    class Bare(Counting):
        def passages(self, text, vector):
            return []

    counting = Bare()
    for _ in range(2):
        (document,) = CachedEncoder(counting, tmp_path).encode_documents(["one two"])
        assert document.passages == [] and np.array_equal(document.vector, BagOfWords().vector("one two"))
    assert counting.seen == ["one two"]


def test_what_an_encoder_has_beyond_the_protocol_is_passed_on(tmp_path):
    encoder = BagOfWords()
    encoder.mixture, encoder.split = Mixture(0.1, 0.2, 0.3), str.split
    cached = CachedEncoder(encoder, tmp_path)
    assert mixture_of(cached) == Mixture(0.1, 0.2, 0.3) and cached.split("a b") == ["a", "b"]
    assert mixture_of(CachedEncoder(BagOfWords(), tmp_path)) == Mixture()
    with pytest.raises(AttributeError, match="nothing"):
        _ = cached.nothing
    assert not hasattr(cached, "encode_sparse")
    assert copy.copy(cached).name == "bag-of-words"


def test_another_model_or_another_setting_has_a_cache_of_its_own(tmp_path):
    other = Counting()
    other.fingerprint = "another"
    CachedEncoder(Counting(), tmp_path).encode(TEXTS)
    CachedEncoder(other, tmp_path).encode(TEXTS)
    assert len(other.seen) == 40
    settings = Counting()
    CachedEncoder(settings, tmp_path, "overflow=truncate").encode(TEXTS)
    assert len(settings.seen) == 40


def test_progress_grows_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(m2bert.encoders.cache, "TEXTS_WRITTEN_AT_ONCE", 8)
    for _ in range(2):
        seen: list[tuple[int, int]] = []

        def progress(done, total, seen=seen):
            seen.append((done, total))

        CachedEncoder(BagOfWords(), tmp_path).encode_documents(TEXTS, passages=False, progress=progress)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1] == (sum(map(len, TEXTS)),) * 2


def test_what_is_not_finite_is_not_kept(tmp_path):
    class Broken(BagOfWords):
        def vector(self, text):
            return np.full(8, np.nan, dtype=np.float32)

    assert np.isnan(CachedEncoder(Broken(), tmp_path).encode(["a"])).all()
    assert np.isfinite(CachedEncoder(BagOfWords(), tmp_path).encode(["a"])).all()


@pytest.mark.parametrize("life", [5, 29])
def test_a_run_that_was_killed_goes_on_and_gives_the_same_table(tmp_path, life):
    whole = evaluate_with_cache(Counting(limit=3), tmp_path / "whole", tmp_path / "whole.json")
    assert whole["encoded"] == 52

    def run(life):
        args = [
            sys.executable,
            "-c",
            PROGRAM,
            str(Path(__file__).parent),
            str(tmp_path / "cache"),
        ]
        return subprocess.run([*args, str(tmp_path / "report.json"), str(life)], capture_output=True, text=True)

    killed = run(life)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "report.json").exists(), killed.stderr
    done = run(-1)
    assert (done.returncode, done.stderr) == (0, "")
    saved = json.loads((tmp_path / "report.json").read_text())
    # Whole slices of eight were kept: none of the first five texts; of 29, 12 queries and two slices of documents.
    assert saved["encoded"] == {5: 52, 29: 52 - 12 - 16}[life]
    assert comparable(saved) == comparable(json.loads(json.dumps(whole)))


def test_a_damaged_file_and_a_folder_that_cannot_be_are_told(tmp_path):
    cached = CachedEncoder(BagOfWords(), tmp_path)
    cached.path.write_bytes(b"this is not a database at all, and long enough to be looked at" * 20)
    with pytest.raises(M2BertError, match=r"cache: cannot use .*sqlite .*remove the file"):
        cached.encode(["a"])
    (tmp_path / "file").touch()
    with pytest.raises(M2BertError, match="cache: cannot make"):
        CachedEncoder(BagOfWords(), tmp_path / "file" / "below")


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("embeddings") == tmp_path / "m2bert" / "embeddings"


@pytest.mark.parametrize("column", ["vector", "num_tokens", "checksum", "codes", "spans", "scales"])
def test_a_damaged_row_is_encoded_again(tmp_path, column, caplog):
    encoder = Counting(dim=64, passage_words=3)
    cached = CachedEncoder(encoder, tmp_path)
    right = cached.encode_documents(TEXTS[:2])
    table = "passages" if column in ("codes", "spans", "scales") else "embeddings"
    with closing(sqlite3.connect(cached.path)) as store, store:
        (value,) = store.execute(f"SELECT {column} FROM {table}").fetchone()
        other = value + 1 if isinstance(value, int) else value[:-1] + bytes([value[-1] ^ 1])
        store.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (other, value))
    encoder.seen.clear()
    again = cached.encode_documents(TEXTS[:2])
    assert 0 < len(set(encoder.seen)) <= 2 and "is damaged" in caplog.text
    for one, two in zip(right, again, strict=True):
        np.testing.assert_array_equal(one.vector, two.vector)
        assert one.num_tokens == two.num_tokens
        assert [(p.start, p.end) for p in one.passages] == [(p.start, p.end) for p in two.passages]
    encoder.seen.clear()
    cached.encode_documents(TEXTS[:2])
    assert not encoder.seen
