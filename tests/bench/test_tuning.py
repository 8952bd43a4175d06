"""Weights chosen on tasks: the choice against loops by hand, tasks that only one part can rank, and the file."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_of_words import BagOfWords
from tiny import tiny_embedder, tiny_model, tiny_model_folder, tiny_tokenizer

from m2bert.bench.tasks import RetrievalTask
from m2bert.bench.tuning import best_of, grid, left_out_mean, save_mixture, tune_mixture
from m2bert.encoders.cache import CachedEncoder
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.ranking.parts import Mixture

A, B, C = Mixture(1, 0, 0), Mixture(0, 1, 0), Mixture(0, 0, 1)


def silent(label: str, fraction: float) -> None:
    """No progress."""


def test_the_grid_has_every_share_with_every_weight_of_words() -> None:
    shares, words = (0, 0.15, 0.3, 0.5, 0.7, 1), (0, 0.25, 0.35, 0.5, 0.7, 1, 1.4)
    expected = {(round(1 - share, 2), share, weight, 0) for share in shares for weight in words}
    plain, with_terms = grid(terms=False), grid(terms=True)
    assert len(plain) == len(expected) == 42 and len(with_terms) == 3 * 42
    assert {(each.whole, each.passages, each.words, each.terms) for each in plain} == expected
    assert {each.terms for each in with_terms} == {0, 0.25, 0.5} and len(set(with_terms)) == 126
    assert set(plain) < set(with_terms) and plain[0] == A
    assert Mixture() in plain, "the shipped weights are among those tried"


def test_the_best_is_that_of_the_highest_mean_and_the_first_of_equals() -> None:
    draw = random.Random(3)
    for _ in range(20):
        names, tasks = [A, B, C, Mixture(), Mixture(1, 1, 1)], 5
        values = {name: [draw.choice([0.0, 0.25, 0.5, 0.75, 1.0]) for _ in range(tasks)] for name in names}
        for left_out in (None, *range(tasks)):
            totals = [sum(row[t] for t in range(tasks) if t != left_out) for row in values.values()]
            assert best_of(values, left_out) == names[totals.index(max(totals))]
        left = [values[best_of(values, task)][task] for task in range(tasks)]
        assert left_out_mean(values) == pytest.approx(sum(left) / tasks)
    assert best_of({B: [0.5, 0.5], A: [1.0, 0.0]}) == B and best_of({A: [1.0, 0.0], B: [0.5, 0.5]}) == A


def test_a_choice_that_does_not_carry_over_is_worth_nothing() -> None:
    """B is best on all, 0.4 of 1; but each task left out is ranked by what is best on the two others, and gets 0."""
    values = {A: [1.0, 0.0, 0.0], B: [0.0, 0.6, 0.6]}
    assert best_of(values) == B
    assert [best_of(values, task) for task in range(3)] == [B, A, A]
    assert left_out_mean(values) == 0.0
    assert left_out_mean({A: [1.0, 0.0, 0.0], B: [0.5, 0.6, 0.7]}) == pytest.approx((0.5 + 0.6 + 0.7) / 3)


class Blind(BagOfWords):
    """Every text has one and the same vector."""

    def vector(self, text: str) -> np.ndarray:
        return np.ones(4, dtype=np.float32) / 2


class Knowing(BagOfWords):
    """Texts of one number lie together, whatever their words; those of others lie not far away."""

    def vector(self, text: str) -> np.ndarray:
        (number,) = {int(word[1:]) for word in text.split() if word[0] in "nm"}
        found = np.zeros(9, dtype=np.float32)
        found[0], found[1 + number] = 1.0, 0.3
        return found / np.linalg.norm(found)


def tasks_of(query: str, document: str, count: int = 6) -> list[RetrievalTask]:
    """Three tasks of queries and documents by these templates, of which those of one number belong together."""
    made = []
    for name in ("one", "two", "three"):
        corpus = {f"d{n}": document.format(n=n, other=(n + 1) % count, task=name) for n in range(count)}
        queries = {f"q{n}": query.format(n=n, task=name) for n in range(count)}
        made.append(RetrievalTask(name, "train", corpus, queries, {f"q{n}": {f"d{n}": 1} for n in range(count)}))
    return made


def ndcg_of_ties(count: int) -> float:
    """Equal scores: documents stand in descending order of their ids, so that q5's answer is first."""
    return sum(1 / math.log2(1 + place) for place in range(1, count + 1)) / count


def test_words_are_chosen_where_only_words_tell() -> None:
    run = tune_mixture(tasks_of("word{n}", "word{n} filler"), Blind(), silent)
    assert run["best"]["words"] > 0 and run["best_mean"] == run["left_out_mean"] == 1.0
    tied = pytest.approx(ndcg_of_ties(6))
    assert run["alone"] == {"whole": tied, "passages": tied, "words": 1.0}
    assert run["by_task"]["two"] == {"best": 1.0, "whole": tied, "passages": tied, "words": 1.0}
    assert list(run["by_task"]) == list(run["tasks"]) == ["one", "two", "three"]
    means = {tuple(weights.values()): mean for weights, mean in run["grid"]}
    assert len(means) == 42 and all(mean == (1.0 if key[2] else tied) for key, mean in means.items())
    # Of equally good ones the first, which leans least on words.
    assert tuple(run["best"].values()) == (1.0, 0.0, 0.25, 0.0)


def test_vectors_are_chosen_where_only_vectors_tell() -> None:
    """A query's one word that any document has stands in that of another number: what words add, they add to that."""
    seen: dict[str, list[float]] = {}
    tasks = tasks_of("n{n} lure{n}", "m{n} lure{other}")
    run = tune_mixture(tasks, Knowing(), lambda label, done: seen.setdefault(label, []).append(done))
    assert (run["best"]["words"], run["best_mean"], run["left_out_mean"]) == (0.0, 1.0, 1.0)
    assert run["alone"]["whole"] == run["alone"]["passages"] == 1.0 and run["alone"]["words"] < 0.6
    assert all((mean == 1.0) == (weights["words"] == 0) for weights, mean in run["grid"])
    assert [label for label in seen if "mixtures" in label] == [f"{task.name}: mixtures" for task in tasks]
    for fractions in seen.values():
        assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_a_run_says_what_it_was_made_of() -> None:
    encoder = Blind()
    tasks = tasks_of("word{n}", "word{n} {task} filler")
    run = json.loads(json.dumps(tune_mixture(tasks, encoder, silent)))
    assert (run["kind"], run["metric"], run["model"]) == ("mixture", "nDCG@10", "bag-of-words")
    assert run["fingerprint"] == BagOfWords.fingerprint and {"versions", "machine", "created"} <= set(run)
    assert run["tasks"] == {task.name: [6, 6, task.fingerprint] for task in tasks}
    assert run["best_with_terms"] == run["best"] and run["left_out_mean_with_terms"] == run["left_out_mean"]


def test_terms_are_tried_where_the_model_has_them() -> None:
    corpus = {"a": "river stone", "b": "paper engine", "c": "market garden"}
    task = RetrievalTask("t", "train", corpus, {"q": "paper"}, {"q": {"b": 1}})
    tasks = [task, *(RetrievalTask(name, "train", corpus, {"q": "river"}, {"q": {"a": 1}}) for name in "uv")]
    with_terms = Embedder((tiny_model(term_weights=True), tiny_tokenizer()))
    run = tune_mixture(tasks, with_terms, silent)
    assert run["alone"]["terms"] == 1.0 and len(run["grid"]) == 126 and run["best"]["terms"] == 0.0
    assert run["best_mean_with_terms"] >= run["best_mean"] == 1.0
    run = tune_mixture(tasks, tiny_embedder(), silent)
    assert "terms" not in run["alone"] and len(run["grid"]) == 42 and run["best_mean"] == 1.0


def test_a_cached_encoder_chooses_the_same(tmp_path: Path) -> None:
    tasks = tasks_of("word{n} {task}", "word{n} filler {task} filler")
    plain = tune_mixture(tasks, BagOfWords(), silent)
    for _ in range(2):
        found = tune_mixture(tasks, CachedEncoder(BagOfWords(), tmp_path), silent)
        assert {**found, "created": 0} == {**plain, "created": 0} and found["best_mean"] > 0.9


def test_two_tasks_are_too_few_and_nothing_is_encoded_for_them() -> None:
    class Untouched(BagOfWords):
        def encode(self, texts: Any, *, progress: Any = None) -> Any:
            raise AssertionError("encoded before the tasks were counted")

    for count in (0, 2):
        with pytest.raises(M2BertError, match=f"needs at least 3 tasks, one of which is left out in turn, got {count}"):
            tune_mixture(tasks_of("word{n}", "word{n}")[:count], Untouched(), silent)


def test_what_is_saved_is_what_the_model_ranks_by(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "tiny")
    assert Mixture.read(folder) == Embedder(folder).mixture == Mixture()
    for weights in ({"whole": 0.5, "passages": 0.5, "words": 1.4, "terms": 0.0}, {"words": 1.0}):
        save_mixture({"best": weights}, folder)
        assert json.loads((folder / "ranking.json").read_text()) == weights
        assert Mixture.read(folder) == Embedder(folder).mixture == Mixture(**weights) != Mixture()
    with pytest.raises(M2BertError, match=r"mixture: cannot write .*ranking\.json"):
        save_mixture({"best": weights}, tmp_path / "none")


def test_every_mixture_of_the_grid_can_be_read_again(tmp_path: Path) -> None:
    for one in itertools.islice(grid(terms=True), 0, None, 25):
        save_mixture({"best": vars(one)}, tmp_path)
        assert Mixture.read(tmp_path) == one
