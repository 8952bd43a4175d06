"""Pretraining end to end on a tiny model: it learns, resumes exactly, keeps its budget, refuses bad settings."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from killed import run_until_killed
from training_data import Stopped, logged_losses, stop_at
from typer.testing import CliRunner

import m2bert.cli
from m2bert.errors import M2BertError
from m2bert.train.budget import Budget, Progress, schedule_factor
from m2bert.train.pretrain import pretrain
from m2bert.train.settings import PretrainConfig, TrainConfig, has_bf16
from m2bert.train.trainer import last_checkpoint

MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "filter_order": 8,
    "max_position_embeddings": 64,
}


def settings(world: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    return {
        "data": [str(world / "text")], "tokenizer": str(world / "tokenizer"), "output": str(folder),
        "cache": str(world / "cache"), "model": MODEL, "lengths": {32: 0.5, 64: 0.5}, "batch_tokens": 512,
        "max_steps": 8, "logging_steps": 1, "save_steps": 4, "save_seconds": 0.0, "bf16": False, "threads": 1,
        **overrides,
    }  # fmt: skip


def test_it_learns_and_saves_a_model(world: Path, tmp_path: Path) -> None:
    from m2bert import load_model

    seen: list[Progress] = []
    config = PretrainConfig(
        **settings(
            world, tmp_path / "run", max_steps=60, learning_rate=1e-2, save_steps=0, validation=[str(world / "text")],
            bf16=has_bf16(),
        )
    )  # fmt: skip
    result = pretrain(config, seen.append)
    made = logged_losses(tmp_path / "run")
    # A uniform guess over 192 entries costs 5.3 nats.
    assert made[1] == pytest.approx(math.log(192), abs=0.5)
    assert made[60] < made[1] - 0.6
    assert result["step"] == 60
    assert result["validation_loss"] < math.log(192) - 0.6
    assert 0 < result["validation_accuracy"] <= 1
    by_length = result["validation"]
    assert set(by_length) == {"128", "2k"} and "probe" not in result  # 64 positions hold no probe
    masked = sum(score["masked"] for score in by_length.values())
    pooled = sum(score["loss"] * score["masked"] for score in by_length.values()) / masked
    assert result["validation_loss"] == pytest.approx(pooled)
    logged = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert logged["validation"] == by_length
    # Run again when it is finished: one result still, and the same; half a line of a power cut is not in the way.
    log = (tmp_path / "run" / "log.jsonl").read_text()
    (tmp_path / "run" / "log.jsonl").write_text(log + '{"step": 3, "lo\0')
    pretrain(config)
    assert [row | {"seconds": 0, "tokens_per_second": 0} for row in map(json.loads, log.splitlines())] == [
        json.loads(line) | {"seconds": 0, "tokens_per_second": 0}
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert seen[-1].fraction == 1.0
    assert seen[-1].tokens == result["tokens"] > 60 * 200
    model, tokenizer = load_model(tmp_path / "run" / "model")
    assert len(tokenizer) == 160
    assert model.config.vocab_size == 192
    assert model.config.filter_window == "multiscale"


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing interrupts; for reading alone."""
    output = tmp_path_factory.mktemp("whole")
    pretrain(PretrainConfig(**settings(world, output)))
    return output


def test_a_stopped_run_continues_to_the_same_losses(world: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        pretrain(PretrainConfig(**settings(world, tmp_path / "stopped")), stop_at(6))
    assert max(logged_losses(tmp_path / "stopped")) in (5, 6)
    # What a kill in the middle of saving leaves behind is not taken for a checkpoint.
    (tmp_path / "stopped" / "checkpoint-99").mkdir()
    pretrain(PretrainConfig(**settings(world, tmp_path / "stopped")))
    assert logged_losses(tmp_path / "stopped") == logged_losses(whole)
    # Done is done: another call changes nothing.
    assert pretrain(PretrainConfig(**settings(world, tmp_path / "stopped")))["step"] == 8
    assert logged_losses(tmp_path / "stopped") == logged_losses(whole)
    other = PretrainConfig(**settings(world, tmp_path / "other", seed=5, save_steps=0))
    pretrain(other)
    assert logged_losses(tmp_path / "other") != logged_losses(whole)


def test_a_killed_process_continues(world: Path, whole: Path, tmp_path: Path) -> None:
    killed = settings(world, tmp_path / "killed")
    run_until_killed("pretrain", "PretrainConfig", killed, 6, tmp_path)
    reached = last_checkpoint(tmp_path / "killed")
    assert reached is not None and reached.name == "checkpoint-4"
    assert not (tmp_path / "killed" / "model").exists()
    pretrain(PretrainConfig(**killed))
    # Float32 sums of another process may round otherwise (1e-7 seen); a batch missed or repeated moves losses by 1e-2.
    assert logged_losses(tmp_path / "killed") == pytest.approx(logged_losses(whole), rel=1e-5)


def test_a_time_budget_ends_on_time_and_the_rate_with_it(world: Path, tmp_path: Path) -> None:
    # One step may take a second where other processes have the cores; it must not be most of the budget.
    config = PretrainConfig(
        **settings(world, tmp_path / "run", max_steps=0, max_seconds=4.0, save_steps=0, final_learning_rate=0.0)
    )
    result = pretrain(config)
    assert 4 <= result["seconds"] < 7.5
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in rows]
    assert max(rates) > 0.5 * config.learning_rate
    assert rates[-1] < 0.1 * config.learning_rate


def test_a_token_budget_ends_the_run_and_the_rate_with_it(world: Path, tmp_path: Path) -> None:
    budgeted = settings(world, tmp_path / "run", max_steps=0, max_tokens=4000, final_learning_rate=0.0)
    result = pretrain(PretrainConfig(**budgeted))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    batch = PretrainConfig(**budgeted).batch_tokens
    # Counted after each step: the last one may go over by less than a batch.
    assert 4000 <= result["tokens"] < 4000 + batch and rows[-2]["tokens"] < 4000
    rates = [row["learning_rate"] for row in rows]
    assert max(rates) > 0.5 * PretrainConfig(**budgeted).learning_rate and rates[-1] < 0.3 * max(rates)
    with pytest.raises(Stopped):
        pretrain(PretrainConfig(**{**budgeted, "output": str(tmp_path / "stopped")}), stop_at(6))
    again = pretrain(PretrainConfig(**{**budgeted, "output": str(tmp_path / "stopped")}))
    assert again["tokens"] == result["tokens"] and logged_losses(tmp_path / "stopped") == logged_losses(
        tmp_path / "run"
    )


def test_starting_from_another_run(world: Path, tmp_path: Path) -> None:
    pretrain(PretrainConfig(**settings(world, tmp_path / "first", max_steps=40, save_steps=0, learning_rate=1e-2)))
    second = settings(
        world, tmp_path / "second", init=str(tmp_path / "first"), learning_rate=1e-6, max_steps=1, save_steps=0
    )
    pretrain(PretrainConfig(**second))
    assert logged_losses(tmp_path / "second")[1] < logged_losses(tmp_path / "first")[1] - 0.7


def test_schedule() -> None:
    config = TrainConfig(warmup_ratio=0.1, lr_scheduler_type="linear", learning_rate=1e-3, final_learning_rate=1e-4)
    factors = [schedule_factor(config, f) for f in (0.0, 0.05, 0.1, 0.55, 1.0, 1.5)]
    assert factors == pytest.approx([0, 0.5, 1, 0.55, 0.1, 0.1])
    config.lr_scheduler_type = "cosine"
    assert schedule_factor(config, 0.55) == pytest.approx(0.55)
    assert schedule_factor(config, 0.325) == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi / 4)))
    budget = Budget(TrainConfig(max_steps=10, max_seconds=100))
    budget.start(40.0, 0)
    assert budget.fraction(3) == pytest.approx(0.4, abs=0.01)
    assert budget.fraction(7) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": []}, "needs data"),
        ({"output": ""}, "needs output"),
        ({"max_steps": 0}, "max_steps, max_tokens or max_seconds"),
        ({"lengths": {128: 1.0}, "batch_tokens": 4096}, "within the model's 64 positions"),
        ({"preset": "huge"}, "preset must be one of"),
        ({"model": {"hidden_dim": 3}}, "those of M2BertConfig, got hidden_dim"),
        ({"mask_rate": 1.5}, "mask_rate must be above 0 and below 1, got 1.5; lower it"),
        ({"lr_scheduler_type": "square"}, "lr_scheduler_type must be one of linear, cosine, constant"),
        ({"tokenizer": "nowhere"}, r"folder with tokenizer\.json"),
        ({"init": "nowhere"}, "a model must be a folder"),
        ({"data": ["nowhere"]}, "names no readable file"),
    ],
)
def test_bad_settings(world: Path, tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(M2BertError, match=message):
        pretrain(PretrainConfig(**settings(world, tmp_path / "run", **overrides)))


def test_output_that_is_a_file_is_refused(world: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "file").write_text("kept")
    data = ("--data", str(world / "text"), "--output", str(tmp_path / "file"))
    for command in (
        ("train-tokenizer", *data, "--vocab-size", "150"),
        ("pretrain", *data, "--tokenizer", str(world / "tokenizer"), "--max-steps", "1"),
    ):
        monkeypatch.setattr(sys, "argv", ["m2bert", *command])
        with pytest.raises(SystemExit) as ended:
            m2bert.cli.main()
        err = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2 and err.startswith("m2bert: ") and "name another" in err
    assert (tmp_path / "file").read_text() == "kept"


def test_commands(world: Path, tmp_path: Path) -> None:
    from m2bert.cli import build_app

    runner = CliRunner()
    made = runner.invoke(
        build_app(),
        ["train-tokenizer", "--data", str(world / "text"), "--output", str(tmp_path / "tok"), "--vocab-size", "150"],
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["pieces"] == 150
    (tmp_path / "model.yaml").write_text("".join(f"{name}: {value}\n" for name, value in MODEL.items()))
    flags = ["--data", str(world / "text"), "--tokenizer", str(tmp_path / "tok"), "--output", str(tmp_path / "run")]
    flags += ["--config", str(tmp_path / "model.yaml"), "--lengths", "32:0.5,64:0.5", "--batch-tokens", "256"]
    flags += ["--max-steps", "3", "--set", "bf16=false", "--set", "learning_rate=1e-4", "--weights", "books:2"]
    done = runner.invoke(build_app(), ["pretrain", *flags])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["step"] == 3
    kept = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (kept["learning_rate"], kept["weights"], kept["bf16"]) == (1e-4, {"books": 2.0}, False)
    wrong = runner.invoke(build_app(), ["pretrain", *flags, "--lengths", "long"])
    assert isinstance(wrong.exception, M2BertError)
    assert "NAME:NUMBER" in str(wrong.exception)
