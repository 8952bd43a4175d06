"""Rates and decay of filters and features: which parameter is in which group, and how far one step moves each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config

from m2bert.model.modeling import M2BertForMaskedLM, M2BertModel
from m2bert.train.parameter_groups import filter_parameters, parameter_groups
from m2bert.train.pretrain import pretrain
from m2bert.train.settings import PretrainConfig, TrainConfig

APART = TrainConfig(learning_rate=1e-3, weight_decay=0.01, filter_rate=2.0, feature_rate=0.02, filter_weight_decay=0.1)


def grouped(model: torch.nn.Module, config: TrainConfig) -> dict[str, tuple[float, float]]:
    """Name of each parameter -> its rate and decay; everything outside of long convolutions of two axes decays."""
    decayed = {name for name, p in model.named_parameters() if p.dim() > 1}
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, decayed, config)
    placed = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(placed) == len(names) == len({name for name, _ in placed})  # each exactly once
    return dict(placed)


def test_every_parameter_is_in_its_group() -> None:
    got = grouped(M2BertForMaskedLM(tiny_config()), APART)
    mixer = "m2bert.encoder.blocks.1.sequence_mixer"
    for conv in ("long_conv", "residual_long_conv"):
        for network in ("filter", "filter_rev"):
            assert got[f"{mixer}.{conv}.{network}.layers.2.weight"] == (2e-3, 0.1)
            assert got[f"{mixer}.{conv}.{network}.out.weight"] == (2e-3, 0.1)
            assert got[f"{mixer}.{conv}.{network}.layers.0.bias"] == (2e-3, 0.0)
        assert got[f"{mixer}.{conv}.features"] == (pytest.approx(2e-5), 0.0)
        assert got[f"{mixer}.{conv}.skip"] == got[f"{mixer}.{conv}.frequency"] == (1e-3, 0.0)
    assert got[f"{mixer}.in_proj.weight"] == got["head.dense.weight"] == (1e-3, 0.01)
    assert got["m2bert.encoder.blocks.0.mlp.w_in"] == (1e-3, 0.01)
    assert got["m2bert.encoder.blocks.0.norm.weight"] == (1e-3, 0.0)


def test_equal_rates_and_decays_share_a_group() -> None:
    model = M2BertModel(tiny_config())
    assert len(parameter_groups(model, set(), TrainConfig(filter_weight_decay=0.0))) == 1
    assert len(parameter_groups(model, {"embeddings.word_embeddings.weight"}, TrainConfig())) == 2
    assert len(filter_parameters(model)) == 2 * 2 * (3 + 2 * 7)


def test_frozen_parameters_are_left_out() -> None:
    model = M2BertModel(tiny_config())
    model.embeddings.requires_grad_(False)
    trained = sum(len(group["params"]) for group in parameter_groups(model, set(), APART))
    assert trained == sum(p.requires_grad for p in model.parameters()) < len(list(model.parameters()))


def settings(world: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    model = {
        "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "filter_order": 8,
        "max_position_embeddings": 64,
    }  # fmt: skip
    return {
        "data": [str(world / "text")], "tokenizer": str(world / "tokenizer"), "output": str(output),
        "cache": str(world / "cache"), "model": model, "lengths": {64: 1.0}, "batch_tokens": 512, "max_steps": 1,
        "logging_steps": 1, "save_seconds": 0.0, "bf16": False, "threads": 1, "warmup_ratio": 0.0,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "filter_weight_decay": 0.0, "learning_rate": 1e-3,
        "adam_epsilon": 1e-15, **overrides,
    }  # fmt: skip


def test_one_step_moves_each_by_its_rate(world: Path, tmp_path: Path) -> None:
    """Adam's first step moves a parameter by its rate times the sign of its gradient."""
    weights = {}
    for name, steps in (("none", {"learning_rate": 1e-12}), ("apart", {"filter_rate": 2.0, "feature_rate": 0.02})):
        pretrain(PretrainConfig(**settings(world, tmp_path / name, **steps)))
        weights[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    moved = {name: (weights["apart"][name] - x).abs().max().item() for name, x in weights["none"].items()}
    mixer = "m2bert.encoder.blocks.0.sequence_mixer"
    expected = {
        f"{mixer}.long_conv.filter.layers.1.weight": 2e-3, f"{mixer}.long_conv.filter_rev.out.weight": 2e-3,
        f"{mixer}.residual_long_conv.filter.layers.0.bias": 2e-3, f"{mixer}.long_conv.features": 2e-5,
        f"{mixer}.long_conv.skip": 1e-3, f"{mixer}.in_proj.weight": 1e-3, "head.dense.weight": 1e-3,
    }  # fmt: skip
    for name, step in expected.items():
        assert moved[name] == pytest.approx(step, rel=0.05), name


def test_decay_of_filters_alone(world: Path, tmp_path: Path) -> None:
    weights = {}
    for name, decay in (("kept", 0.0), ("decayed", 100.0)):
        pretrain(PretrainConfig(**settings(world, tmp_path / name, filter_weight_decay=decay)))
        weights[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    # AdamW takes rate x decay = a tenth off before its step of at most 1e-3.
    ratio = {name: (weights["decayed"][name].norm() / x.norm()).item() for name, x in weights["kept"].items()}
    mixer = "m2bert.encoder.blocks.0.sequence_mixer"
    assert ratio[f"{mixer}.long_conv.filter.layers.1.weight"] == pytest.approx(0.9, abs=0.02)
    for name in (f"{mixer}.long_conv.features", f"{mixer}.long_conv.frequency", f"{mixer}.in_proj.weight"):
        assert ratio[name] == pytest.approx(1.0, abs=1e-5), name
    rows = [json.loads(line) for line in (tmp_path / "kept" / "log.jsonl").read_text().splitlines()]
    assert rows[0]["learning_rate"] == pytest.approx(1e-3)
