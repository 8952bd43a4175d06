"""Weighted pooling against plain Python: learned weights, repetitions, padding, windows, passages, files, training."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import story, tiny_model, tiny_tokenizer
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from training_data import make_text

from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import fingerprint, load_model, save_model, with_pooling
from m2bert.model.pooling import repetition_factors, weighted_pool
from m2bert.train.distill import DistillConfig, distill
from m2bert.train.finetune import FinetuneConfig, finetune

# Ids that repeat: 9 four times, 7 twice. 2 and 3 are [CLS] and [SEP].
TEXT = [2, 9, 7, 9, 11, 9, 7, 13, 9, 3]
ROOM = 62  # tokens of text in the tiny model's windows of 64


def learned_model(**options: Any) -> Any:
    """The tiny model with weighted pooling whose learned weights differ from token to token."""
    model = tiny_model(pooling="weighted", **options)
    with torch.no_grad():
        model.token_weights.weight.normal_(std=0.4, generator=torch.Generator().manual_seed(5))
        model.token_weights.bias.fill_(0.3)
    return model


def learned_weight(model: Any, state: list[float]) -> float:
    a, b = model.token_weights.weight[0].tolist(), model.token_weights.bias.item()
    return math.log1p(math.exp(sum(x * y for x, y in zip(a, state, strict=True)) + b))


def factor(times: int) -> float:
    return math.log(1 + times) / (times * math.log(2))


def weights_by_hand(model: Any, states: list[list[float]], ids: list[int], counted: list[int]) -> list[float]:
    """What each token counts, where id i occurs as often as it is among `counted`."""
    return [learned_weight(model, x) * factor(counted.count(i)) for x, i in zip(states, ids, strict=True)]


def states_of(model: Any, ids: list[int]) -> list[list[float]]:
    with torch.no_grad():
        found: list[list[float]] = model(torch.tensor([ids])).last_hidden_state[0].double().tolist()
    return found


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_factors_are_those_of_sublinear_term_frequency() -> None:
    ids = torch.tensor([[5, 6, 5, 5, 0, 0], [7, 7, 8, 7, 7, 5]])
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 3 + [False, True, True]])
    # 5 three times, 6 once, padding; then 7 three times besides the one that is masked, 8 and 5 once.
    three = math.log(4) / (3 * math.log(2))
    expected = [[three, 1, three, three, 0, 0], [three, three, 1, 0, three, 1]]
    torch.testing.assert_close(repetition_factors(ids, mask, 9), torch.tensor(expected), rtol=0, atol=1e-6)
    whole = repetition_factors(ids, None, 9)
    assert whole[0, 4].item() == pytest.approx(math.log2(3) / 2, abs=1e-6)
    assert repetition_factors(torch.arange(9)[None], None, 9).eq(1).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooled_vector_is_the_weighted_mean_of_the_states(side: str) -> None:
    model = learned_model()
    texts = [TEXT, [2, 20, 3], [2, *[9] * 30, 3]]
    width = 40
    ids, mask = torch.full((3, width), 9), torch.zeros(3, width, dtype=torch.long)  # padded with an id in use
    for row, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, where], mask[row, where] = torch.tensor(text), 1
    with torch.no_grad():
        out = model(ids, attention_mask=mask)
        weights = model.pooling_weights(out.last_hidden_state, ids, mask)
    for row, text in enumerate(texts):
        states = states_of(model, text)
        wanted = weights_by_hand(model, states, text, text)
        np.testing.assert_allclose(weights[row][mask[row].bool()].numpy(), wanted, atol=1e-5)
        expected = np.asarray(wanted) @ np.asarray(states) / sum(wanted)
        np.testing.assert_allclose(out.pooler_output[row].numpy(), expected, atol=1e-5)
        assert weights[row][mask[row] == 0].eq(0).all()
    # Neither half of a weight may be missing: without one of them the vector lies far from this one.
    states = states_of(model, TEXT)
    learned = np.asarray([learned_weight(model, state) for state in states])
    factors = np.asarray([factor(TEXT.count(number)) for number in TEXT])
    for other in (learned, factors, np.ones(len(TEXT))):
        mean = other @ np.asarray(states) / other.sum()
        assert np.abs(mean - out.pooler_output[0].numpy()).max() > 1e-2


def test_a_fresh_model_of_distinct_tokens_pools_by_the_mean() -> None:
    model = tiny_model(pooling="weighted")
    ids = torch.tensor([[2, 9, 7, 11, 3]])
    with torch.no_grad():
        out = model(ids)
        repeated = model(torch.tensor([TEXT]))
    torch.testing.assert_close(out.pooler_output, out.last_hidden_state.mean(dim=1), rtol=0, atol=1e-6)
    assert (repeated.pooler_output - repeated.last_hidden_state.mean(dim=1)).abs().max() > 1e-2
    with torch.no_grad():
        plain = tiny_model().pooling_weights(out.last_hidden_state, ids, torch.tensor([[1, 1, 1, 0, 0]]))
    assert plain.tolist() == [[1, 1, 1, 0, 0]]


def test_weights_are_computed_in_float32_under_autocast_and_in_bfloat16() -> None:
    model = learned_model()
    ids = torch.tensor([TEXT, TEXT[::-1]])
    with torch.no_grad():
        exact = model(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(ids)
            weights = model.pooling_weights(low.last_hidden_state, ids)
        narrow = model.bfloat16()(ids)
    assert weights.dtype == torch.float32 and low.pooler_output.dtype == torch.bfloat16
    states = low.last_hidden_state.double().tolist()
    for row, text in enumerate((TEXT, TEXT[::-1])):
        wanted = [
            learned_weight(learned_model(), x) * factor(text.count(i)) for x, i in zip(states[row], text, strict=True)
        ]
        np.testing.assert_allclose(weights[row].numpy(), wanted, rtol=1e-5)
    # Pooled vectors are as good as bfloat16 states of a few layers let them be.
    for out in (low, narrow):
        assert (out.pooler_output - exact.pooler_output).abs().max() < 0.05 * exact.pooler_output.abs().max()


def test_gradients_reach_states_and_weights() -> None:
    model = tiny_model(pooling="weighted").train()
    model(torch.tensor([TEXT])).pooler_output[:, 0].sum().backward()
    for parameter in (model.token_weights.weight, model.token_weights.bias, model.embeddings.word_embeddings.weight):
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0


def test_pooling_reads_no_value_on_the_host() -> None:
    """Fake tensors have no values: whatever waits for an accelerator to read one raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, ids = learned_model(), torch.zeros(2, 5, dtype=torch.long)
        hidden = torch.zeros(2, 5, 16, requires_grad=True)
        pooled = weighted_pool(hidden, model.pooling_weights(hidden, ids, ids == 0))
        pooled.sum().backward()
        assert pooled.shape == hidden.grad[:, 0].shape == (2, 16)
        with pytest.raises(DataDependentOutputException):
            repetition_factors(ids, None, int(ids.max()) + 1)


def test_embeddings_without_ids_are_refused() -> None:
    model = learned_model()
    with pytest.raises(M2BertError, match="must know which tokens there are, got inputs_embeds; give input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, 16))
    assert tiny_model()(inputs_embeds=torch.zeros(1, 4, 16)).pooler_output is not None


def test_one_window_is_embedded_as_the_model_pools() -> None:
    model, tokenizer = learned_model(), tiny_tokenizer()
    embedder = Embedder((model, tokenizer))
    # The last one spells special tokens, which the tokenizer takes for such.
    for text in (story(25, seed=3), "river " * 40, "river [SEP] stone [CLS] [SEP] river"):
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert len(ids) <= ROOM
        with torch.no_grad():
            pooled = model(torch.tensor([[2, *ids, 3]])).pooler_output[0].numpy()
        np.testing.assert_allclose(embedder.encode([text])[0], unit(pooled), atol=1e-5)


def test_repetitions_are_counted_over_all_windows() -> None:
    model, tokenizer = learned_model(), tiny_tokenizer()
    text = story(200, seed=8)
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    count = -(-len(ids) // ROOM)
    bounds = [number * len(ids) // count for number in range(count + 1)]
    counted = ids + [2, 3] * count
    total, apart = np.zeros(16), np.zeros(16)
    for first, last in itertools.pairwise(bounds):
        window = [2, *ids[first:last], 3]
        states = states_of(model, window)
        total += np.asarray(weights_by_hand(model, states, window, counted)) @ np.asarray(states)
        apart += np.asarray(weights_by_hand(model, states, window, window)) @ np.asarray(states)
    embedder = Embedder((model, tokenizer))
    vector = embedder.encode([text, "river"])[0]
    assert count > 3
    np.testing.assert_allclose(vector, unit(total), atol=1e-5)
    assert np.abs(vector - unit(apart)).max() > 1e-3  # windows weighed one by one are another vector


@pytest.mark.parametrize("batch_tokens", [64, 100_000])
def test_passages_add_up_and_batches_do_not_matter(batch_tokens: int) -> None:
    embedder = Embedder((learned_model(), tiny_tokenizer()), batch_tokens=batch_tokens)
    texts = [story(length, seed=length) for length in (3, 300, 40, 700)]
    alone = np.stack([Embedder((learned_model(), tiny_tokenizer())).encode([text])[0] for text in texts])
    queries = embedder.encode(["copper harbor", "x"])
    documents = embedder.encode_documents(texts)
    for document, vector in zip(documents, alone, strict=True):
        np.testing.assert_allclose(document.vector, vector, atol=1e-5)
        shares = np.stack([passage.vector for passage in document.passages]) @ queries.T
        np.testing.assert_allclose(shares.sum(axis=0), queries @ vector, atol=1e-5)
    assert len(documents[-1].passages) > 5
    # A passage's share is the weighted sum over its tokens: plain means give other shares.
    plain = Embedder((with_pooling(learned_model(), "mean"), tiny_tokenizer())).encode_documents(texts)
    assert np.abs(plain[-1].passages[0].vector - documents[-1].passages[0].vector).max() > 1e-3


def test_saved_weights_are_exact_and_named_by_the_fingerprint(tmp_path: Path) -> None:
    model, tokenizer = learned_model(), tiny_tokenizer()
    save_model(model, tokenizer, tmp_path)  # in bfloat16
    assert load_file(tmp_path / "model.safetensors")["token_weights.weight"].dtype == torch.float32
    again, _ = load_model(tmp_path)
    assert again.config.pooling == "weighted" and again.config.to_diff_dict()["pooling"] == "weighted"
    for name, x in again.token_weights.state_dict().items():
        torch.testing.assert_close(x, model.token_weights.state_dict()[name], rtol=0, atol=0)
    first = fingerprint(again, tokenizer)
    with torch.no_grad():
        again.token_weights.bias.add_(0.1)
    assert fingerprint(again, tokenizer) != first
    opened = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert opened.token_weights.weight.dtype == torch.float32
    torch.testing.assert_close(opened.token_weights.weight, model.token_weights.weight, rtol=0, atol=0)


def test_a_model_goes_on_with_another_pooling() -> None:
    model = tiny_model()
    names = set(model.state_dict())
    assert with_pooling(model, "") is model and with_pooling(model, "mean") is model
    with pytest.raises(M2BertError, match="pooling must be one of mean, cls, cls_dense, weighted, got 'max'"):
        with_pooling(model, "max")
    assert model.config.pooling == "mean" and set(model.state_dict()) == names
    with_pooling(model, "weighted")
    assert set(model.state_dict()) - names == {"token_weights.weight", "token_weights.bias"}
    assert not model.token_weights.training
    fresh = tiny_model(pooling="weighted")  # other draws, but the same start of the weights
    fresh.load_state_dict(tiny_model().state_dict(), strict=False)
    ids = torch.tensor([TEXT])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).pooler_output, fresh(ids).pooler_output, rtol=0, atol=0)
        with_pooling(model, "cls_dense")
        assert model(ids).pooler_output.abs().max() > 1e-3
        assert set(model.state_dict()) - names == {"pooler.dense.weight", "pooler.dense.bias"}
        with_pooling(model, "mean")
        torch.testing.assert_close(model(ids).pooler_output, tiny_model()(ids).pooler_output, rtol=0, atol=0)
    assert set(model.state_dict()) == names


def settings(world: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    return {
        "init": str(world / "model"), "pairs": [str(world / "pairs.jsonl.gz")], "output": str(folder),
        "learning_rate": 3e-3, "max_steps": 4, "save_seconds": 0.0, "bf16": False, "pooling": "weighted",
        **overrides,
    }  # fmt: skip


def check_moved(folder: Path) -> None:
    model, _ = load_model(folder / "model")
    assert model.config.pooling == "weighted"
    weight: Tensor = model.token_weights.weight
    # A few steps of Adam of 3e-3 each, from zero.
    assert 1e-4 < weight.abs().max() < 0.1 and weight.ne(0).all()


def test_finetuning_learns_the_weights(world: Path, tmp_path: Path) -> None:
    values = {"batch_size": 4, "batch_tokens": 640, "lengths": {64: 1.0}, "max_query_tokens": 16}
    finetune(FinetuneConfig(**settings(world, tmp_path / "first", **values)))
    check_moved(tmp_path / "first")
    # The next stage keeps the pooling of its start.
    more = values | {"init": str(tmp_path / "first"), "pooling": "", "max_steps": 1, "learning_rate": 1e-9}
    finetune(FinetuneConfig(**settings(world, tmp_path / "second", **more)))
    first, second = (load_model(tmp_path / name / "model")[0] for name in ("first", "second"))
    torch.testing.assert_close(second.token_weights.weight, first.token_weights.weight, rtol=0, atol=1e-6)
    assert Embedder(str(tmp_path / "first" / "model")).encode_documents([make_text(0, 80, 1)])[0].passages


@pytest.mark.parametrize("new", [False, True])
def test_distilling_learns_the_weights(world: Path, tmp_path: Path, new: bool) -> None:
    values = settings(world, tmp_path, teacher=[str(world / "model")], window_tokens=96, segment_tokens=24)
    values |= {"batch_tokens": 512, "text_tokens": 4000, "tokenizer": str(world / "model")}
    if new:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "filter_order": 8}
        values |= {"init": "", "model": {**sizes, "max_position_embeddings": 128}}
    distill(DistillConfig(**values))
    check_moved(tmp_path)
