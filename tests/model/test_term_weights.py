"""Term weights against plain Python: counts, overlaps, what they leave alone, files, starts, training by themselves."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import story, tiny_model, tiny_tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode
from training_data import make_text

from m2bert.data.contrast import inverse_document_frequencies, labelled_sources
from m2bert.data.examples import special_ids
from m2bert.data.pairs import PairData
from m2bert.data.tokens import TokenStore
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import load_model, load_network, save_model, with_pooling
from m2bert.model.configuration import M2BertConfig
from m2bert.model.pooling import TermWeights
from m2bert.train.finetune import FinetuneConfig, finetune, start_term_weights

TEXT = [2, 9, 7, 9, 11, 9, 33, 7, 13, 57, 9, 3]  # 9 four times, 7 twice


def weight_by_hand(piece: int) -> float:
    """Some weight for every piece, a few of them negative."""
    return 0.25 + (piece * 37 % 11) / 4 - (1.5 if piece % 13 == 0 else 0.0)


def terms_by_hand(ids: Sequence[int], size: int) -> np.ndarray:
    vector = [0.0] * size
    for piece in ids:
        vector[piece] = weight_by_hand(piece) * math.log(1 + list(ids).count(piece)) / math.log(2)
    return np.asarray(vector)


def token_store(rows: list[np.ndarray], sources: list[int] | None = None) -> TokenStore:
    offsets = np.cumsum([0] + [len(row) for row in rows])
    numbers = np.asarray(sources or [0] * len(rows), dtype=np.int32)
    names = tuple(f"set{number}" for number in range(int(numbers.max()) + 1))
    return TokenStore(np.concatenate(rows).astype(np.uint16), offsets, numbers, names)


def set_weights(layer: Any) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight_by_hand(piece) for piece in range(len(layer.weight))]))


def layer_of(vocab_size: int) -> TermWeights:
    layer = TermWeights(M2BertConfig(vocab_size=vocab_size, term_weights=True))
    set_weights(layer)
    return layer


def term_model(pooling: str = "mean", **options: Any) -> Any:
    model = tiny_model(pooling=pooling, term_weights=True, **options)
    set_weights(model.term_weights)
    return model


@pytest.mark.parametrize("size", [70, 1000])
@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_count_pieces(size: int, side: str) -> None:
    layer = layer_of(size)
    texts = [TEXT, [5], [69] * 30]
    width = 40
    ids, mask = torch.full((3, width), 9), torch.zeros(3, width, dtype=torch.long)  # padded with an id in use
    for row, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, where], mask[row, where] = torch.tensor(text), 1
    with torch.no_grad():
        found = layer(ids, mask)
        whole = layer(torch.tensor([TEXT]))
    assert found.shape == (3, size) and found.dtype == torch.float32
    for row, text in enumerate(texts):
        np.testing.assert_allclose(found[row].numpy(), terms_by_hand(text, size), atol=1e-5)
        assert found[row].abs().max() > 0.2 and found[row].count_nonzero() == len(set(text))
    torch.testing.assert_close(whole[0], found[0], rtol=0, atol=1e-6)


def test_texts_overlap_by_the_pieces_they_share() -> None:
    other = [2, 7, 20, 9, 57, 9, 3]
    with torch.no_grad():
        found = layer_of(70)(torch.tensor([TEXT, other + [0] * 5]), torch.tensor([[1] * 12, [1] * 7 + [0] * 5]))
    times = {2: (1, 1), 3: (1, 1), 7: (2, 1), 9: (4, 2), 57: (1, 1)}
    expected = sum(weight_by_hand(piece) ** 2 * math.log2(1 + m) * math.log2(1 + n) for piece, (m, n) in times.items())
    assert float(found[0] @ found[1]) == pytest.approx(expected, rel=1e-5) and expected > 1


@pytest.mark.parametrize("options", [{"pooling": "mean"}, {"pooling": "weighted", "bilinear_features": 8}])
def test_dense_vectors_and_passages_do_not_hold_them(options: dict[str, Any]) -> None:
    model, plain = term_model(**options), tiny_model(**options)
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if not name.startswith("term_weights")})
    with torch.no_grad():
        expected = plain(torch.tensor([TEXT])).pooler_output
        assert torch.equal(model(torch.tensor([TEXT])).pooler_output, expected) and expected.norm() > 0.5
    texts = [story(200, seed=8), "river"]
    ours, theirs = (Embedder((each, tiny_tokenizer())).encode_documents(texts) for each in (model, plain))
    assert ours[0].num_windows > 3
    for document, same in zip(ours, theirs, strict=True):
        assert document.vector.shape == (model.config.embedding_size,) == (plain.config.embedding_size,)
        np.testing.assert_array_equal(document.vector, same.vector)
        passages = [[passage.vector for passage in each.passages] for each in (document, same)]
        np.testing.assert_array_equal(*passages)


def test_gradients_reach_the_weights_and_nothing_is_read_on_the_host() -> None:
    layer = layer_of(70)
    layer(torch.tensor([TEXT, [9] * 12])).sum().backward()
    assert layer.weight.grad is not None
    expected = [math.log2(1 + TEXT.count(piece)) + (math.log2(13) if piece == 9 else 0.0) for piece in range(70)]
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, atol=1e-5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = TermWeights(M2BertConfig(vocab_size=70, term_weights=True))
        ids = torch.zeros(2, 5, dtype=torch.long)
        assert fake(ids, ids == 0).shape == (2, 70)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_are_float32_under_autocast_and_of_half_weights(dtype: torch.dtype) -> None:
    layer = layer_of(70).to(dtype)  # the weights by hand are quarters: bfloat16 has them
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(torch.tensor([TEXT]))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), terms_by_hand(TEXT, 70), atol=1e-5)


def test_files_keep_them_and_a_model_can_be_given_them(tmp_path: Path) -> None:
    model = term_model()
    rows = len(model.term_weights.weight)
    save_model(model, tiny_tokenizer(), tmp_path, dtype=torch.float32)
    ids = torch.tensor([TEXT])
    for again in (load_model(tmp_path)[0], load_network(tmp_path)[0]):
        assert again.config.term_weights is True and again.term_weights is not None
        with torch.no_grad():
            found = again.term_weights(ids)[0].numpy()
        np.testing.assert_array_equal(again.term_weights.weight.detach(), [weight_by_hand(i) for i in range(rows)])
        np.testing.assert_allclose(found, terms_by_hand(TEXT, rows), atol=1e-5)

    plain = tiny_model(pooling="weighted", bilinear_features=8)
    kept = plain.bilinear_features, plain.token_weights
    with torch.no_grad():
        before = plain(ids).pooler_output
        assert with_pooling(plain, term_weights=True) is plain
        assert torch.equal(plain(ids).pooler_output, before)
    assert (plain.bilinear_features, plain.token_weights) == kept and not plain.term_weights.training
    assert plain.config.term_weights is True and plain.term_weights.weight.eq(1).all()
    assert len(plain.term_weights.weight) == rows
    fresh = plain.term_weights
    assert with_pooling(plain, "mean", 4, 0, True).term_weights is fresh
    assert with_pooling(plain).term_weights is fresh
    for value in (1, "yes"):
        with pytest.raises(M2BertError, match="term_weights must be true or false, got"):
            M2BertConfig(term_weights=value)


@pytest.mark.parametrize("pooling", ["cls", "cls_dense"])
def test_every_pooling_may_have_them(pooling: str) -> None:
    model = term_model(pooling)
    with torch.no_grad():
        found = model.term_weights(torch.tensor([TEXT]))[0].numpy()
    np.testing.assert_allclose(found, terms_by_hand(TEXT, model.config.vocab_size), atol=1e-5)


@pytest.mark.parametrize("load", [load_model, load_network])
def test_models_with_hashed_features_are_refused(load: Any, tmp_path: Path) -> None:
    save_model(tiny_model(), tiny_tokenizer(), tmp_path, dtype=torch.float32)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "lexical_features": 24, "lexical_share": 0.75}))
    with pytest.raises(M2BertError, match=r"with hashed lexical features, which .*; use the version that made it, or"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "lexical_features": 0, "lexical_share": 0.75}))
    model, _ = load(tmp_path)
    with torch.no_grad():
        vector = Embedder((model, tiny_tokenizer())).encode(["river"])
    np.testing.assert_array_equal(vector, Embedder((tiny_model(), tiny_tokenizer())).encode(["river"]))


def test_frequencies_count_each_data_set_the_same() -> None:
    """Piece 5 is in every document of the small data set, piece 6 in half of those of the large one."""
    small = [np.array([5, 5, 7]), np.array([5, 7])]
    large = [np.array([6, 8] if i % 2 else [8]).repeat(i + 1) for i in range(10)]  # no two are equal
    documents = token_store(small + large, sources=[0] * 2 + [1] * 10)
    pairs = np.asarray([(i, i) for i in range(12)])
    queries = token_store([np.array([9, i]) for i in range(12)])
    found = inverse_document_frequencies(labelled_sources(PairData(queries, documents, pairs)), 10)
    expected = [-math.log(share + 1e-4) for share in (0, 0, 0, 0, 0, 0.5, 0.25, 0.5, 0.5, 0)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    (only,) = labelled_sources(PairData(queries, token_store(small * 6), pairs))
    assert inverse_document_frequencies([only], 10)[5] == 0


def settings(world: Path, folder: Path, **overrides: Any) -> FinetuneConfig:
    values = {
        "init": str(world / "model"), "pairs": [str(world / "pairs.jsonl.gz")], "output": str(folder),
        "learning_rate": 0.03, "max_steps": 12, "save_seconds": 0.0, "bf16": False, "bf16_weights": False,
        "batch_size": 4, "batch_tokens": 640, "lengths": {64: 1.0}, "max_query_tokens": 16,
        "lr_scheduler_type": "constant", "term_weights": True, "only_term_weights": True, "scale": 40.0,
        "weight_decay": 0.0, **overrides,
    }  # fmt: skip
    return FinetuneConfig(**values)


def rows_of(world: Path) -> list[dict[str, Any]]:
    with gzip.open(world / "pairs.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def ids_of(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def frequencies_by_hand(world: Path, size: int) -> np.ndarray:
    documents = [set(ids_of(row["positive"])) for row in rows_of(world)]
    shares = [sum(piece in document for document in documents) / len(documents) for piece in range(size)]
    return np.asarray([0.0 if piece < 5 else max(0.0, -math.log(shares[piece] + 1e-4)) for piece in range(size)])


def test_only_they_are_trained(world: Path, tmp_path: Path) -> None:
    finetune(settings(world, tmp_path / "start", learning_rate=1e-9, max_steps=1))
    finetune(settings(world, tmp_path / "trained"))
    origin, _ = load_model(world / "model")
    start, trained = (load_model(tmp_path / name / "model")[0] for name in ("start", "trained"))
    for name, x in origin.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], x, rtol=0, atol=0)
    weight = start.term_weights.weight
    expected = frequencies_by_hand(world, len(weight))
    np.testing.assert_allclose(weight.detach().numpy(), expected, atol=1e-5)
    common = max(set(ids_of(make_text(0, 30, 1))), key=ids_of(make_text(0, 30, 1)).count)
    assert expected[common] < 3 and expected[ids_of("harbor")[0]] == pytest.approx(-math.log(1e-4))
    assert (trained.term_weights.weight - weight).abs().max() > 0.05

    # Trained, they rank what they were trained on better: MNRL over all pairs, computed here.
    def loss_of(model: Any) -> float:
        weights, sides = model.term_weights.weight.detach().double().numpy(), []
        for name in ("query", "positive"):
            counts = [np.bincount([2, *ids_of(row[name]), 3], minlength=len(weights)) for row in rows_of(world)]
            found = np.log2(1 + np.stack(counts)) * weights
            sides.append(found / np.linalg.norm(found, axis=1, keepdims=True))
        scores = 40 * sides[0] @ sides[1].T
        return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diag(scores)))

    assert loss_of(trained) < loss_of(start) - 0.05


def test_a_run_goes_on_with_those_there_are(world: Path, tmp_path: Path) -> None:
    save_model(term_model(max_tokens=128), tiny_tokenizer(128), tmp_path / "init", dtype=torch.float32)
    still = {"init": str(tmp_path / "init"), "learning_rate": 1e-9, "max_steps": 1}
    for asked in (True, False):
        finetune(settings(world, tmp_path / str(asked), term_weights=asked, **still))
        weight = load_model(tmp_path / str(asked) / "model")[0].term_weights.weight.detach().numpy()
        np.testing.assert_allclose(weight, [weight_by_hand(piece) for piece in range(len(weight))], atol=1e-6)


def test_training_a_whole_model_leaves_fresh_ones_at_their_start(world: Path, tmp_path: Path) -> None:
    """Dense vectors do not depend on them, and nothing decays what the loss does not reach."""
    finetune(settings(world, tmp_path, only_term_weights=False, max_steps=2, learning_rate=1e-2, weight_decay=0.5))
    trained, origin = (load_model(folder / "model")[0] for folder in (tmp_path, world))
    weight = trained.term_weights.weight.detach().numpy()
    np.testing.assert_allclose(weight, frequencies_by_hand(world, len(weight)), atol=1e-5)
    moved = trained.embeddings.word_embeddings.weight - origin.embeddings.word_embeddings.weight
    assert moved.abs().max() > 1e-3


def test_starts_count_documents_and_without_any_nothing_changes() -> None:
    model, ids = term_model(), special_ids(tiny_tokenizer())
    start_term_weights(model, [], ids)
    np.testing.assert_allclose(model.term_weights.weight[9].item(), weight_by_hand(9))
    documents = token_store([np.array([2, 9, 9, 3]), np.array([2, 7, 3])])
    pairs = PairData(documents, documents, np.asarray([(0, 0), (1, 1)]))
    start_term_weights(model, labelled_sources(pairs), ids)
    rest = [-math.log(0.5 + 1e-4) if piece in (7, 9) else -math.log(1e-4) for piece in range(5, 20)]
    np.testing.assert_allclose(model.term_weights.weight[:20].detach(), [0.0] * 5 + rest, atol=1e-5)


def test_an_interrupted_run_ends_with_the_same_weights(world: Path, tmp_path: Path) -> None:
    finetune(settings(world, tmp_path / "whole", max_steps=6))
    finetune(settings(world, tmp_path / "parts", max_steps=6, save_steps=3))
    for newest in (tmp_path / "parts").glob("checkpoint-6"):
        (newest / "trainer_state.json").unlink()  # as if killed while it was written
    finetune(settings(world, tmp_path / "parts", max_steps=6, save_steps=3))
    whole, parts = (load_model(tmp_path / name / "model")[0].term_weights.weight for name in ("whole", "parts"))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)


def test_settings_that_cannot_be_meant_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(M2BertError, match="only_term_weights needs a model with term weights, got none; pass --set"):
        finetune(settings(world, tmp_path, term_weights=False))
    long: dict[str, Any] = {"lengths": {4096: 1.0}, "batch_tokens": 16384, "max_steps": 1}
    with pytest.raises(M2BertError, match="lengths must be within the model's 128 positions, got 4096 for documents"):
        finetune(settings(world, tmp_path, only_term_weights=False, **long))
    assert finetune(settings(world, tmp_path / "long", **long))["step"] == 1  # no encoder, no positions
    with pytest.raises(M2BertError, match=r"scale must be left alone with loss opl, which has none, got 40\.0"):
        settings(world, tmp_path, loss="opl").check()
    with pytest.raises(M2BertError, match="only_term_weights runs no blocks to checkpoint; set gradient_checkpointing"):
        settings(world, tmp_path, gradient_checkpointing=True).check()
    with pytest.raises(M2BertError, match=r"scale must be above 0, got 0\.0; raise it"):
        settings(world, tmp_path, scale=0.0).check()
