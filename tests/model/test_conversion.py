"""`m2bert convert` on files of the released checkpoints' names and shapes, with random weights.

Oracle of the embeddings: the reference's own numbers where they are shared (tests/model/test_parity.py), and here the
definition: pad to the model's length, the first token's state, a dense layer, tanh.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_tokenizer
from torch import Tensor
from typer.testing import CliRunner

from m2bert.cli import build_app
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.model import conversion
from m2bert.model.checkpoints import load_whole
from m2bert.model.conversion import convert_checkpoint
from m2bert.model.filters import decay_rates

VOCABULARY = 30528  # bert-base-uncased's 30,522 pieces, padded


def released(
    length: int, dim: int = 768, layers: int = 12, inter: int = 3072, *, head: bool = False
) -> dict[str, Tensor]:
    """A checkpoint under the names and with the shapes of the released ones; values of a sensible size."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 0.02) -> Tensor:
        return torch.empty(shape).normal_(0, scale, generator=draw)

    def normed(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + random(dim), f"{name}.bias": random(dim)}

    tensors = {
        "bert.embeddings.position_ids": torch.arange(length)[None],
        "bert.embeddings.word_embeddings.weight": random(VOCABULARY, dim, scale=0.5),
        "bert.embeddings.position_embeddings.weight": random(length, dim),
        "bert.embeddings.token_type_embeddings.weight": random(2, dim),
        **normed("bert.embeddings.LayerNorm"),
        "bert.encoder.flashfft.f_16_fft": torch.ones(2, 16, 16, dtype=torch.bfloat16),
        "bert.encoder.flashfft.twiddle_factors_fft_16_16": torch.ones(2, 16, 16, dtype=torch.bfloat16),
    }
    time = torch.linspace(0, 1, length)[None, :, None]
    for layer in (f"bert.encoder.layer.{number}." for number in range(layers)):
        mixer, mlp = layer + "attention.", layer + "mlp."
        for name in ("filter_fn.", "filter_fn2."):
            place, frequency = mixer + name, torch.full((1, 128), 10.0)
            features = torch.cat([time, random(1, length, 4, scale=0.5)], dim=2)
            tensors |= {
                place + "bias": random(dim, scale=1.0),
                place + "pos_emb.z": features,
                place + "pos_emb.t": time,
            }
            tensors[place + "modulation.deltas"] = decay_rates(dim)[None, None]
            for direction in ("implicit_filter", "implicit_filter_rev"):
                for number, inputs in ((0, 5), (2, 128), (4, 128)):
                    tensors[f"{place}{direction}.{number}.weight"] = random(128, inputs)
                    tensors[f"{place}{direction}.{number}.bias"] = random(128)
                    tensors[f"{place}{direction}.{number + 1}.freq"] = frequency
                tensors[f"{place}{direction}.6.weight"] = random(dim, 128)
        for name, rows in (("in_linear", 3 * dim), ("out_linear", dim)):
            tensors |= {f"{mixer}{name}.weight": random(rows, dim), f"{mixer}{name}.bias": random(rows)}
        tensors |= {mixer + "short_filter.weight": random(3 * dim, 1, 3, scale=0.5)}
        tensors |= {mixer + "short_filter.bias": random(3 * dim)}
        tensors |= {mlp + "gated_layers.weight": random(4, 2 * inter // 4, dim // 4, scale=0.05)}
        tensors |= {mlp + "wo.weight": random(4, dim // 4, inter // 4, scale=0.05), mlp + "wo.bias": random(dim)}
        tensors |= normed(mlp + "layernorm")
    if head:
        tensors |= {"cls.predictions.transform.dense.weight": random(dim, dim)}
        tensors |= {
            "cls.predictions.transform.dense.bias": random(dim),
            "cls.predictions.decoder.bias": random(VOCABULARY),
        }
        tensors |= normed("cls.predictions.transform.LayerNorm")
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    else:
        tensors |= {"bert.pooler.dense.weight": random(dim, dim, scale=0.1), "bert.pooler.dense.bias": random(dim)}
    return tensors


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with vocab.txt alone, as bert-base-uncased has one."""
    place = tmp_path / "bert-base-uncased"
    place.mkdir()
    words = tiny_tokenizer().get_vocab()
    (place / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)), encoding="utf-8")
    return place


def small(**options: Any) -> dict[str, Tensor]:
    return released(48, dim=32, layers=2, inter=64, **options)


def test_the_released_model_of_32k_is_converted_whole(tmp_path: Path, tokenizer: Path) -> None:
    """441 MB of exactly the released names and shapes; every tensor comes out, and what is left out is named."""
    tensors = released(32768)
    distinct = {x.data_ptr(): x for name, x in tensors.items() if ".flashfft." not in name}
    assert sum(x.numel() for x in distinct.values() if x.dtype == torch.float32) > 109_219_584
    source = tmp_path / "m2-bert-80M-32k-retrieval"
    source.mkdir()
    torch.save(tensors, source / "pytorch_model.bin")
    config = {"model_type": "m2_bert", "max_position_embeddings": 32768, "pool_all": False, "long_conv_l_max": 32768}
    (source / "config.json").write_text(json.dumps(config))
    said = convert_checkpoint(str(source), str(tmp_path / "ours"), tokenizer=str(tokenizer))
    assert said == {
        "model": str(tmp_path / "ours"), "kind": "encoder", "pooling": "cls_dense", "pad_to_max_length": True,
        "positions": 32768, "parameters": 109_219_584,
        "dropped": {
            "tables that are computed": 49, "buffers of FlashFFTConv": 2, "copies of a filter's frequency": 120,
        },
    }  # fmt: skip
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as stored:
        assert sum(stored.get_tensor(name).numel() for name in stored.keys()) == 109_219_584  # noqa: SIM118
        row = stored.get_slice("embeddings.position_embeddings.weight")[32767]
        assert torch.equal(row, tensors["bert.embeddings.position_embeddings.weight"][32767])
        weight = stored.get_tensor("encoder.blocks.11.sequence_mixer.residual_long_conv.filter_rev.out.weight")
    assert torch.equal(weight, tensors["bert.encoder.layer.11.attention.filter_fn2.implicit_filter_rev.6.weight"])


def test_embeddings_are_those_of_the_definition(tmp_path: Path, tokenizer: Path) -> None:
    tensors = small()
    save_file({name: x.clone().contiguous() for name, x in tensors.items()}, tmp_path / "model.safetensors")
    convert_checkpoint(str(tmp_path), str(tmp_path / "ours"), tokenizer=str(tokenizer))
    embedder = Embedder(tmp_path / "ours")
    assert embedder.padding == "to 48 tokens"
    texts = ["river stone", "light " * 30, "copper window thread " * 40]
    found = embedder.encode(texts)
    model, words = load_whole(tmp_path / "ours", "test")
    exact = type(model)(model.config)
    exact.config.pad_to_max_length = False  # padded by hand below
    exact.load_state_dict(model.state_dict())
    for text, vector in zip(texts[:2], found, strict=False):
        ids = words(text, padding="max_length", max_length=48, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            first = exact.eval()(ids).last_hidden_state[0, 0]
        pooled = torch.tanh(tensors["bert.pooler.dense.weight"] @ first + tensors["bert.pooler.dense.bias"])
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(pooled, dim=0), atol=1e-5)
    assert abs(found[0] - found[1]).max() > 1e-3


def test_a_pretraining_file_becomes_a_masked_language_model(tmp_path: Path, tokenizer: Path) -> None:
    state = {f"model.{name}": x for name, x in small(head=True).items()}
    torch.save({"state": {"model": state}}, tmp_path / "m2-bert-2048.pt")
    command = ["convert", str(tmp_path / "m2-bert-2048.pt"), str(tmp_path / "ours"), "--tokenizer", str(tokenizer)]
    done = CliRunner().invoke(build_app(), command)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["kind"], said["pooling"], said["pad_to_max_length"]) == ("masked language model", "mean", False)
    assert said["dropped"]["tied weights of the head"] == 1
    model, _ = load_whole(tmp_path / "ours", "test")
    assert type(model).__name__ == "M2BertForMaskedLM"


def test_what_would_give_other_vectors_or_none_is_refused(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "checkpoint"
    source.mkdir()
    save_file({name: x.clone().contiguous() for name, x in small().items()}, source / "model.safetensors")

    def refused(message: str, **options: Any) -> None:
        given = {"source": str(source), "tokenizer": str(tokenizer), **options}
        with pytest.raises(M2BertError, match=message):
            convert_checkpoint(given.pop("source"), str(tmp_path / "ours"), **given)
        assert not (tmp_path / "ours").exists()

    (source / "config.json").write_text('{"pool_all": true}')
    refused("convert: a checkpoint must pool as the released ones do, by the first token, but .* sets pool_all")
    (source / "config.json").write_text("[")
    refused("config.json must be a JSON object")
    (source / "config.json").unlink()
    monkeypatch.setattr(conversion, "TOKENIZER", str(tmp_path / "nowhere"))
    refused("the tokenizer must be a folder with tokenizer.json or vocab.txt, .*nowhere.*--tokenizer", tokenizer="")
    (tokenizer / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(31_000))])
    )
    refused("the tokenizer must have at most the checkpoint's 30528 pieces, got 31005")
    refused("nothing.bin does not exist", file="nothing.bin")
    refused("nowhere does not exist", source=str(tmp_path / "nowhere"))


def test_a_checkpoint_of_the_hub_is_downloaded_and_no_more_than_it(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    source = tmp_path / "snapshot"
    source.mkdir()
    torch.save(small(), source / "pytorch_model_V1.bin")
    asked: list[Any] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns[0]))
        return str(source)

    names = ["config.json", "pytorch_model_V0.bin", "pytorch_model_V1.bin"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub, options = "hazyresearch/M2-BERT-32K-Retrieval-Encoder-V1@main", {"tokenizer": str(tokenizer)}
    with pytest.raises(
        M2BertError, match=r"has no file model.safetensors or .*, got config.json, .*name one by --file"
    ):
        convert_checkpoint(hub, str(tmp_path / "ours"), **options)
    said = convert_checkpoint(hub, str(tmp_path / "ours"), file="pytorch_model_V1.bin", **options)
    assert said["positions"] == 48
    assert asked[-1] == ("hazyresearch/M2-BERT-32K-Retrieval-Encoder-V1", "main", "pytorch_model_V1.bin")
