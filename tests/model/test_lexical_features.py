"""Lexical features against plain Python: counts, hashing, shares of a score, windows, passages, files, training."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import story, tiny_model, tiny_tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode
from training_data import make_text

from m2bert.data.contrast import inverse_document_frequencies, labelled_sources
from m2bert.data.pairs import PairData
from m2bert.data.tokens import TokenStore
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import load_model, save_model, with_pooling
from m2bert.model.configuration import M2BertConfig
from m2bert.model.pooling import LexicalFeatures
from m2bert.train.finetune import FinetuneConfig, finetune

DIM, SIZE, SHARE = 16, 24, 0.6
TEXT = [2, 9, 7, 9, 11, 9, 33, 7, 13, 57, 9, 3]  # 9, 33 and 57 meet in one number; 9 four times, 7 twice
ROOM = 62  # tokens of text in the tiny model's windows of 64


def weight_by_hand(piece: int) -> float:
    """Some weight for every piece, a few of them negative."""
    return 0.25 + (piece * 37 % 11) / 4 - (1.5 if piece % 13 == 0 else 0.0)


def sign_by_hand(piece: int) -> int:
    return 1 if piece * 2654435761 % 2**32 >= 2**31 else -1


def lexical_by_hand(ids: list[int], size: int = SIZE) -> np.ndarray:
    vector = [0.0] * size
    for piece in sorted(set(ids)):
        value = weight_by_hand(piece) * math.log(1 + ids.count(piece)) / math.log(2)
        vector[piece % size] += sign_by_hand(piece) * value
    return np.asarray(vector)


def token_store(rows: list[np.ndarray], sources: list[int] | None = None) -> TokenStore:
    offsets = np.cumsum([0] + [len(row) for row in rows])
    numbers = np.asarray(sources or [0] * len(rows), dtype=np.int32)
    names = tuple(f"set{number}" for number in range(int(numbers.max()) + 1))
    return TokenStore(np.concatenate(rows).astype(np.uint16), offsets, numbers, names)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def joined_by_hand(dense: np.ndarray, lexical: np.ndarray) -> np.ndarray:
    return np.concatenate([math.sqrt(1 - SHARE) * unit(dense), math.sqrt(SHARE) * unit(lexical)])


def set_weights(layer: Any) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight_by_hand(piece) for piece in range(len(layer.weight))]))


def lexical_model(pooling: str = "mean", **options: Any) -> Any:
    model = tiny_model(pooling=pooling, lexical_features=SIZE, lexical_share=SHARE, **options)
    set_weights(model.lexical_features)
    return model


def without(model: Any) -> Any:
    """The same encoder without lexical features."""
    plain = tiny_model(pooling=model.config.pooling, bilinear_features=model.config.bilinear_features)
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if not name.startswith("lexical")})
    return plain


@pytest.mark.parametrize("size", [1, 24, 70, 1000])
@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_count_pieces(size: int, side: str) -> None:
    config = M2BertConfig(vocab_size=70, lexical_features=size)
    layer = LexicalFeatures(config)
    set_weights(layer)
    texts = [TEXT, [5], [69] * 30]
    width = 40
    ids, mask = torch.full((3, width), 9), torch.zeros(3, width, dtype=torch.long)  # padded with an id in use
    for row, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, where], mask[row, where] = torch.tensor(text), 1
    with torch.no_grad():
        found = layer(ids, mask)
        whole = layer(torch.tensor([TEXT]))
    for row, text in enumerate(texts):
        np.testing.assert_allclose(found[row].numpy(), lexical_by_hand(text, size), atol=1e-5)
        assert found[row].abs().max() > 0.2
    torch.testing.assert_close(whole[0], found[0], rtol=0, atol=1e-6)


def test_signs_centre_what_meets_by_chance() -> None:
    layer = LexicalFeatures(M2BertConfig(vocab_size=16384, lexical_features=1024))
    torch.nn.init.ones_(layer.weight)
    pieces = torch.randperm(16384, generator=torch.Generator().manual_seed(0))[:4096].view(128, 32)
    with torch.no_grad():
        overlaps = torch.nn.functional.normalize(layer(pieces), dim=1)
        overlaps = overlaps @ overlaps.T
    others = overlaps[~torch.eye(128, dtype=torch.bool)]
    # No two of these texts share a piece: what is left is chance, 1 / sqrt(1024) of either sign.
    assert others.mean().abs() < 0.005 and 0.7 < others.std() * 1024**0.5 < 1.3


@pytest.mark.parametrize("options", [{"pooling": "mean"}, {"pooling": "weighted", "bilinear_features": 8}])
def test_a_cosine_is_the_shares_of_both_parts(options: dict[str, Any]) -> None:
    model = lexical_model(**options)
    texts = [TEXT, [2, 20, 9, 3]]
    with torch.no_grad():
        pooled = [model(torch.tensor([ids])).pooler_output[0].double().numpy() for ids in texts]
        dense = [without(model)(torch.tensor([ids])).pooler_output[0].double().numpy() for ids in texts]
    for vector, part, ids in zip(pooled, dense, texts, strict=True):
        assert vector.shape == (model.config.embedding_size,) == (len(part) + SIZE,)
        np.testing.assert_allclose(vector, joined_by_hand(part, lexical_by_hand(ids)), atol=1e-6)
    words = unit(lexical_by_hand(texts[0])) @ unit(lexical_by_hand(texts[1]))
    expected = (1 - SHARE) * (unit(dense[0]) @ unit(dense[1])) + SHARE * words
    assert pooled[0] @ pooled[1] == pytest.approx(expected, abs=1e-6)
    assert abs(words) > 0.1 and abs(expected - words) > 0.01


def test_repetitions_are_counted_over_all_windows() -> None:
    model, tokenizer = lexical_model("weighted"), tiny_tokenizer()
    text = story(200, seed=8)
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    count = -(-len(ids) // ROOM)
    assert count > 3
    dense = Embedder((without(model), tokenizer)).encode([text])[0]
    expected = joined_by_hand(dense, lexical_by_hand(ids + [2, 3] * count))
    vector = Embedder((model, tokenizer)).encode([text, "river"])[0]
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    bounds = [number * len(ids) // count for number in range(count + 1)]
    apart = sum(lexical_by_hand([2, *ids[first:last], 3]) for first, last in itertools.pairwise(bounds))
    assert np.abs(vector - joined_by_hand(dense, apart)).max() > 1e-3


@pytest.mark.parametrize("batch_tokens", [64, 100_000])
def test_passages_add_up_and_batches_do_not_matter(batch_tokens: int) -> None:
    embedder = Embedder((lexical_model("weighted"), tiny_tokenizer()), batch_tokens=batch_tokens)
    texts = [story(length, seed=length) for length in (3, 300, 40, 700)]
    alone = np.stack([Embedder((lexical_model("weighted"), tiny_tokenizer())).encode([text])[0] for text in texts])
    queries = embedder.encode(["copper harbor", "x"])
    documents = embedder.encode_documents(texts)
    for document, vector in zip(documents, alone, strict=True):
        np.testing.assert_allclose(document.vector, vector, atol=1e-5)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        shares = np.stack([passage.vector for passage in document.passages]) @ queries.T
        np.testing.assert_allclose(shares.sum(axis=0), queries @ vector, atol=1e-5)
    assert len(documents[-1].passages) > 5


def test_a_passage_has_what_its_own_pieces_add() -> None:
    model = lexical_model("weighted", max_tokens=2048)
    text, tokenizer = story(500, seed=4), tiny_tokenizer(2048)
    (document,) = Embedder((model, tokenizer)).encode_documents([text])
    assert document.num_windows == 1 and len(document.passages) > 3
    passage = document.passages[1]  # neither with [CLS] nor with [SEP]
    own, whole = (
        tokenizer.backend_tokenizer.encode(part, add_special_tokens=False).ids
        for part in (text[passage.start : passage.end], text)
    )
    counted = [2, *whole, 3]
    expected = np.zeros(SIZE)
    for piece in own:
        times = counted.count(piece)
        expected[piece % SIZE] += sign_by_hand(piece) * weight_by_hand(piece) * math.log2(1 + times) / times
    expected *= math.sqrt(SHARE) / np.linalg.norm(lexical_by_hand(counted))
    np.testing.assert_allclose(passage.vector[DIM:], expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_a_text_whose_pieces_weigh_nothing_has_its_states() -> None:
    model = lexical_model()
    with torch.no_grad():
        model.lexical_features.weight.zero_()
        pooled = model(torch.tensor([[2, *tiny_tokenizer()("river", add_special_tokens=False)["input_ids"], 3]]))
    vector = Embedder((model, tiny_tokenizer())).encode(["river"])[0]
    np.testing.assert_allclose(vector[:DIM], unit(pooled.pooler_output[0, :DIM].numpy()), atol=1e-6)
    assert not vector[DIM:].any()


def test_gradients_reach_weights_and_states_and_nothing_is_read_on_the_host() -> None:
    model = lexical_model().train()
    model(torch.tensor([TEXT])).pooler_output[:, [0, DIM + 9]].sum().backward()
    gradient = model.lexical_features.weight.grad
    assert gradient[sorted(set(TEXT))].ne(0).all() and gradient.count_nonzero() == len(set(TEXT))
    assert model.embeddings.word_embeddings.weight.grad.abs().max() > 0
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer = LexicalFeatures(M2BertConfig(vocab_size=70, lexical_features=24))
        ids = torch.zeros(2, 5, dtype=torch.long)
        assert layer(ids, ids == 0).shape == (2, 24)


def test_weights_stay_in_float32_under_autocast() -> None:
    model = lexical_model()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.lexical_features(torch.tensor([TEXT]))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), lexical_by_hand(TEXT), atol=1e-5)


def test_files_keep_them_and_a_model_can_be_given_them(tmp_path: Path) -> None:
    model = lexical_model()
    save_model(model, tiny_tokenizer(), tmp_path, dtype=torch.float32)
    again, _ = load_model(tmp_path)
    ids = torch.tensor([TEXT])
    assert (again.config.lexical_features, again.config.lexical_share) == (SIZE, SHARE)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).pooler_output, model(ids).pooler_output, rtol=0, atol=0)

    plain = tiny_model(pooling="weighted", bilinear_features=8)
    kept = plain.bilinear_features, plain.token_weights
    with torch.no_grad():
        before = plain(ids).pooler_output[0].numpy()
        with_pooling(plain, lexical_features=SIZE)
        after = plain(ids).pooler_output[0].numpy()
    assert (plain.bilinear_features, plain.token_weights) == kept and not plain.lexical_features.training
    np.testing.assert_allclose(unit(after[:-SIZE]), unit(before), atol=1e-6)
    assert plain.lexical_features.weight.eq(1).all() and np.linalg.norm(after[-SIZE:]) ** 2 == pytest.approx(0.75)
    with pytest.raises(M2BertError, match="lexical_features need pooling mean or weighted, got 'cls'; set them to 0"):
        with_pooling(lexical_model(), "cls")
    for share in (0, 1.0, True, "half"):
        with pytest.raises(M2BertError, match="lexical_share must lie between 0 and 1, got"):
            M2BertConfig(lexical_share=share)
    with pytest.raises(M2BertError, match=r"lexical_features must be a whole number of at least 0, got 1\.5"):
        M2BertConfig(lexical_features=1.5)
    with pytest.raises(M2BertError, match="which tokens there are, got inputs_embeds; give input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, DIM))


def test_frequencies_count_each_data_set_the_same() -> None:
    """Piece 5 is in every document of the small data set, piece 6 in half of those of the large one."""
    small = [np.array([5, 5, 7])] * 2
    large = [np.array([6, 8] if i % 2 else [8], dtype=np.int64) for i in range(10)]
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
        "lr_scheduler_type": "constant", "lexical_features": 32, "only_lexical": True, "scale": 40.0,
        "weight_decay": 0.0, **overrides,
    }  # fmt: skip
    return FinetuneConfig(**values)


def test_only_they_are_trained(world: Path, tmp_path: Path) -> None:
    finetune(settings(world, tmp_path / "start", learning_rate=1e-9, max_steps=1))
    finetune(settings(world, tmp_path / "trained"))
    origin, _ = load_model(world / "model")
    start, trained = (load_model(tmp_path / name / "model")[0] for name in ("start", "trained"))
    for name, x in origin.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], x, rtol=0, atol=0)
    weight = start.lexical_features.weight
    letters = tiny_tokenizer()(make_text(0, 30, 1), add_special_tokens=False)["input_ids"]
    frequent = weight[max(set(letters), key=letters.count)].item()
    assert weight[[0, 1, 2, 3, 4]].abs().max() < 1e-6 and 0 <= frequent < 3
    assert weight[tiny_tokenizer().convert_tokens_to_ids("harbor")].item() == pytest.approx(-math.log(1e-4), abs=1e-4)
    assert (trained.lexical_features.weight - weight).abs().max() > 0.05

    # Trained, they rank what they were trained on better: MNRL over all pairs, computed here.
    with gzip.open(world / "pairs.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]

    def loss_of(model: Any) -> float:
        sides = []
        for name in ("query", "positive"):
            ids = [tiny_tokenizer().backend_tokenizer.encode(row[name], add_special_tokens=False).ids for row in rows]
            with torch.no_grad():
                found = torch.cat([model.lexical_features(torch.tensor([[2, *row, 3]])) for row in ids])
            sides.append(found.double().numpy() / np.linalg.norm(found.numpy(), axis=1, keepdims=True))
        scores = 40 * sides[0] @ sides[1].T
        return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diag(scores)))

    assert loss_of(trained) < loss_of(start) - 0.05


def test_an_interrupted_run_ends_with_the_same_weights(world: Path, tmp_path: Path) -> None:
    finetune(settings(world, tmp_path / "whole", max_steps=6))
    finetune(settings(world, tmp_path / "parts", max_steps=6, save_steps=3))
    for newest in (tmp_path / "parts").glob("checkpoint-6"):
        (newest / "trainer_state.json").unlink()  # as if killed while it was written
    finetune(settings(world, tmp_path / "parts", max_steps=6, save_steps=3))
    whole, parts = (load_model(tmp_path / name / "model")[0].lexical_features.weight for name in ("whole", "parts"))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)


def test_settings_that_cannot_be_meant_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(M2BertError, match="only_lexical needs a model with lexical features, got none; pass --set"):
        finetune(settings(world, tmp_path, lexical_features=0))
    long: dict[str, Any] = {"lengths": {4096: 1.0}, "batch_tokens": 16384, "max_steps": 1}
    with pytest.raises(M2BertError, match="lengths must be within the model's 128 positions, got 4096 for documents"):
        finetune(settings(world, tmp_path, only_lexical=False, **long))
    assert finetune(settings(world, tmp_path / "long", **long))["step"] == 1  # no encoder, no positions
    with pytest.raises(M2BertError, match=r"scale must be left alone with loss opl, which has none, got 40\.0"):
        settings(world, tmp_path, loss="opl").check()
    with pytest.raises(M2BertError, match="only_lexical runs no blocks to checkpoint; set gradient_checkpointing to"):
        settings(world, tmp_path, gradient_checkpointing=True).check()
    with pytest.raises(M2BertError, match=r"scale must be above 0, got 0\.0; raise it"):
        settings(world, tmp_path, scale=0.0).check()
