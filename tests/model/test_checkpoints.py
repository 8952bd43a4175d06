"""Files: round trips, every damaged or foreign file refused with a sentence that names what is wrong."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import numbered_tokenizer, tiny_config, tiny_inputs, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModel

from m2bert.errors import M2BertError
from m2bert.model import checkpoints
from m2bert.model.checkpoints import fingerprint, load_model, load_network, save_model
from m2bert.model.modeling import M2BertForMaskedLM, M2BertModel
from m2bert.model.reference import load_reference

Tensors = dict[str, Tensor]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a small model saved in bfloat16."""
    folder = tmp_path / "model"
    save_model(M2BertModel(tiny_config()), numbered_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def reference_tensors(shared_dir: Path) -> Tensors:
    """State dict of a reference checkpoint, under the reference's names."""
    return load_file(shared_dir / "parity" / "tiny-256" / "checkpoint.safetensors")


def test_saved_model_opens_again_in_float32(tmp_path: Path) -> None:
    model = M2BertModel(tiny_config(pooling="cls_dense")).eval()
    save_model(model, numbered_tokenizer(), tmp_path / "exact", dtype=torch.float32)
    again, tokenizer = load_model(tmp_path / "exact")
    assert not again.training and again.dtype == torch.float32
    ids = tokenizer("w7 w30 w96 unheard", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[2, 7, 30, 96, 1, 3]]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).pooler_output, model(ids).pooler_output, rtol=0, atol=0)
    assert all(p.requires_grad for p in again.parameters())


def test_saving_in_bfloat16_keeps_the_filters_exact(saved: Path, tmp_path: Path) -> None:
    stored = load_file(saved / "model.safetensors")
    narrow = {name for name, x in stored.items() if x.dtype == torch.bfloat16}
    assert "embeddings.word_embeddings.weight" in narrow and "encoder.blocks.0.mlp.w_in" in narrow
    assert not [name for name in narrow if "long_conv" in name]
    assert stored["encoder.blocks.0.sequence_mixer.long_conv.features"].dtype == torch.float32
    model, tokenizer = load_model(saved)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    save_model(model, tokenizer, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_saved_model_opens_with_transformers(saved: Path) -> None:
    ids = tiny_inputs()
    expected = load_model(saved)[0](ids).last_hidden_state
    torch.testing.assert_close(AutoModel.from_pretrained(saved, dtype=torch.float32).eval()(ids)[0], expected)


def test_masked_lm_is_saved_whole_and_opens_as_encoder(tmp_path: Path) -> None:
    model = M2BertForMaskedLM(tiny_config()).eval()
    save_model(model, numbered_tokenizer(), tmp_path / "mlm", dtype=torch.float32)
    ids = tiny_inputs()
    encoder, _ = load_model(tmp_path / "mlm")
    torch.testing.assert_close(encoder(ids)[0], model.m2bert(ids)[0], rtol=0, atol=0)
    again = M2BertForMaskedLM.from_pretrained(tmp_path / "mlm").eval()
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_save_model_keeps_other_files_and_leaves_nothing_behind(saved: Path) -> None:
    (saved / "README.md").write_text("a card")
    model, tokenizer = load_model(saved)
    save_model(model, tokenizer, saved)
    assert (saved / "README.md").read_text() == "a card"
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("step", ["model.checkpoints.save_file", "model.checkpoints._write_config", "files._exchange"])
def test_save_model_is_all_or_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(f"m2bert.{step}", fail)
    with pytest.raises(M2BertError, match=r"save_model: cannot write .*no space left"):
        save_model(M2BertModel(tiny_config(hidden_size=64)), numbered_tokenizer(), saved)
    assert {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("frame", ["[CLS] $A", "$A", "[CLS] [CLS] $A [SEP]"])
def test_save_model_refuses_a_tokenizer_of_another_frame(tmp_path: Path, frame: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=frame, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    message = r"save_model: the tokenizer must put a text between its cls_token and its sep_token, it makes `.*` of"
    with pytest.raises(M2BertError, match=message):
        save_model(tiny_model(), tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_fingerprint_changes_with_weights_configuration_and_tokenizer(saved: Path) -> None:
    model, tokenizer = load_model(saved)
    first = fingerprint(model, tokenizer)
    assert len(first) == 16 and int(first, 16) >= 0
    assert fingerprint(*load_model(saved)) == first
    tokenizer(["w5 w6", "w7"], padding=True, truncation=True, max_length=1)
    assert fingerprint(model, tokenizer) == first
    seen = {first}
    with torch.no_grad():
        model.embeddings.norm.bias[3] += 1e-3
    seen.add(fingerprint(model, tokenizer))
    model.config.pooling = "cls"
    seen.add(fingerprint(model, tokenizer))
    tokenizer.add_tokens(["new"])
    seen.add(fingerprint(model, tokenizer))
    assert len(seen) == 4


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(change: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def junk_instead(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(data)


def pickled_instead(folder: Path, what: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(what, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "load_model: no config.json in .*save_model"),
        (lambda f: (f / "config.json").write_text("{"), "config.json must be JSON, but "),
        (lambda f: (f / "config.json").write_text("[1]"), "must say model_type 'm2_bert', got 'list'"),
        (
            lambda f: edit_json(f / "config.json", model_type="bert"),
            "must say model_type 'm2_bert', got 'bert'",
        ),
        (lambda f: edit_json(f / "config.json", hidden_size=-1), "hidden_size must be a whole number"),
        (
            lambda f: edit_json(f / "config.json", vocab_size=98),
            r"word_embeddings.weight .*\(98, 32\).*got \(97, 32\)",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors or pytorch_model.bin in"),
        (lambda f: truncate(f / "model.safetensors"), "model.safetensors is not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "is not a whole safetensors file"),
        (edit_weights(lambda t: t.pop("embeddings.norm.bias")), "1 missing: embeddings.norm.bias"),
        (edit_weights(lambda t: t.update(extra=torch.zeros(1))), "1 extra: extra"),
        (
            edit_weights(lambda t: t.update({"embeddings.norm.bias": torch.zeros(32, dtype=torch.int64)})),
            "embeddings.norm.bias in .* must be floating point, got torch.int64",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda f: truncate(f / "tokenizer.json"), "tokenizer.json cannot be read"),
        (lambda f: pickled_instead(f, nn.Linear(2, 2)), "or a pickle that holds more than tensors"),
        (lambda f: junk_instead(f, b"<html>404</html>"), "pytorch_model.bin is damaged, or a pickle"),
        (lambda f: edit_json(f / "config.json", dtype="float33"), "must be a type of tensors .*got 'float33'"),
        (lambda f: pickled_instead(f, [1, 2]), "must hold tensors by name and nothing else, got a list"),
    ],
)
def test_load_model_refuses(saved: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(saved)
    for load in (load_model, load_network):
        with pytest.raises(M2BertError, match=message):
            load(saved)


def test_load_model_names_the_shipped_models(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    monkeypatch.setattr(checkpoints, "SHIPPED", saved.parent)
    with pytest.raises(M2BertError, match=r"must be a folder .* or a shipped model \(model\), got 'm3'"):
        load_model("m3")
    assert isinstance(load_model("model")[0], M2BertModel)


def test_load_model_opens_a_file_of_plain_tensors(saved: Path) -> None:
    expected = load_model(saved)[0](tiny_inputs())[0]
    pickled_instead(saved, load_file(saved / "model.safetensors"))
    torch.testing.assert_close(load_model(saved)[0](tiny_inputs())[0], expected, rtol=0, atol=0)


def test_load_reference_points_to_load_model(saved: Path, tmp_path: Path) -> None:
    save_model(M2BertForMaskedLM(tiny_config()), numbered_tokenizer(), tmp_path / "masked", dtype=torch.float32)
    for folder in (saved, tmp_path / "masked"):
        with pytest.raises(M2BertError, match="has this library's names; open its folder with load_model"):
            load_reference(folder)


def test_load_model_points_to_convert(saved: Path, reference_tensors: Tensors) -> None:
    save_file(reference_tensors, saved / "model.safetensors")
    with pytest.raises(M2BertError, match=r"reference implementation's names; .* `m2bert convert .* OUT`"):
        load_model(saved)


class RunsCode:
    """A pickle that would make a folder when opened without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_load_reference_never_runs_code(tmp_path: Path, suffix: str) -> None:
    torch.save({"weight": RunsCode(tmp_path / "harm")}, tmp_path / f"model{suffix}")
    with pytest.raises(M2BertError, match="holds more than tensors, and opening it could run code; re-save"):
        load_reference(tmp_path / f"model{suffix}")
    assert not (tmp_path / "harm").exists()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("pytorch_model.bin", lambda t: t),
        ("composer.pt", lambda t: {"state": {"model": {f"model.{k}": x for k, x in t.items()}}}),
        ("parallel.bin", lambda t: {f"module.{k}": x for k, x in t.items()}),
        ("bfloat16.bin", lambda t: {k: x.bfloat16() if x.is_floating_point() else x for k, x in t.items()}),
        (
            "flash.bin",
            lambda t: {
                **t,
                "bert.encoder.flashfft.twiddle_factors_fft_16_16": torch.ones(4, dtype=torch.bfloat16),
            },
        ),
    ],
)
def test_load_reference_opens_every_layout(
    reference_tensors: Tensors, tmp_path: Path, name: str, wrap: Callable[[Tensors], Any]
) -> None:
    torch.save(wrap(dict(reference_tensors)), tmp_path / name)
    save_file(reference_tensors, tmp_path / "plain.safetensors")
    model = load_reference(tmp_path / name)
    if name == "bfloat16.bin":
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    else:
        assert same_weights(model, load_reference(tmp_path / "plain.safetensors"))
    assert isinstance(model, M2BertForMaskedLM)
    assert model.decoder.weight is model.m2bert.embeddings.word_embeddings.weight


def test_load_reference_derives_the_configuration(shared_dir: Path) -> None:
    for folder in sorted(p for p in (shared_dir / "parity").iterdir() if p.is_dir()):
        spec = json.loads((folder / "spec.json").read_text())
        config = load_reference(folder).config
        assert config.hidden_size == spec["hidden"] and config.num_hidden_layers == spec["layers"]
        assert config.intermediate_size == spec["inter"] and config.filter_order == spec["order"]
        assert config.filter_emb_dim == spec["emb_dim"] and config.vocab_size == spec.get("vocab", 1000)
        assert config.max_position_embeddings == spec.get("l_max", spec["seqlen"])
        assert config.bidirectional is spec.get("bidir", True)
        assert config.residual_long_conv is spec.get("resid", True)
        assert config.use_glu is spec.get("glu", True)
        assert config.mlp_nblocks == (4 if spec.get("monarch", True) else 1)
        assert config.mixer_layer_norm is spec.get("training_additions", False)
        assert config.pooling == "mean"


def test_load_reference_makes_an_encoder_with_the_pooler(reference_tensors: Tensors, tmp_path: Path) -> None:
    tensors = {name: x for name, x in reference_tensors.items() if not name.startswith("cls.")}
    tensors |= {"bert.pooler.dense.weight": torch.eye(64), "bert.pooler.dense.bias": torch.zeros(64)}
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_reference(tmp_path, kernels="reference")
    assert isinstance(model, M2BertModel) and model.config.pooling == "cls_dense"
    with torch.no_grad():
        out = model(tiny_inputs())
    torch.testing.assert_close(out.pooler_output, out.last_hidden_state[:, 0].tanh())
    save_model(model, numbered_tokenizer(), tmp_path / "ours", dtype=torch.float32)
    assert same_weights(load_model(tmp_path / "ours")[0], model)
    released = load_reference(tmp_path, pad_to_max_length=True, pooling="cls")
    assert released.config.pad_to_max_length


FILTER = "bert.encoder.layer.1.attention.filter_fn."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FILTER + "bias"), "1 missing: bert.encoder.layer.1.attention.filter_fn.bias"),
        (
            lambda t: t.pop("bert.embeddings.word_embeddings.weight"),
            "has no bert.embeddings.word_embeddings.weight",
        ),
        (lambda t: t.update({"bert.attention.query": torch.zeros(1)}), "1 unknown: bert.attention.query"),
        (
            lambda t: t.update({FILTER + "bias": torch.zeros(63)}),
            r"filter_fn.bias in .*\(64,\), got .*\(63,\)",
        ),
        (
            lambda t: t.update({FILTER + "implicit_filter_rev.5.freq": torch.zeros(1, 16)}),
            "implicit_filter_rev.5.freq in .* must equal .*implicit_filter.1.freq",
        ),
        (
            lambda t: t.update({FILTER + "modulation.deltas": torch.ones(1, 1, 64)}),
            "modulation.deltas in .* window",
        ),
        (lambda t: t.update({FILTER + "pos_emb.t": torch.zeros(1, 256, 1)}), "pos_emb.t in .* but differs"),
        (
            lambda t: t.update({"cls.predictions.decoder.weight": torch.zeros(1000, 64)}),
            "decoder.weight in .* must equal bert.embeddings.word_embeddings.weight",
        ),
        (
            lambda t: [t.pop(k) for k in list(t) if ".layer.0." in k],
            r"layers 0, 1, ... without gaps, got \[1\]",
        ),
        (
            lambda t: t.update({"bert.embeddings.word_embeddings.weight": torch.zeros(5)}),
            r"word_embeddings.weight in .* must have 2 dimensions, got shape \(5,\)",
        ),
    ],
)
def test_load_reference_refuses(
    reference_tensors: Tensors, tmp_path: Path, change: Callable[[Tensors], Any], message: str
) -> None:
    tensors = dict(reference_tensors)
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(M2BertError, match=f"load_reference: .*{message}"):
        load_reference(tmp_path)


def test_load_reference_refuses_wrong_paths_and_fields(reference_tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(M2BertError, match=r"absent does not exist"):
        load_reference(tmp_path / "absent")
    with pytest.raises(M2BertError, match="must hold one checkpoint file, got none"):
        load_reference(tmp_path)
    for name in ("one.safetensors", "two.safetensors"):
        save_file(reference_tensors, tmp_path / name)
    with pytest.raises(M2BertError, match=r"must hold one checkpoint file, got one.safetensors, two.safetensors"):
        load_reference(tmp_path)
    with pytest.raises(M2BertError, match="hiden_size is no field of M2BertConfig"):
        load_reference(tmp_path / "one.safetensors", hiden_size=3)
    with pytest.raises(M2BertError, match="one that the reference has, got 'weighted'"):
        load_reference(tmp_path / "one.safetensors", pooling="weighted")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(M2BertError, match=r"must end in .safetensors"):
        load_reference(tmp_path / "notes.txt")
    truncate(tmp_path / "one.safetensors")
    with pytest.raises(M2BertError, match="is not a whole safetensors file"):
        load_reference(tmp_path / "one.safetensors")
    torch.save(dict(reference_tensors), tmp_path / "whole.bin")
    truncate(tmp_path / "whole.bin")
    with pytest.raises(M2BertError, match=r"whole.bin is not a whole torch file"):
        load_reference(tmp_path / "whole.bin")
