"""Projections against numpy's matrix product: vectors, passages, files, fresh ones, training, first numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import story, tiny_model, tiny_model_folder, tiny_tokenizer
from training_data import write_pairs

from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import load_model, load_network, save_model, with_pooling
from m2bert.model.configuration import M2BertConfig
from m2bert.model.modeling import M2BertForSequenceClassification
from m2bert.train.finetune import FinetuneConfig, finetune

DIM, LENGTH = 16, 10
IDS = [2, 9, 7, 11, 5, 9, 3]
TEXTS = [story(length, seed=length) for length in (3, 1200, 40)]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def matrix(model: Any) -> np.ndarray:
    weight: np.ndarray = model.projection.weight.detach().double().numpy()
    return weight


def without(model: Any) -> Any:
    """The same encoder without its projection."""
    plain = tiny_model(pooling=model.config.pooling, bilinear_features=model.config.bilinear_features)
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if not name.startswith("projection")})
    return plain


def embedder(model: Any, **options: Any) -> Embedder:
    return Embedder((model, tiny_tokenizer()), **options)


@pytest.mark.parametrize("fields", [{}, {"bilinear_features": 24}, {"pooling": "weighted", "bilinear_features": 3}])
@pytest.mark.parametrize("length", [1, LENGTH, 50])
def test_vectors_are_the_matrix_times_what_is_pooled(fields: dict[str, Any], length: int) -> None:
    model = tiny_model(projection_dim=length, **fields)
    ids = torch.tensor([[4, 4, *IDS], [*IDS[::-1], 4, 4], [6] * 9])
    mask = torch.tensor([[0, 0] + [1] * 7, [1] * 7 + [0, 0], [1] * 9])
    with torch.no_grad():
        found, pooled = (each(ids, attention_mask=mask).pooler_output for each in (model, without(model)))
    assert pooled.shape == (3, model.config.pooled_size) == (3, DIM + fields.get("bilinear_features", 0))
    assert found.shape == (3, length) == (3, model.config.embedding_size)
    np.testing.assert_allclose(found.numpy(), pooled.double().numpy() @ matrix(model).T, atol=1e-5)
    assert found.abs().max() > 0.1


@pytest.mark.parametrize("batch_tokens", [64, 8192])
@pytest.mark.parametrize("fields", [{}, {"pooling": "weighted", "bilinear_features": 24}])
def test_passages_add_up_over_several_windows(fields: dict[str, Any], batch_tokens: int) -> None:
    model = tiny_model(projection_dim=LENGTH, **fields)
    documents = embedder(model, batch_tokens=batch_tokens).encode_documents(TEXTS)
    plain = embedder(without(model)).encode_documents(TEXTS)
    assert documents[1].num_windows > 3 and len(documents[1].passages) > 3
    for document, same in zip(documents, plain, strict=True):
        projected = matrix(model) @ same.vector
        np.testing.assert_allclose(document.vector, unit(projected), atol=1e-5)
        shares = np.stack([passage.vector for passage in document.passages])
        expected = np.stack([matrix(model) @ passage.vector for passage in same.passages]) / np.linalg.norm(projected)
        np.testing.assert_allclose(shares, expected, atol=1e-5)
        np.testing.assert_allclose(shares.sum(axis=0), document.vector, atol=1e-5)
        assert np.linalg.norm(document.vector) == pytest.approx(1, abs=1e-6)


def test_models_of_half_precision_are_projected() -> None:
    model = tiny_model(bilinear_features=8, projection_dim=LENGTH)
    expected = embedder(model).encode(TEXTS)
    found = embedder(model.to(torch.bfloat16)).encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_files_keep_it(tmp_path: Path) -> None:
    model = tiny_model(bilinear_features=8, projection_dim=LENGTH)
    save_model(model, tiny_tokenizer(), tmp_path, dtype=torch.float32)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        expected = model(ids).pooler_output
        again, network = load_model(tmp_path)[0], load_network(tmp_path)[0]
        found = again(ids).pooler_output, network(ids)[1]
    assert again.config.projection_dim == network.config.projection_dim == LENGTH and expected.abs().max() > 0.1
    assert torch.equal(again.projection.weight, model.projection.weight)
    for vectors in found:
        torch.testing.assert_close(vectors, expected, rtol=0, atol=0)
    np.testing.assert_array_equal(Embedder(tmp_path).encode(TEXTS), embedder(model).encode(TEXTS))


def test_a_model_can_be_given_one_and_other_features_make_it_anew() -> None:
    model = tiny_model(pooling="weighted")
    kept = model.token_weights
    with torch.no_grad():
        pooled = model(torch.tensor([IDS])).pooler_output[0].double().numpy()
        assert with_pooling(model, projection_dim=40) is model
        found = model(torch.tensor([IDS])).pooler_output[0].numpy()
    assert model.token_weights is kept and not model.projection.training and model.config.embedding_size == 40
    assert model.projection.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.15)
    np.testing.assert_allclose(found, matrix(model) @ pooled, atol=1e-5)

    first = model.projection
    assert with_pooling(model, "mean", projection_dim=40).projection is first
    assert with_pooling(model, bilinear_features=8).projection is not first
    assert model.projection.weight.shape == (40, DIM + 8) and matrix(model).std() > 0.2
    features, second = model.bilinear_features, model.projection
    assert with_pooling(model, projection_dim=5).projection is not second
    assert model.projection.weight.shape == (5, DIM + 8) and model.bilinear_features is features
    with torch.no_grad():
        assert model(torch.tensor([IDS])).pooler_output.shape == (1, 5)


def test_gradients_reach_it_and_the_encoder() -> None:
    model = tiny_model(bilinear_features=8, projection_dim=LENGTH)
    ids = torch.tensor([IDS, IDS[::-1]])
    with torch.no_grad():
        pooled = without(model)(ids).pooler_output.numpy()
    model(ids).pooler_output[:, 3].sum().backward()
    expected = np.zeros((LENGTH, DIM + 8))
    expected[3] = pooled.sum(axis=0)
    np.testing.assert_allclose(model.projection.weight.grad, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1 and model.embeddings.word_embeddings.weight.grad.abs().max() > 0


def test_a_classifier_takes_what_is_projected() -> None:
    config = tiny_model(bilinear_features=8, projection_dim=LENGTH).config
    config.num_labels = 3
    model = M2BertForSequenceClassification(config).eval()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logits, pooled = model(ids).logits[0].numpy(), without(model.m2bert)(ids).pooler_output[0].double().numpy()
    weight, bias = (x.detach().double().numpy() for x in (model.classifier.weight, model.classifier.bias))
    assert weight.shape == (3, LENGTH)
    np.testing.assert_allclose(logits, weight @ (matrix(model.m2bert) @ pooled) + bias, atol=1e-5)
    assert np.abs(logits).max() > 0.01


def test_what_cannot_be_meant_is_refused() -> None:
    for pooling in ("cls", "cls_dense"):
        told = f"projection_dim needs pooling mean or weighted, got '{pooling}'; set it to 0"
        with pytest.raises(M2BertError, match=told):
            M2BertConfig(pooling=pooling, projection_dim=4)
        model = tiny_model(projection_dim=4)
        with pytest.raises(M2BertError, match=told):
            with_pooling(model, pooling)
        with torch.no_grad():
            assert model.config.pooling == "mean" and model(torch.tensor([IDS])).pooler_output.shape == (1, 4)
    for value in (1.5, True, -1):
        told = f"projection_dim must be a whole number of at least 0, got {value}"
        with pytest.raises(M2BertError, match=told):
            M2BertConfig(projection_dim=value)
        with pytest.raises(M2BertError, match=told):
            with_pooling(tiny_model(), projection_dim=value)  # type: ignore[arg-type]


def test_finetuning_learns_it(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    tiny_model_folder(tmp_path / "start", max_tokens=128)
    values: dict[str, Any] = {
        "init": str(tmp_path / "start"), "pairs": [str(tmp_path / "pairs.jsonl.gz")], "learning_rate": 3e-3,
        "save_seconds": 0.0, "bf16": False, "batch_size": 4, "batch_tokens": 640, "lengths": {64: 1.0},
        "max_query_tokens": 16, "bilinear_features": 8, "projection_dim": LENGTH, "bf16_weights": False,
    }  # fmt: skip
    for steps in (1, 4):
        finetune(FinetuneConfig(**values, output=str(tmp_path / str(steps)), max_steps=steps))
    first, last = (load_model(tmp_path / str(steps) / "model")[0] for steps in (1, 4))
    assert last.config.embedding_size == LENGTH and last.projection.weight.shape == (LENGTH, DIM + 8)
    moved = (last.projection.weight - first.projection.weight).abs()
    assert 1e-4 < moved.max() < 0.1 and moved.ne(0).float().mean() > 0.9


@pytest.mark.parametrize("fields", [{"projection_dim": LENGTH, "bilinear_features": 24}, {"pooling": "weighted"}])
@pytest.mark.parametrize("kept", [1, 4])
def test_the_first_numbers_are_an_embedding_too(fields: dict[str, Any], kept: int) -> None:
    model = tiny_model(**fields)
    short, whole = embedder(model, truncate_dim=kept), embedder(model)
    assert (short.dim, short.full_dim, whole.dim) == (kept, whole.dim, model.config.embedding_size)
    vectors, full = short.encode(TEXTS), whole.encode_documents(TEXTS)
    assert vectors.shape == (3, kept) and full[1].num_windows > 3
    for vector, document, same in zip(vectors, short.encode_documents(TEXTS), full, strict=True):
        np.testing.assert_allclose(vector, unit(same.vector[:kept]), atol=1e-5)
        np.testing.assert_allclose(document.vector, vector, atol=1e-6)
        shares = np.stack([passage.vector for passage in document.passages])
        expected = np.stack([passage.vector[:kept] for passage in same.passages])
        np.testing.assert_allclose(shares, expected / np.linalg.norm(same.vector[:kept]), atol=1e-4)
        np.testing.assert_allclose(shares.sum(axis=0), vector, atol=1e-5)


def test_poolings_without_passages_are_cut_as_well() -> None:
    model = tiny_model(pooling="cls_dense")
    full = embedder(model).encode(TEXTS)
    vectors = embedder(model, truncate_dim=5).encode(TEXTS)
    np.testing.assert_allclose(vectors, full[:, :5] / np.linalg.norm(full[:, :5], axis=1, keepdims=True), atol=1e-5)


def test_fingerprints_tell_how_many_numbers_are_kept() -> None:
    model = tiny_model(projection_dim=LENGTH)
    prints = [embedder(model, truncate_dim=kept).fingerprint for kept in (None, LENGTH, 4, 4, 5)]
    assert prints[0] == prints[1] and prints[2] == prints[3] and len(set(prints)) == 3
    assert all(len(digits) == 16 and int(digits, 16) > 0 for digits in prints)
    with torch.no_grad():
        model.projection.weight[-1, -1] += 1
    changed = [embedder(model, truncate_dim=kept).fingerprint for kept in (None, 4)]
    assert set(changed).isdisjoint(prints) and changed[0] != changed[1]


def test_numbers_that_there_are_not_cannot_be_kept() -> None:
    model = tiny_model(projection_dim=LENGTH)
    with pytest.raises(M2BertError, match=r"truncate_dim must be at most 10, the length of an embedding of .*, got 11"):
        embedder(model, truncate_dim=LENGTH + 1)
    for value in (0, -1, 1.5, True):
        with pytest.raises(M2BertError, match=f"truncate_dim must be a whole number of at least 1, got {value}"):
            embedder(model, truncate_dim=value)
