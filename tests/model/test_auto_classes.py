"""What people do with transformers models, done with ours: Auto classes, pipelines, Trainer, types, copies, shards."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny import story, tiny_model, tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

from m2bert import _registration
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import load_model, load_network, save_model
from m2bert.model.modeling import M2BertForMaskedLM, M2BertModel

TEXTS = [story(n, seed=n) for n in (3, 20, 45)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model with its tokenizer."""
    place = tmp_path_factory.mktemp("auto") / "model"
    torch.manual_seed(0)
    save_model(M2BertForMaskedLM(tiny_model().config), tiny_tokenizer(), place, dtype=torch.float32)
    return place


def test_registration_follows_the_registers_whenever_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A register that is loaded is entered at once, another as soon as it is; other modules are found by others."""
    entered: list[str] = []
    monkeypatch.setattr(_registration, "REGISTERS", {"json": "ours.one", "tiny": "ours.two"})
    monkeypatch.setattr(_registration.importlib, "import_module", entered.append)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    _registration.register_with_transformers()
    assert entered == ["ours.one", "ours.two"]  # both are loaded here
    finder = sys.meta_path[0]
    assert finder.find_spec("colorsys", None) is None
    spec = finder.find_spec("tiny", None)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(module, ModuleType) and module.WORDS and entered[2:] == ["ours.two"]


def test_auto_classes_know_our_folders(folder: Path) -> None:
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (config.model_type, tokenizer.model_max_length) == ("m2_bert", 64)
    model = AutoModel.from_pretrained(folder, device_map="cpu")
    assert type(model) is M2BertModel and model.dtype == torch.float32
    assert AutoModel.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).pooler_output
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(copied(**inputs).pooler_output, expected, rtol=0, atol=0)
    made = torch.nn.functional.normalize(expected, dim=1)
    np.testing.assert_allclose(made, Embedder(folder).encode(TEXTS), atol=1e-5)


def test_pipelines_run_our_models(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    states = pipeline("feature-extraction", model=str(folder), device="cpu")(TEXTS[0], return_tensors=True)
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(states, model(**inputs).last_hidden_state)
        logits = AutoModelForMaskedLM.from_pretrained(folder)(
            **AutoTokenizer.from_pretrained(folder)("river [MASK] light", return_tensors="pt")
        ).logits[0, 2]
    found = pipeline("fill-mask", model=str(folder), device="cpu")("river [MASK] light", top_k=2)
    assert found[0]["token"] == int(logits.argmax())
    assert found[0]["score"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the trainer's own future
def test_their_trainer_trains_with_activations_computed_again(folder: Path, tmp_path: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, learning_rate=1e-2, per_device_train_batch_size=8, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1, gradient_checkpointing=True,
    )  # fmt: skip
    rows = [tokenizer("river stone light paper " * (1 + n % 3)) for n in range(16)]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorForLanguageModeling(tokenizer)
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    trainer.save_model(str(tmp_path / "trained"))
    tokenizer.save_pretrained(tmp_path / "trained")
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.eval().m2bert(**inputs)[0].mean(dim=1), dim=1)
    np.testing.assert_allclose(Embedder(tmp_path / "trained").encode(TEXTS[:1]), expected, atol=1e-5)


def test_weights_in_several_files_are_read(folder: Path, tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="10KB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "model.safetensors").exists()
    np.testing.assert_allclose(Embedder(tmp_path).encode(TEXTS), Embedder(folder).encode(TEXTS), atol=0)
    assert load_model(tmp_path)[0].num_parameters() == load_model(folder)[0].num_parameters()
    shards[0].unlink()
    with pytest.raises(M2BertError, match=rf"load_model: .*index.json names '{shards[0].name}', which must lie beside"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[1", "must say in weight_map which file holds each tensor"),
        ('{"weight_map": [1]}', "must say in weight_map which file"),
        (json.dumps({"weight_map": {"a": "../model.safetensors"}}), r"names '../model.safetensors', which must lie"),
        (json.dumps({"weight_map": {"a": 5}}), "names 5, which must lie beside it"),
    ],
)
def test_damaged_lists_of_files_are_told(folder: Path, tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(M2BertError, match=message):
        load_network(tmp_path)


def test_a_revision_of_the_hub_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in ("someone/model", "someone/model@main", "someone/model@refs/pr/3"):
        assert load_network(name)[0].config.hidden_size == 16
    assert asked == [("someone/model", None), ("someone/model", "main"), ("someone/model", "refs/pr/3")]
