"""What commands start from: a shipped name, a folder, a finished run, a model of the hub, one without the head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from m2bert import load_model
from m2bert.cli import build_app
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import model_folder, save_model
from m2bert.train.pretrain import build_masked_lm
from m2bert.train.settings import PretrainConfig

HERE = {"--max-steps": "1", "--batch-tokens": "512", "--threads": "1", "--save-seconds": "0"}


def invoke(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(build_app(), list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def shipped(world: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("m2bert.model.checkpoints.SHIPPED", world)
    return "model"


def downloaded(world: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def download(name: str, **options: Any) -> str:
        assert name == "someone/long-model" and "config.json" not in options.get("ignore_patterns", ())
        return str(world / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return "someone/long-model"


@pytest.mark.parametrize("named", [shipped, downloaded])
def test_every_command_takes_the_name(
    named: Callable[..., str], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = named(world, monkeypatch)
    monkeypatch.chdir(tmp_path)
    common = [text for pair in HERE.items() for text in pair] + ["--cache", str(world / "cache"), "--no-bf16"]
    text = ["--data", str(world / "text")]
    tokens = ["--lengths", "64"]
    # No tokenizer is named: it is that of the model.
    assert invoke("pretrain", "--init", name, *text, *tokens, "--output", "mlm", *common)["step"] == 1
    pairs = ["--pairs", str(world / "pairs.jsonl.gz")]
    assert invoke("finetune", "--init", name, *pairs, *tokens, "--output", "tuned", *common)["step"] == 1
    windows = ["--window-tokens", "96", "--segment-tokens", "24", "--text-tokens", "1000"]
    teacher = ["--teacher", str(world / "teacher")]
    assert invoke("distill", "--init", name, *teacher, *text, *windows, "--output", "student", *common)["step"] == 1
    assert invoke("validate", name, *text, "--tokens", "500")["validation_loss"] > 0
    invoke("extend", name, "--to", "160", "--output", "longer")
    assert load_model("longer")[0].config.max_position_embeddings == 160
    # A finished run is a start as well, and what was asked is kept as it was asked.
    assert invoke("finetune", "--init", "mlm", *pairs, *tokens, "--output", "again", *common)["step"] == 1
    asked = json.loads((tmp_path / "tuned" / "settings.json").read_text())
    assert (asked["init"], asked["tokenizer"]) == (name, "")


def test_a_shipped_model_lends_its_tokenizer_and_is_a_teacher(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped(world, monkeypatch)
    monkeypatch.chdir(tmp_path)
    common = [text for pair in HERE.items() for text in pair] + ["--cache", str(tmp_path / "cache"), "--no-bf16"]
    (tmp_path / "fields.yaml").write_text("{hidden_size: 32, num_hidden_layers: 1, intermediate_size: 64}")
    flags = ["--teacher", "teacher", "--tokenizer", "model", "--config", "fields.yaml", "--data", str(world / "text")]
    flags += ["--window-tokens", "96", "--segment-tokens", "24", "--text-tokens", "1000", "--output", "student"]
    assert invoke("distill", *flags, *common)["step"] == 1


def test_the_hub_is_asked_for_names_that_no_folder_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unreachable(name: str, **options: Any) -> str:
        asked.append(name)
        raise LocalEntryNotFoundError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.chdir(tmp_path)
    told = r"finetune: 'owner/name' is no folder here and cannot be had from the Hugging Face hub \(Name or service"
    with pytest.raises(M2BertError, match=told + r" not known\); check the name or the network"):
        model_folder("owner/name", "finetune")
    assert asked == ["owner/name"]
    (tmp_path / "runs").mkdir()
    for local in ("runs/mlm", "/nowhere/model", "nowhere", "a/b/c"):
        with pytest.raises(M2BertError, match=r"a model must be a folder with config\.json, a finished run"):
            model_folder(local, "finetune")
    assert asked == ["owner/name"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path / "runs"))
    with pytest.raises(M2BertError, match=r"'owner/name' on the Hugging Face hub has no config\.json"):
        model_folder("owner/name", "finetune")


def test_pretraining_gives_a_model_without_the_head_a_fresh_one(tmp_path: Path, caplog: Any) -> None:
    start = tiny_model(pooling="weighted", bilinear_features=8, projection_dim=6, term_weights=True)
    save_model(start, tiny_tokenizer(), tmp_path / "start", dtype=torch.float32)
    config = PretrainConfig(init=str(tmp_path / "start"), lengths={64: 1.0})
    first, second, other = (build_masked_lm(config, 60) for config.seed in (17, 17, 18))
    told = [record.getMessage() for record in caplog.records if "no masked-LM head" in record.getMessage()]
    left_out = "its bilinear_features, projection, term_weights, token_weights are for pooling"
    assert len(told) == 3 and left_out in told[0]
    for name, x in first.m2bert.state_dict().items():
        torch.testing.assert_close(x, start.state_dict()[name], rtol=0, atol=0)
    assert torch.equal(first.head.dense.weight, second.head.dense.weight)
    assert not torch.equal(first.head.dense.weight, other.head.dense.weight)
    assert first.decoder.weight is first.m2bert.embeddings.word_embeddings.weight
    # What it becomes opens as a model, and may be given those layers again.
    save_model(first, tiny_tokenizer(), tmp_path / "made", dtype=torch.float32)
    model, _ = load_model(tmp_path / "made")
    assert (model.config.pooling, model.config.embedding_size) == ("mean", 16) and model.term_weights is None
    caplog.clear()
    build_masked_lm(PretrainConfig(init=str(tmp_path / "made"), lengths={64: 1.0}), 60)
    assert not caplog.records
