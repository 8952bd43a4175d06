"""Settings: every field is a flag, files and flags in their order, limits, names of transformers' TrainingArguments."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from typer.testing import CliRunner

from m2bert.cli import build_app
from m2bert.cli.train import STAGES
from m2bert.errors import M2BertError
from m2bert.train import settings as settings_module
from m2bert.train.losses import LOSSES
from m2bert.train.reading import RENAMED, config_from_mapping, gather_settings, read_settings
from m2bert.train.settings import (
    LOSS_NAMES,
    DistillConfig,
    FinetuneConfig,
    PretrainConfig,
    TrainConfig,
    TrainerSettings,
)
from m2bert.train.trainer import training_arguments


def flag_of(name: str) -> str:
    return "--config" if name == "model" else "--" + name.replace("_", "-")


def run(stage: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    """The settings that a command hands to its training, which is not run."""
    seen: list[Any] = []
    monkeypatch.setattr(f"m2bert.train.{stage}.{stage}", lambda config, show: seen.append(config) or {})
    done = CliRunner().invoke(build_app(), [stage, *flags], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return seen[0]


@pytest.mark.parametrize("stage", list(STAGES))
def test_help_lists_every_field_with_its_meaning(stage: str) -> None:
    done = CliRunner().invoke(build_app(), [stage, "--help"], env={"COLUMNS": "400", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    fields = dataclasses.fields(STAGES[stage][0])
    for item in fields:
        flag = re.compile(rf"\W--{flag_of(item.name)[2:]}(?![-\w]).*")
        rows = [row for row in done.output.splitlines() if flag.match(row.lstrip("\u2502"))]
        assert len(rows) == 1, item.name
        line = rows[0]
        assert item.metadata["meaning"].rstrip(".") in line, item.name
        assert ("--no-" in line) == (item.type == "bool"), item.name
    assert "--settings" in done.output and "--set " in done.output and len(fields) > 35


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = """
import sys
sys.argv = ["m2bert", *sys.argv[1:]]
from m2bert.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
assert not {"torch", "transformers"} & set(sys.modules)
"""
    for arguments in (["--help"], ["finetune", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_flag_reaches_its_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.yaml").write_text("hidden_size: 32\n")
    texts: dict[str, Any] = {"model": str(tmp_path / "model.yaml"), "lengths": "64:0.5,128", "weights": "a:b:2"}
    for stage, (kind, _) in STAGES.items():
        flags: list[str] = []
        expected: dict[str, Any] = {}
        for item in dataclasses.fields(kind):
            default = getattr(kind(), item.name)
            if isinstance(default, bool):
                expected[item.name] = not default
                flags.append(flag_of(item.name) if not default else flag_of("no_" + item.name))
                continue
            if isinstance(default, list):
                expected[item.name] = [384, 64] if item.type == "list[int]" else ["one", "two"]
                flags += [each for value in expected[item.name] for each in (flag_of(item.name), str(value))]
                continue
            if not isinstance(default, dict):
                texts[item.name] = "text" if isinstance(default, str) else default + 7
            expected[item.name] = texts[item.name]
            flags += [flag_of(item.name), str(texts[item.name])]
        expected |= {"model": {"hidden_size": 32}, "lengths": {64: 0.5, 128: 1.0}, "weights": {"a:b": 2.0}}
        got = dataclasses.asdict(run(stage, monkeypatch, *flags))
        assert got == {name: expected[name] for name in got}, stage


def test_flags_win_over_set_and_set_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.yaml").write_text("seed: 1\nmax_steps: 2\nthreads: 3\nlengths: 32:1\nresume: false\n")
    flags = ["--settings", str(tmp_path / "run.yaml"), "--set", "seed=4", "--set", "max_steps=5", "--max-steps", "6"]
    config = run("finetune", monkeypatch, *flags, "--set", "learning_rate=1e-5", "--set", "only_term_weights=true")
    assert (config.threads, config.seed, config.max_steps) == (3, 4, 6)
    assert (config.lengths, config.resume, config.learning_rate) == ({32: 1.0}, False, 1e-5)
    assert (config.only_term_weights, config.term_weights, config.projection_dim) == (True, False, 0)
    assert config.batch_tokens == FinetuneConfig().batch_tokens == 32768 != PretrainConfig().batch_tokens
    with pytest.raises(M2BertError, match="--set must read NAME=VALUE, got 'seed'"):
        gather_settings("finetune", "", ["seed"], {})


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    """YAML 1.1 would read 512:1 as 30,721 seconds and 1e-3 as text."""
    written = (
        "lengths: 512:1\nlearning_rate: 1e-3\ntext_tokens: 4_000\nscale: 2\nseed: -3\nwarmup_ratio: .5\noutput: 1a\n"
    )
    (tmp_path / "run.yaml").write_text(written)
    read = {"lengths": {512: 1.0}, "learning_rate": 1e-3, "text_tokens": 4000, "scale": 2, "seed": -3}
    read |= {"warmup_ratio": 0.5, "output": "1a"}
    assert gather_settings("finetune", str(tmp_path / "run.yaml"), [], {}) == read
    assert gather_settings("finetune", "", [line.replace(": ", "=", 1) for line in written.splitlines()], {}) == read
    assert all(type(read[name]) is int for name in ("text_tokens", "scale", "seed"))


@pytest.mark.parametrize("old", list(RENAMED))
def test_old_names_are_refused_with_the_new_one(old: str) -> None:
    with pytest.raises(M2BertError, match=f"pretrain: the setting {old} is now called {RENAMED[old]}; rename it"):
        config_from_mapping(PretrainConfig, {old: 1}, "pretrain")
    assert RENAMED[old] in inspect.signature(PretrainConfig).parameters


def test_checking_changes_nothing() -> None:
    common: dict[str, Any] = {"output": "o", "init": "m2-bert-mini", "max_steps": 1}
    for config in (
        PretrainConfig(**common, data=["x"]),
        DistillConfig(**common, data=["x"], teacher=["t"]),
        FinetuneConfig(**common, pairs=["x"]),
    ):
        before = dataclasses.asdict(config)
        config.check()
        assert dataclasses.asdict(config) == before and config.tokenizer == ""
        with pytest.raises(M2BertError, match=r"needs (tokenizer|init), got nothing"):
            dataclasses.replace(config, init="").check()


def test_the_names_of_training_arguments_are_handed_on(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "learning_rate": 3e-4, "lr_scheduler_type": "cosine", "adam_beta1": 0.8, "adam_beta2": 0.9,
        "adam_epsilon": 1e-7, "weight_decay": 0.2, "max_grad_norm": 2.0, "gradient_accumulation_steps": 3, "seed": 4,
        "bf16": False, "logging_steps": 6,
    }  # fmt: skip
    assert set(given) == {item.name for item in dataclasses.fields(TrainerSettings)}
    arguments = training_arguments(TrainConfig(**given, output=str(tmp_path), max_steps=9))
    assert isinstance(arguments, TrainingArguments)
    assert {name: getattr(arguments, name) for name in given} == given
    assert (arguments.output_dir, arguments.max_steps) == (str(tmp_path), 9)


def test_there_is_a_loss_for_every_name() -> None:
    assert set(LOSS_NAMES) == set(LOSSES)


def test_settings_reject_unknown_keys_and_wrong_types(tmp_path: Path) -> None:
    assert config_from_mapping(PretrainConfig, {"max_seconds": 5}, "pretrain").max_seconds == 5.0
    for values in ({"learning_rates": 1.0}, {"learning_rate": "fast"}, {"max_steps": 1.5}, {"bf16": 1}, {"seed": True}):
        with pytest.raises(M2BertError, match=next(iter(values))):
            config_from_mapping(PretrainConfig, values, "pretrain")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "number.yaml").write_text("1: 2\n")
    for name in ("list.yaml", "broken.yaml", "number.yaml", "absent.yaml"):
        with pytest.raises(M2BertError, match=name):
            read_settings(tmp_path / name, "pretrain")


@pytest.mark.parametrize(
    "values",
    [{"threads": 100_000}, {"gradient_accumulation_steps": 10**12}, {"lengths": {}}, {"output": "a\0b"}, {"seed": -1},
     {"threads": -1}, {"save_steps": -1}, {"warmup_ratio": 2.0}, {"learning_rate": math.nan},
     {"max_seconds": math.nan}, {"weights": {"books": -1.0}}, {"lengths": {64: math.nan}}],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any]) -> None:
    for config in (PretrainConfig(data=["x"]), FinetuneConfig(init="x")):
        base = {"output": "o", "tokenizer": "t", "max_steps": 1}
        with pytest.raises(M2BertError, match=next(iter(values))):
            dataclasses.replace(config, **{**base, **values}).check()


def test_small_files_that_stand_for_much_are_refused_in_a_line(tmp_path: Path) -> None:
    """Aliases of aliases, which were 2.8 MB of error and at ten levels all memory, and values in values in values."""
    levels = [f"&a{n} [" + ",".join([f"*a{n - 1}" if n else "x"] * 9) + "]" for n in range(10)]
    bombs = [f"report_to: [{', '.join(levels)}]\nlearning_rate: *a9\n", "data: " + "[" * 5000, "a: " + "{b: " * 5000]
    for text in bombs:
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(M2BertError, match=r"s.yaml' must be a readable YAML or JSON file \(") as refused:
            read_settings(tmp_path / "s.yaml", "pretrain")
        assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_settings_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(M2BertError, match="with a value in YAML"):
        gather_settings("pretrain", "", ["data=["], {})
    for name in ("lengths", "weights"):
        (tmp_path / "s.yaml").write_text(f"{name}: {{a: b}}\n")
        with pytest.raises(M2BertError, match=f"{name} must map to numbers"):
            gather_settings("pretrain", str(tmp_path / "s.yaml"), [], {})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 fma", False), ("fpu avx512f avx512_bf16 avx512_fp16", True), ("asimd bf16", True), ("xbf16x", False)],
)
def test_bfloat16_is_the_default_where_the_cpu_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(settings_module, "CPU_FACTS", facts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert PretrainConfig().bf16 is expected
    assert PretrainConfig(bf16=True).bf16 is True
    monkeypatch.setattr(settings_module, "CPU_FACTS", tmp_path / "nowhere")
    assert PretrainConfig().bf16 is False
