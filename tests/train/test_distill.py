"""Distillation: which text is chosen, whose segment a token is, what a student learns from a short-context teacher."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed import run_until_killed
from tiny import tiny_model_folder
from training_data import TOPICS, Stopped, logged_losses, make_text, small_tokenizer, stop_at
from typer.testing import CliRunner

from m2bert import Embedder, load_model
from m2bert.data.examples import special_ids
from m2bert.data.segments import SegmentBatches, Window, choose_windows, segment_bounds, windows_of
from m2bert.data.tokens import TokenStore
from m2bert.errors import M2BertError
from m2bert.train.distill import (
    cache_folder,
    distill,
    distillation_loss,
    load_windows,
    make_batches,
    new_student,
    segment_sums,
)
from m2bert.train.settings import DistillConfig
from m2bert.train.teachers import open_teachers
from m2bert.train.trainer import last_checkpoint

STUDENT = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "filter_order": 8,
    "max_position_embeddings": 128,
}  # fmt: skip


def settings(world: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    return {
        "teacher": [str(world / "teacher")], "tokenizer": str(world / "teacher"), "data": [str(world / "text")],
        "pairs": [str(world / "pairs.jsonl.gz")], "loco": [str(world / "loco")], "output": str(folder),
        "cache": str(world / "cache"), "model": STUDENT, "text_tokens": 6000, "window_tokens": 96,
        "segment_tokens": 24, "batch_tokens": 512, "learning_rate": 3e-3, "max_steps": 6, "logging_steps": 1,
        "save_steps": 3, "save_seconds": 0.0, "bf16": False, "threads": 1,
        **overrides,
    }  # fmt: skip


def test_segments_are_few_equal_and_whole() -> None:
    assert segment_bounds(7, 8) == [0, 7]
    assert segment_bounds(8, 8) == [0, 8]
    assert segment_bounds(9, 8) == [0, 4, 9]
    assert segment_bounds(30, 8) == [0, 7, 15, 22, 30]
    for tokens in range(1, 200):
        bounds = np.asarray(segment_bounds(tokens, 16))
        sizes = np.diff(bounds)
        assert bounds[0] == 0 and bounds[-1] == tokens and sizes.max() <= 16 and sizes.max() - sizes.min() <= 1
        assert len(sizes) == -(-tokens // 16)


def test_windows_hold_every_token_once() -> None:
    lengths = [5, 0, 23, 10]
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    groups = windows_of(TokenStore(tokens, offsets, np.asarray([0, 1, 1, 0], dtype=np.int32), ("a", "b")), 10)
    assert [window.ids.tolist() for window in groups["a"]] == [list(range(5)), list(range(28, 38))]
    assert [len(window.ids) for window in groups["b"]] == [7, 8, 8]
    assert np.concatenate([window.ids for window in groups["b"]]).tolist() == list(range(5, 28))


def group(count: int, size: int) -> list[Window]:
    return [Window(np.full(size, number), "any") for number in range(count)]


def test_text_is_chosen_by_share_without_repetition() -> None:
    # Square roots of 40,000, 10,000 and 100 tokens: 200, 100 and 10; the last is small enough to be used whole.
    groups = {"large": group(4000, 10), "middle": group(1000, 10), "small": group(10, 10)}
    chosen = choose_windows(groups, 3100, {}, seed=3)
    of = {name: [w for w in chosen if any(w is x for x in windows)] for name, windows in groups.items()}
    assert [len(of[name]) for name in groups] == [200, 100, 10]
    assert len({id(window) for window in chosen}) == len(chosen)
    # A group's double weight doubles what it gets of the rest.
    twice = choose_windows({"a": group(1000, 10), "b": group(1000, 10)}, 3000, {"a": 2.0}, seed=3)
    assert len(twice) == 300
    assert choose_windows(groups, 3100, {}, seed=3) == chosen != choose_windows(groups, 3100, {}, seed=4)
    assert len(choose_windows(groups, 10**9, {}, seed=3)) == 5010
    with pytest.raises(M2BertError, match="weights name collections that are there, got nobody"):
        choose_windows(groups, 100, {"nobody": 1.0}, seed=3)
    with pytest.raises(M2BertError, match="needs text"):
        choose_windows(groups, 100, {"large": 0.0, "middle": 0.0, "small": 0.0}, seed=3)


def test_batches_say_whose_segment_a_token_is() -> None:
    ids = special_ids(small_tokenizer())
    windows = [Window(np.arange(10, 10 + size), "any") for size in (5, 17, 40, 8, 33)]
    vectors = np.random.default_rng(0).normal(size=(1 + 3 + 5 + 1 + 5, 4)).astype(np.float32)
    batches = SegmentBatches(windows, vectors, ids, segment_tokens=8, batch_tokens=60, seed=1)
    seen: list[int] = []
    index = 0
    while len(seen) < len(windows):
        batch, index = batches[index], index + 1
        assert batch["input_ids"].size <= 60
        for row, tokens in enumerate(batch["input_ids"]):
            length = int(batch["attention_mask"][row].sum())
            number = next(n for n, window in enumerate(windows) if len(window.ids) == length - 2)
            seen.append(number)
            owners = batch["segment_ids"][row]
            assert (owners[length:] == -1).all() and (owners[:length] >= 0).all()
            first = int(batches.first_segment[number])
            bounds = segment_bounds(length - 2, 8)
            for segment, (start, end) in enumerate(pairwise(bounds)):
                here = owners[1 + start]
                # [CLS] goes with the first segment, [SEP] with the last.
                stretch = slice(0 if segment == 0 else 1 + start, length if end == length - 2 else 1 + end)
                assert (owners[stretch] == here).all()
                assert (batch["teacher"][here] == vectors[first + segment]).all()
                assert batch["window_ids"][here] == row
            assert tokens[0] == ids.cls and tokens[length - 1] == ids.sep
    assert sorted(seen) == [0, 1, 2, 3, 4]
    again = SegmentBatches(windows, vectors, ids, segment_tokens=8, batch_tokens=60, seed=1)
    assert (again[9]["input_ids"] == batches[9]["input_ids"]).all()
    with pytest.raises(M2BertError, match="a vector for each of 15 segments, got 14"):
        SegmentBatches(windows, vectors[:-1], ids, segment_tokens=8, batch_tokens=60)


def test_segment_sums_match_numpy() -> None:
    rng = np.random.default_rng(5)
    states, weights = rng.normal(size=(3, 11, 4)), rng.uniform(size=(3, 11))
    owners = rng.integers(-1, 6, size=(3, 11))
    sums, shares = segment_sums(*map(torch.from_numpy, (states, weights, owners)), 6)
    for segment in range(6):
        rows, own = states[owners == segment], weights[owners == segment]
        assert np.allclose(sums[segment].numpy(), own @ rows, atol=1e-12)
        assert float(shares[segment]) == pytest.approx(own.sum(), abs=1e-12)
    assert float(sums.abs().sum()) > 1


def test_a_new_student_starts_from_the_teachers_vectors_of_the_pieces(world: Path, tmp_path: Path) -> None:
    config = DistillConfig(**settings(world, tmp_path))
    tokenizer = small_tokenizer()
    ids = special_ids(tokenizer)
    teachers = open_teachers(config.teacher, cache_folder(config))
    rows = new_student(config, teachers[0], tokenizer, ids).embeddings.word_embeddings.weight.detach()
    teacher = Embedder(str(world / "teacher"))
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    vectors = teacher.encode([piece.removeprefix("##") for piece in pieces])
    centred = torch.from_numpy(vectors - vectors.mean(axis=0))
    own = [number for number in range(len(pieces)) if number not in ids.unmaskable]
    cosines = torch.nn.functional.cosine_similarity(rows[: len(pieces)], centred, dim=1)
    assert cosines[own].min() > 0.999
    assert cosines[ids.cls] < 0.9
    assert float(rows[own].std()) == pytest.approx(0.02, rel=0.1)


def agreement(folder: Path, world: Path) -> tuple[float, float]:
    """Mean cosines of the student's vectors of new texts with the teacher's means of pieces: of the same, of others.

    The mean of the teacher's vectors of the training text is taken off, as in training.
    """
    student, teacher, tokenizer = Embedder(str(folder)), Embedder(str(world / "teacher")), small_tokenizer()
    common = teacher.encode([text for topic in range(TOPICS) for text in make_text(topic, 400, 3).split(".")])
    found, wanted = [], []
    for topic in range(TOPICS):
        text = make_text(topic, 40, 7000)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [tokenizer.decode(ids[a:b]) for a, b in pairwise(segment_bounds(len(ids), 24))]
        found.append(student.encode([text])[0])
        rows = teacher.encode(pieces) - common.mean(axis=0)
        wanted.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0))
        wanted[-1] /= np.linalg.norm(wanted[-1])
    cosines = np.stack(found) @ np.stack(wanted).T
    return float(np.diag(cosines).mean()), float(cosines[~np.eye(TOPICS, dtype=bool)].mean())


def test_the_student_learns_what_the_teacher_makes_of_whole_texts(world: Path, tmp_path: Path) -> None:
    distill(DistillConfig(**settings(world, tmp_path / "start", max_steps=1, learning_rate=1e-9)))
    distill(DistillConfig(**settings(world, tmp_path / "run", max_steps=120, save_steps=0, logging_steps=20)))
    found = logged_losses(tmp_path / "run")
    assert found[120] < 0.5 * found[1]
    (before, _), (after, others) = (agreement(tmp_path / name / "model", world) for name in ("start", "run"))
    assert after > 0.75 and before < 0.3
    assert after > others + 0.1
    # The result starts the next stage, and another distillation.
    model, _ = load_model(tmp_path / "run" / "model")
    assert model.config.max_position_embeddings == 128
    values = settings(world, tmp_path / "more", init=str(tmp_path / "run"), max_steps=1, learning_rate=1e-9)
    distill(DistillConfig(**values | {"tokenizer": ""}))
    assert logged_losses(tmp_path / "more")[1] < 0.6 * found[1]


def test_two_teachers_are_learned_from_together(world: Path, tmp_path: Path) -> None:
    """New texts: the first numbers of the student's vectors are the first teacher's, the rest the second's."""
    second = str(tiny_model_folder(tmp_path / "second", max_tokens=34))
    values = settings(world, tmp_path / "run", teacher=[str(world / "teacher"), second], projection_dim=48)
    values |= {"max_steps": 100, "save_steps": 50, "logging_steps": 20, "validation": [str(world / "text")]}
    result = distill(DistillConfig(**values | {"validation_tokens": 1000}))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    held_out = {row["step"]: row["held_out_loss"] for row in rows if "held_out_loss" in row}
    assert list(held_out) == [50, 100] and held_out[100] < held_out[50]
    assert result["held_out_loss"] == pytest.approx(held_out[100], rel=1e-6)
    texts = [make_text(topic, 12, seed) for topic in range(TOPICS) for seed in range(8000, 8004)]
    found = Embedder(str(tmp_path / "run" / "model")).encode(texts)
    for name, part in ((str(world / "teacher"), found[:, :32]), (second, found[:, 32:])):
        wanted = Embedder(name).encode(texts)
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (part, wanted - wanted.mean(axis=0))]
        cosines = unit[0] @ unit[1].T
        assert np.diag(cosines).mean() > cosines.mean() + 0.2


def test_a_projection_starts_in_the_teachers_space(world: Path, tmp_path: Path) -> None:
    """Fitted, the first loss of an untrained student is far below that of fresh weights, which point anywhere."""
    values = settings(world, tmp_path / "run", projection_dim=32, max_steps=1, learning_rate=1e-9)
    distill(DistillConfig(**values))
    model, tokenizer = load_model(tmp_path / "run" / "model")
    config = DistillConfig(**values)
    teachers = open_teachers(config.teacher, cache_folder(config))
    batches, _ = make_batches(config, load_windows(config, tokenizer), teachers, tokenizer, None)
    inputs = {name: torch.as_tensor(array) for name, array in batches[0].items()}
    with torch.no_grad():
        fitted = float(distillation_loss(model, inputs))
        model.projection.weight.normal_()
        fresh = float(distillation_loss(model, inputs))
    assert logged_losses(tmp_path / "run")[1] == pytest.approx(fitted, rel=1e-3)
    assert fitted < 0.7 * fresh


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing interrupts; for reading alone."""
    output = tmp_path_factory.mktemp("whole")
    distill(DistillConfig(**settings(world, output)))
    return output


def test_a_stopped_run_continues_to_the_same_losses(world: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        distill(DistillConfig(**settings(world, tmp_path / "stopped")), stop_at(5))
    distill(DistillConfig(**settings(world, tmp_path / "stopped")))
    assert logged_losses(tmp_path / "stopped") == logged_losses(whole)


def test_a_killed_process_continues(world: Path, whole: Path, tmp_path: Path) -> None:
    killed = settings(world, tmp_path / "killed")
    run_until_killed("distill", "DistillConfig", killed, 5, tmp_path)
    reached = last_checkpoint(tmp_path / "killed")
    assert reached is not None and reached.name == "checkpoint-3"
    distill(DistillConfig(**killed))
    # Float32 sums of another process may round otherwise; a batch missed or repeated moves losses by 1e-2.
    assert logged_losses(tmp_path / "killed") == pytest.approx(logged_losses(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"teacher": []}, "needs a list of teachers, got nothing"),
        ({"teacher": "{world}/teacher"}, "needs a list of teachers, got"),
        ({"data": [], "pairs": [], "loco": []}, "needs text"),
        ({"loco": ["{world}/loco/tinytask/test"]}, "for evaluation only"),
        ({"model": {**STUDENT, "hidden_size": 64}}, "must have the first teacher's 32 channels, got 64"),
        ({"projection_dim": 24}, "as long as the teachers' together, 32, got 24; set projection_dim=32"),
        ({"model": {"depth": 3}}, "model fields must be those of M2BertConfig, got depth"),
        ({"window_tokens": 200}, "within the student's 128 positions"),
        ({"window_tokens": 16}, "window_tokens must be at least 24"),
        ({"batch_tokens": 64}, "batch_tokens must hold a window"),
        ({"preset": "maxi"}, "preset must be one of"),
        ({"pooling": "cls"}, "pooling must be one of mean, weighted, got 'cls'"),
    ],
)
def test_bad_settings(world: Path, tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    if "loco" in overrides:
        overrides = {**overrides, "loco": [item.format(world=world) for item in overrides["loco"]]}
    if "window_tokens" in overrides:
        overrides = {**overrides, "batch_tokens": 512}
    with pytest.raises(M2BertError, match=message):
        distill(DistillConfig(**settings(world, tmp_path, **overrides)))


def test_command(world: Path, tmp_path: Path) -> None:
    from m2bert.cli import build_app

    (tmp_path / "student.yaml").write_text("".join(f"{name}: {value}\n" for name, value in STUDENT.items()))
    flags = ["--teacher", str(world / "teacher"), "--tokenizer", str(world / "teacher"), "--data", str(world / "text")]
    flags += ["--output", str(tmp_path / "run"), "--config", str(tmp_path / "student.yaml"), "--text-tokens", "2000"]
    flags += ["--window-tokens", "96", "--batch-tokens", "512", "--max-steps", "2", "--set", "segment_tokens=24"]
    done = CliRunner().invoke(build_app(), ["distill", *flags, "--set", "bf16=false"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["step"] == 2 and result["segments"] > 50
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
