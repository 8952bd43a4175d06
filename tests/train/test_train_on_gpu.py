"""scripts/train_on_gpu.py: packed weights, parts, and a run in pieces that comes to the losses of an ordinary one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_distill import settings
from training_data import logged_losses

from m2bert import load_model
from m2bert.errors import M2BertError
from m2bert.train.distill import distill
from m2bert.train.settings import DistillConfig

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_on_gpu.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("train_on_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed_again(script: Any, weights: dict[str, torch.Tensor], folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    script.write_packed(weights, folder, {})
    return script.read_packed(folder), (folder / script.PACKED_NAME).stat().st_size


def test_packed_weights_lose_what_eight_bits_lose_and_then_nothing(script: Any, tmp_path: Path) -> None:
    values = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weights = {"matrix": values, "bias": values[0], "zero": torch.zeros(2, 32)}
    once, size = packed_again(script, weights, tmp_path)
    blocks, found = (x["matrix"].view(-1, 32) for x in (weights, once))
    # Half a step of 256 over the block's range, and the rounding of its scale.
    bound = blocks.abs().amax(dim=1, keepdim=True) * (1 / 256 + 128 / 127 * 2**-11 + 1 / 128)
    assert ((blocks - found).abs() <= bound).all()
    assert (blocks - found).pow(2).mean() < 1e-4 * blocks.pow(2).mean()
    assert torch.equal(once["bias"], values[0]) and torch.equal(once["zero"], torch.zeros(2, 32))
    twice, _ = packed_again(script, once, tmp_path)
    assert all(torch.equal(twice[name], once[name]) for name in weights)
    assert size < 1.2 * values.numel() + 1000


def test_four_bits_are_enough_for_what_had_four(script: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, size=(100, 32))
    codes[:, 5] = -8
    values = torch.from_numpy((codes * rng.normal(size=(100, 1)).astype(np.float16)).astype(np.float32))
    found, size = packed_again(script, {"matrix": values}, tmp_path)
    assert torch.equal(found["matrix"], values) and size < 0.6 * values.numel() + 500


def test_rows_that_do_not_travel_cannot_be_used(script: Any, tmp_path: Path) -> None:
    values = torch.randn(10, 32)
    script.write_packed({"words": values}, tmp_path, {"words": np.asarray([2, 7])})
    found = script.read_packed(tmp_path)["words"]
    assert found[[0, 1, 9]].isnan().all() and torch.allclose(found[[2, 7]], values[[2, 7]], atol=0.05)


def test_a_run_in_pieces_comes_to_the_same_losses(script: Any, world: Path, tmp_path: Path) -> None:
    values = settings(world, tmp_path / "whole", save_steps=0, max_steps=5)
    # A teacher that packing does not change any more, so that losses can be compared.
    teacher = tmp_path / "teacher"
    script.shutil.copytree(world / "teacher", teacher)
    (tmp_path / "aside").mkdir()
    weights, _ = packed_again(script, load_file(teacher / "model.safetensors"), tmp_path / "aside")
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    values |= {"teacher": [str(teacher)], "cache": str(tmp_path / "cache"), "validation": [str(world / "text")]}
    values["validation_tokens"] = 500
    distill(DistillConfig(**values))
    given = {name: value for name, value in values.items() if name not in ("output", "cache")}
    (tmp_path / "run.yaml").write_text(json.dumps(given))
    told = script.pack(str(tmp_path / "run.yaml"), tmp_path / "pack", 0.005)
    assert len(list((tmp_path / "pack").glob("part-*"))) > 2 and "6,760 tokens" in told
    assert max(path.stat().st_size for path in (tmp_path / "pack").iterdir()) <= 0.005 * 2**20
    first = script.run(tmp_path / "pack", tmp_path / "out", tmp_path / "work", 0.0, 15)
    assert not first["finished"] and first["step"] == 1
    last = script.run(tmp_path / "pack", tmp_path / "out", tmp_path / "work", 60.0, 15)
    assert last["finished"] and last["step"] == 5 and last["held_out_loss"] > 0
    (tmp_path / "back").mkdir()
    script.read_parts(tmp_path / "out", tmp_path / "back")
    assert logged_losses(tmp_path / "back") == pytest.approx(logged_losses(tmp_path / "whole"), rel=1e-5)
    model, expected = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("back", "whole"))
    for name, x in expected.items():
        torch.testing.assert_close(model[name].float(), x, rtol=2**-7, atol=1e-5)


def test_a_pack_that_is_not_whole_is_refused(script: Any, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "noise").write_bytes(np.random.default_rng(0).bytes(5000))
    assert script.write_parts(tmp_path / "source", tmp_path / "parts", 2000 / 2**20) == 3
    part = tmp_path / "parts" / "part-001"
    kept = part.read_bytes()
    (tmp_path / "target").mkdir()
    part.unlink()
    with pytest.raises(M2BertError, match="must hold 3 parts, but part-001 is not there; copy it"):
        script.read_parts(tmp_path / "parts", tmp_path / "target")
    part.write_bytes(kept)
    last = tmp_path / "parts" / "part-002"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(M2BertError, match="end too early; copy them again"):
        script.read_parts(tmp_path / "parts", tmp_path / "target")
    with pytest.raises(M2BertError, match="must hold a file `parts`"):
        script.read_parts(tmp_path, tmp_path / "target")


def test_the_command(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.yaml").write_text("teacher: [nowhere]\n")
    monkeypatch.setattr(
        sys, "argv", ["train_on_gpu.py", "pack", str(tmp_path / "p"), "--settings", str(tmp_path / "run.yaml")]
    )
    with pytest.raises(SystemExit, match="Error: pack: needs tokenizer"):
        script.main()
