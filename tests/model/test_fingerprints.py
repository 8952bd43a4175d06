"""Fingerprints and plain loading: what a digest is made of, and that a network is the model without transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tiny import numbered_tokenizer, tiny_config, tiny_inputs

from m2bert.model import architecture
from m2bert.model.checkpoints import fingerprint, load_model, load_network, save_model
from m2bert.model.configuration import M2BertConfig
from m2bert.model.modeling import M2BertModel
from m2bert.model.tokenization import encode_ids


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a small model saved in bfloat16."""
    save_model(M2BertModel(tiny_config()), numbered_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


# The stores that there are were made with these models: a change of any of them would orphan every store.
def test_fingerprints_are_those_of_the_stores_there_are(saved: Path) -> None:
    assert fingerprint(*load_network("m2-bert-mini")) == "6cb6c7d643d9f219"
    assert fingerprint(*load_network(saved)) == fingerprint(*load_model(saved))


def test_fingerprint_hashes_what_it_says(saved: Path) -> None:
    """Written out once more: sorted JSON of the first fields, the tokenizer, names, types, shapes and bytes."""
    model, tokenizer = load_network(saved)
    unnamed = {"architectures", "auto_map", "dtype", "kernels", "transformers_version", "model_type"}
    unnamed |= {"projection_dim", "term_weights"}  # younger than the first fields, and at their defaults
    names = json.loads((saved / "config.json").read_text()).keys() - unnamed
    fields = {name: getattr(model.config, name) for name in names}
    text = json.loads((saved / "tokenizer.json").read_text())
    text.pop("padding"), text.pop("truncation")
    data = json.dumps(fields | {"model_type": "m2_bert"}, sort_keys=True) + json.dumps(text, sort_keys=True)
    data = data.encode()
    for name, x in sorted(model.state_dict().items()):
        data += f"{name} torch.float32 {tuple(x.shape)}".encode() + x.numpy().tobytes()
    assert len(fields) == 25
    assert fingerprint(model, tokenizer) == hashlib.sha256(data).hexdigest()[:16]


def test_a_new_field_at_its_default_leaves_fingerprints_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    config = M2BertConfig(hidden_size=64)
    monkeypatch.setattr(architecture, "FIRST_FIELDS", tuple(n for n in architecture.FIRST_FIELDS if n != "pooling"))
    before = architecture.fields_of_fingerprint(config)
    assert "pooling" not in before and before["hidden_size"] == 64 and before["bidirectional"] is True
    config.pooling = "cls"
    assert architecture.fields_of_fingerprint(config) == {**before, "pooling": "cls"}


def test_networks_and_models_are_loaded_alike(saved: Path) -> None:
    network, plain = load_network(saved)
    model, tokenizer = load_model(saved)
    assert not isinstance(network, M2BertModel) and not network.training
    assert network.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in network.state_dict().items())
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(network(tiny_inputs())[1], model(tiny_inputs()).pooler_output)
    texts = ["w5 w6 [PAD] w96", "w7"]
    assert encode_ids(plain, texts) == encode_ids(tokenizer, texts) and len(plain) == len(tokenizer)
