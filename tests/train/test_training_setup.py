"""Trackers get the losses, gradient checkpointing gives the same ones, slow bfloat16 is said, memory is measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import TRAINING, run_forked
from safetensors import SafetensorError
from training_data import logged_losses
from transformers import Trainer, TrainerCallback
from transformers.integrations import integration_utils

from m2bert.errors import M2BertError
from m2bert.model.configuration import M2BertConfig
from m2bert.model.layers import SequenceMixer
from m2bert.model.modeling import M2BertForMaskedLM
from m2bert.train.pretrain import pretrain
from m2bert.train.settings import PRESETS, PretrainConfig
from m2bert.train.trainer import warn_of_slow_bfloat16

ROOT = Path(__file__).resolve().parents[2]


def settings(world: Path, folder: Path, **overrides: Any) -> PretrainConfig:
    model = {
        "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "filter_order": 8,
        "max_position_embeddings": 64,
    }  # fmt: skip
    return PretrainConfig(**{
        "data": [str(world / "text")], "tokenizer": str(world / "tokenizer"), "output": str(folder),
        "cache": str(world / "cache"), "model": model, "lengths": {64: 1.0}, "batch_tokens": 512, "max_steps": 4,
        "logging_steps": 1, "save_seconds": 0.0, "bf16": False, "threads": 1, **overrides,
    })  # fmt: skip


def test_trackers_get_what_the_log_gets(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.extend([logs["loss"]] if "loss" in logs else [])

    class Missing(TrainerCallback):
        def __init__(self) -> None:
            raise RuntimeError("Missing requires its package. Run `pip install missing`.")

    for name, kind in (("recorder", Recorder), ("missing", Missing)):
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, kind)
    pretrain(settings(world, tmp_path / "run", report_to=["recorder"]))
    assert len(seen) == 4 and seen == pytest.approx(list(logged_losses(tmp_path / "run").values()))
    for name, reason in (("missing", "requires its package"), ("nowhere", "nowhere is not supported")):
        with pytest.raises(M2BertError, match=rf"report_to must name trackers that are installed \(.*{reason}"):
            pretrain(settings(world, tmp_path / name, report_to=[name]))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"),
            "not all could be written",
        ),
    ],
)
def test_half_a_checkpoint_is_told_and_taken_away(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    save = Trainer._save_optimizer_and_scheduler

    def full(self: Trainer, output: str) -> None:
        if self.state.global_step == 2:
            raise error
        save(self, output)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(M2BertError, match=rf"^train: cannot write .*checkpoint-2 \(.*{reason}"):
        pretrain(settings(world, tmp_path / "run", save_steps=1))
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


def test_gradient_checkpointing_computes_blocks_again_for_the_same_losses(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward = SequenceMixer.forward

    def counted(self: SequenceMixer, *args: Any) -> Any:
        calls.append(1)
        return forward(self, *args)

    monkeypatch.setattr(SequenceMixer, "forward", counted)
    counts = []
    for name in ("plain", "again"):
        calls.clear()
        pretrain(settings(world, tmp_path / name, gradient_checkpointing=name == "again"))
        counts.append(len(calls))
    assert counts == [4 * 2, 2 * 4 * 2]  # steps x layers
    assert logged_losses(tmp_path / "again") == pytest.approx(logged_losses(tmp_path / "plain"), rel=1e-6)


@pytest.mark.parametrize(("flags", "warnings"), [("fpu avx2 fma", 1), ("fpu avx512f avx512_bf16", 0)])
def test_slow_bfloat16_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, flags: str, warnings: int
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("m2bert.train.settings.CPU_FACTS", tmp_path / "cpuinfo")
    warn_of_slow_bfloat16()
    assert sum("set bf16=false" in record.getMessage() for record in caplog.records) == warnings


def test_what_a_step_keeps_is_counted_without_computing(monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("measure_training_memory")
    monkeypatch.setitem(PRESETS, "small", {**PRESETS["mini"], "vocab_size": 64, "max_position_embeddings": 128})
    counted = script.count("small", 96, False)
    # The same, of a pass that is really computed.
    model = M2BertForMaskedLM(M2BertConfig(**PRESETS["small"])).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x  # held, so that no other tensor takes its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = model.m2bert(input_ids=torch.zeros(1, 96, dtype=torch.long)).last_hidden_state
    real = sum(x.untyped_storage().nbytes() for x in kept.values()) / 2**30
    assert hidden.shape == (1, 96, 384) and counted["layers"] == 4
    assert script.kept_bytes("small", 96, 4, False) / 2**30 == pytest.approx(real, rel=0.01)
    assert counted["kept_gib"] == pytest.approx(real, abs=0.006)  # rounded to hundredths
    assert script.kept_bytes("small", 96, 1, False) < 0.4 * script.kept_bytes("small", 96, 4, False)


def test_the_peak_of_memory_is_measured() -> None:
    script = str(ROOT / "scripts" / "measure_training_memory.py")
    program = f"import runpy; runpy.run_path({script!r}, run_name='__main__')"
    arguments = ["--preset", "mini", "--layers", "1", "--tokens", "64", "--one", "checkpointing"]
    done = run_forked(program, *arguments, imported=TRAINING, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["tokens"], row["layers"], row["gradient_checkpointing"]) == (64, 1, True)
    # Weights, gradients and two moments in float32 are the least that a step holds.
    assert row["peak_gib"] >= row["before_step_gib"] > 4 * 4 * row["parameters"] / 2**30
