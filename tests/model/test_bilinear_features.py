"""Bilinear features against plain numpy: vectors, their length, passages, padding, files, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import story, tiny_embedder, tiny_model, tiny_model_folder, tiny_tokenizer
from training_data import write_pairs

from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import load_model, save_model, with_pooling
from m2bert.model.configuration import M2BertConfig
from m2bert.model.modeling import M2BertModel
from m2bert.train.finetune import FinetuneConfig, finetune

DIM, FEATURES = 16, 24
IDS = [2, 9, 7, 11, 5, 8, 3]


def wide_model(**options: Any) -> Any:
    return tiny_model(bilinear_features=FEATURES, **options)


def model_of(hidden_size: int, bilinear_features: int) -> M2BertModel:
    torch.manual_seed(0)
    return M2BertModel(
        M2BertConfig(
            vocab_size=8,
            hidden_size=hidden_size,
            num_hidden_layers=1,
            intermediate_size=64,
            max_position_embeddings=8,
            filter_order=8,
            bilinear_features=bilinear_features,
        )
    )


def features_by_hand(model: Any, states: np.ndarray) -> np.ndarray:
    left, right = (x.detach().double().numpy() for x in (model.bilinear_features.left, model.bilinear_features.right))
    return np.concatenate([states, (states @ left.T) * (states @ right.T)], axis=1)


@pytest.mark.parametrize("pooling", ["mean", "weighted"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_are_means_of_states_and_products(pooling: str, side: str) -> None:
    model = wide_model(pooling=pooling)
    padding = [4, 4, 4]
    ids = torch.tensor([padding + IDS if side == "left" else IDS + padding, [6] * 10])
    mask = torch.ones_like(ids)
    mask[0, slice(0, 3) if side == "left" else slice(7, 10)] = 0
    with torch.no_grad():
        out = model(ids, attention_mask=mask)
    states = out.last_hidden_state[0][mask[0].bool()].double().numpy()
    expected = features_by_hand(model, states).mean(axis=0)  # all ids differ, and fresh weights are 1
    assert out.pooler_output.shape == (2, DIM + FEATURES) and out.last_hidden_state.shape == (2, 10, DIM)
    np.testing.assert_allclose(out.pooler_output[0].numpy(), expected, atol=1e-5)
    assert np.abs(expected[DIM:]).max() > 1e-2


def test_products_start_with_the_norm_of_a_state() -> None:
    model = model_of(128, 96)
    states = torch.nn.functional.layer_norm(torch.randn(200, 128), (128,))
    with torch.no_grad():
        products = model.features(states)[:, 128:]
    assert products.shape == (200, 96)
    assert 0.9 < (products.norm(dim=1).mean() / states.norm(dim=1).mean()).item() < 1.1


def test_strangers_overlap_less_in_products() -> None:
    model = model_of(64, 4096)
    states = torch.nn.functional.layer_norm(torch.randn(300, 64), (64,))
    with torch.no_grad():
        products = torch.nn.functional.normalize(model.features(states)[:, 64:], dim=1)
    states = torch.nn.functional.normalize(states, dim=1)
    others = ~torch.eye(300, dtype=torch.bool)
    plain, squared = ((x @ x.T)[others].square().mean().sqrt().item() for x in (states, products))
    assert plain == pytest.approx(64**-0.5, rel=0.05)
    assert squared < 0.4 * plain  # about 1 / 64 from the square of the overlap and 1 / sqrt(4096) from the draw


def test_passages_add_up_over_several_windows() -> None:
    embedder = Embedder((wide_model(pooling="weighted"), tiny_tokenizer()))
    assert embedder.dim == DIM + FEATURES
    texts = [story(length, seed=length) for length in (3, 300, 40)]
    queries = embedder.encode(["copper harbor", "x"])
    assert queries.shape == (2, DIM + FEATURES)
    for text, document in zip(texts, embedder.encode_documents(texts), strict=True):
        shares = np.stack([passage.vector for passage in document.passages]) @ queries.T
        np.testing.assert_allclose(shares.sum(axis=0), queries @ document.vector, atol=1e-5)
        np.testing.assert_allclose(document.vector, embedder.encode([text])[0], atol=1e-5)
        assert np.linalg.norm(document.vector[DIM:]) > 0.1


def test_encode_agrees_with_the_model() -> None:
    model = wide_model()
    ids = tiny_tokenizer()("copper harbor", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        pooled = model(torch.tensor([[2, *ids, 3]])).pooler_output[0]
    vector = Embedder((model, tiny_tokenizer())).encode(["copper harbor"])[0]
    np.testing.assert_allclose(vector, (pooled / pooled.norm()).numpy(), atol=1e-6)
    with torch.no_grad():
        assert model(torch.tensor([IDS])).pooler_output is not None  # encoding leaves the model as it was


def test_files_keep_them_and_a_model_can_be_given_them(tmp_path: Path) -> None:
    model = wide_model()
    save_model(model, tiny_tokenizer(), tmp_path, dtype=torch.float32)
    again, _ = load_model(tmp_path)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).pooler_output, model(ids).pooler_output, rtol=0, atol=0)

    narrow = tiny_model(pooling="weighted")
    with torch.no_grad():
        narrow.token_weights.weight.fill_(0.25)
        before = narrow(ids).pooler_output
        with_pooling(narrow, bilinear_features=FEATURES)
        torch.testing.assert_close(narrow(ids).pooler_output[:, :DIM], before, rtol=0, atol=1e-6)
    assert narrow.config.embedding_size == DIM + FEATURES and not narrow.bilinear_features.training
    kept = narrow.bilinear_features
    assert with_pooling(narrow, "mean").bilinear_features is kept
    with pytest.raises(M2BertError, match="bilinear_features needs pooling mean or weighted, got 'cls'; set it to 0"):
        with_pooling(narrow, "cls")
    with pytest.raises(M2BertError, match="bilinear_features must be a whole number of at least 0, got -1"):
        with_pooling(narrow, bilinear_features=-1)


def test_finetuning_learns_them(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    tiny_model_folder(tmp_path / "start", max_tokens=128)
    values: dict[str, Any] = {
        "init": str(tmp_path / "start"), "pairs": [str(tmp_path / "pairs.jsonl.gz")], "learning_rate": 3e-3,
        "save_seconds": 0.0, "bf16": False, "batch_size": 4, "batch_tokens": 640, "lengths": {64: 1.0},
        "max_query_tokens": 16, "pooling": "weighted", "bilinear_features": FEATURES, "bf16_weights": False,
    }  # fmt: skip
    for steps in (1, 4):
        finetune(FinetuneConfig(**values, output=str(tmp_path / str(steps)), max_steps=steps))
    first, last = (load_model(tmp_path / str(steps) / "model")[0] for steps in (1, 4))
    assert last.config.embedding_size == DIM + FEATURES
    moved = (last.bilinear_features.left - first.bilinear_features.left).abs()
    assert 1e-4 < moved.max() < 0.1 and moved.ne(0).float().mean() > 0.9
    assert tiny_embedder().dim == DIM
