"""Two processes take the steps that one process takes with the same batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_ranks import pretrain_in_ranks

from m2bert.train.pretrain import pretrain
from m2bert.train.settings import PretrainConfig


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_two_processes_take_the_steps_of_one(world: Path, tmp_path: Path) -> None:
    model = {
        "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "filter_order": 8,
        "max_position_embeddings": 64,
    }  # fmt: skip
    settings = {
        "data": [str(world / "text")], "tokenizer": str(world / "tokenizer"), "model": model,
        "cache": str(world / "cache"), "lengths": {32: 0.5, 64: 0.5}, "batch_tokens": 256, "max_steps": 4,
        "logging_steps": 1, "save_seconds": 0.0, "bf16": False, "threads": 1,
    }  # fmt: skip
    one = pretrain(PretrainConfig(**settings, output=str(tmp_path / "one"), gradient_accumulation_steps=2))
    two = pretrain_in_ranks({**settings, "output": str(tmp_path / "two")}, tmp_path)
    other = PretrainConfig(**settings, output=str(tmp_path / "other"))
    pretrain(other)
    lists = {name: [row["loss"] for row in rows(tmp_path / name)] for name in ("one", "two", "other")}
    assert len(lists["two"]) == 4
    # Sums in another order: float32 rounding, magnified by four steps of Adam. Other batches move the loss by 1e-2.
    assert lists["two"] == pytest.approx(lists["one"], rel=1e-4)
    assert lists["other"] != pytest.approx(lists["one"], rel=1e-3)
    assert [result["tokens"] for result in two] == [one["tokens"]] * 2
    weights = {name: load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two", "other")}
    assert weights["one"].keys() == weights["two"].keys()
    for name, tensor in weights["one"].items():
        assert torch.allclose(weights["two"][name], tensor, atol=1e-4), name
