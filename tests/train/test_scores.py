"""Scores in training: those of search, of single passages in numpy, their gradients; padding changes nothing."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tiny import WORDS, tiny_model, tiny_tokenizer
from torch import Tensor

from m2bert import Embedder
from m2bert.encoders.passages import cut_passages
from m2bert.ranking.passages import best_pairs as ranked_pairs
from m2bert.ranking.passages import pair_sums
from m2bert.train import scores
from m2bert.train.losses import LOSSES
from m2bert.train.retrieval import Scoring, WholeModel, retrieval_loss
from m2bert.train.scores import passage_counts, passage_numbers, score_matrix

# One, two, three, five and one passages of 192 tokens.
LENGTHS = (40, 390, 577, 1000, 287)
SHARE = 0.3


def plain_text(words: int, seed: int) -> str:
    """Words with spaces between, so that no place is better to cut at than another."""
    return " ".join(np.random.default_rng(seed).choice(WORDS.split(), words))


QUERIES = [plain_text(5, 100 + seed) for seed in range(3)]
DOCUMENTS = [plain_text(words, words) for words in LENGTHS]


def model_of(pooling: str, **fields: Any) -> Any:
    model = tiny_model(pooling=pooling, max_tokens=1024, **fields)
    if model.token_weights is not None:
        with torch.no_grad():
            model.token_weights.weight.normal_()
    return model


def rows_of(texts: list[str]) -> tuple[Tensor, Tensor]:
    inputs = tiny_tokenizer(1024)(texts, padding=True, return_tensors="pt")
    return inputs["input_ids"], inputs["attention_mask"]


def batch_of(queries: list[str], documents: list[str]) -> dict[str, Tensor]:
    sides = {"query": rows_of(queries), "document": rows_of(documents)}
    names = ("input_ids", "attention_mask")
    return {f"{side}_{name}": row for side, rows in sides.items() for name, row in zip(names, rows, strict=True)}


def scored(model: Any, share: float = SHARE, chunk_tokens: int = 1500, dim: int | None = None) -> Tensor:
    scoring = Scoring(WholeModel(model), chunk_tokens, passages=share)
    queries, documents = scoring.queries(model, *rows_of(QUERIES)), scoring.documents(model, *rows_of(DOCUMENTS))
    return scoring.scores(queries, documents, dim)


def passages_by_hand(model: Any, text: str) -> np.ndarray:
    """Each passage's part of a text's vector (passages, dim) in numpy, from the states of the text read alone."""
    input_ids, mask = rows_of([text])
    ids = input_ids[0].tolist()
    with torch.no_grad():
        states = model(input_ids, mask).last_hidden_state[0].double().numpy()
    parts = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    features = states
    if "bilinear_features.left" in parts:
        products = (states @ parts["bilinear_features.left"].T) * (states @ parts["bilinear_features.right"].T)
        features = np.concatenate([states, products], axis=1)
    weights = np.ones(len(ids))
    if "token_weights.weight" in parts:
        weights = np.log1p(np.exp(states @ parts["token_weights.weight"][0] + parts["token_weights.bias"][0]))
        weights *= [np.log2(1 + ids.count(token)) / ids.count(token) for token in ids]
    tokens = len(ids) - 2
    count = max(1, round(tokens / 192))
    bounds = [0, *(1 + number * tokens // count for number in range(1, count)), len(ids)]
    rows = [sum(weights[i] * features[i] for i in range(first, last)) for first, last in pairwise(bounds)]
    return np.stack(rows) @ parts["projection.weight"].T if "projection.weight" in parts else np.stack(rows)


def score_by_hand(query: np.ndarray, passages: np.ndarray, share: float) -> float:
    def cosine(x: np.ndarray) -> float:
        return float(x @ query / np.linalg.norm(x) / np.linalg.norm(query))

    pairs = [passages[i] + passages[i + 1] for i in range(len(passages) - 1)] or [passages[0]]
    return (1 - share) * cosine(passages.sum(axis=0)) + share * max(map(cosine, pairs))


@pytest.mark.parametrize(
    ("pooling", "fields"), [("mean", {}), ("weighted", {"bilinear_features": 8, "projection_dim": 12})]
)
def test_scores_are_those_of_single_passages(pooling: str, fields: dict[str, int]) -> None:
    model = model_of(pooling, **fields)
    passages = [passages_by_hand(model, text) for text in DOCUMENTS]
    queries = [passages_by_hand(model, text).sum(axis=0) for text in QUERIES]
    assert [len(rows) for rows in passages] == [1, 2, 3, 5, 1]
    for dim in (None, 5):
        expected = [[score_by_hand(q[:dim], rows[:, :dim], SHARE) for rows in passages] for q in queries]
        found = scored(model, dim=dim).detach().numpy()
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert np.abs(found - scored(model, share=0.0, dim=dim).detach().numpy())[:, 1:4].max() > 1e-3


def test_scores_are_those_of_search() -> None:
    """Of text that has no better place to cut at: there search cuts where training does."""
    model = model_of("weighted", projection_dim=12)
    embedder = Embedder((model, tiny_tokenizer(1024)))
    queries = embedder.encode(QUERIES)
    expected = []
    for document in embedder.encode_documents(DOCUMENTS):
        rows = np.stack([passage.vector for passage in document.passages])
        norms = np.linalg.norm(pair_sums(rows, [len(rows)]), axis=1)
        best = ranked_pairs(rows @ queries.T, norms, [len(rows)])[0]
        expected.append((1 - SHARE) * queries @ document.vector + SHARE * best)
    np.testing.assert_allclose(scored(model).detach().numpy(), np.stack(expected, axis=1), atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 95, 96, 97, 191, 287, 288, 289, 1000, 8190])
def test_passages_begin_where_those_of_search_do(tokens: int) -> None:
    firsts, _ = cut_passages("a " * tokens, [(2 * i, 2 * i + 1) for i in range(tokens)])
    mask = torch.zeros(2, tokens + 5, dtype=torch.int64)
    mask[0, : tokens + 2] = mask[1, 3:] = 1  # padding on either side
    numbers = passage_numbers(mask)
    for row, first in ((0, 0), (1, 3)):
        own = numbers[row, first : first + tokens + 2]
        assert own[1:-1].tolist() == (np.searchsorted(firsts, np.arange(tokens), side="right") - 1).tolist()
        assert (own[0], own[-1]) == (0, len(firsts) - 1)
        assert (numbers[row] == -1).sum() == 3
    assert passage_counts(mask).tolist() == [len(firsts)] * 2


def test_a_text_of_special_tokens_alone_is_one_passage() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert passage_numbers(mask).tolist() == [[0, 0, -1], [0, 0, 0]]
    assert passage_counts(mask).tolist() == [1, 1]


def test_neither_padding_nor_groups_change_a_score() -> None:
    model = model_of("weighted")
    whole = scored(model, chunk_tokens=100_000)
    torch.testing.assert_close(scored(model, chunk_tokens=10), whole, atol=1e-5, rtol=0)
    scoring = Scoring(WholeModel(model), 100_000, passages=SHARE)
    queries = scoring.queries(model, *rows_of(QUERIES))
    for column, text in enumerate(DOCUMENTS):
        alone = scoring.scores(queries, scoring.documents(model, *rows_of([text])))[:, 0]
        torch.testing.assert_close(alone, whole[:, column], atol=1e-5, rtol=0)
    assert (whole[:, 0] - whole[:, 1]).abs().max() > 1e-2


def test_gradients_of_scores_match_finite_differences() -> None:
    queries, sums = torch.randn(2, 4, dtype=torch.float64), torch.randn(3, 4, 4, dtype=torch.float64)
    counts = torch.tensor([1, 4, 3])
    sums[0, 1:] = sums[2, 3:] = 0

    def score(queries: Tensor, *own: Tensor) -> Tensor:
        rows = [torch.nn.functional.pad(each, (0, 0, 0, 4 - len(each))) for each in own]
        return score_matrix(queries, torch.stack(rows), counts, SHARE)

    own = [sums[i, :count].clone().requires_grad_() for i, count in enumerate(counts.tolist())]
    assert torch.autograd.gradcheck(score, [queries.requires_grad_(), *own])
    padded = sums.clone().requires_grad_()
    score_matrix(queries, padded, counts, SHARE).sum().backward()
    assert padded.grad is not None and padded.grad.isfinite().all()
    # The whole's gradient reaches each passage, the pairs' that of the best pair alone.
    second = sums[1:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scores.best_pairs(queries[:1], second, counts[1:2]).sum(), second)
    assert (gradient[0].abs().sum(dim=1) > 0).sum() == 2


def test_the_model_gets_the_gradient_of_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parameters moved together along random directions, in float64; passages of 8 tokens."""
    monkeypatch.setattr(scores, "PASSAGE_TOKENS", 8)
    model = tiny_model(bilinear_features=4, projection_dim=6).double()
    batch = batch_of(QUERIES, [plain_text(words, words) for words in (6, 30, 17)])
    loss_of = retrieval_loss(LOSSES["mnrl"], Scoring(WholeModel(model), 60, passages=SHARE), [3])
    loss_of(model, batch).backward()
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert any(parameter is model.projection.weight for parameter in parameters)
    for _ in range(3):
        direction = [torch.randn_like(parameter) for parameter in parameters]
        expected = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
        losses = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for parameter, each in zip(parameters, direction, strict=True):
                    parameter += step * each
                losses.append(float(loss_of(model, batch)))
        with torch.no_grad():
            for parameter, each in zip(parameters, direction, strict=True):
                parameter += 1e-6 * each
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(expected, rel=1e-4)
        assert abs(expected) > 1e-3


@pytest.mark.parametrize("loss", ["mnrl", "opl"])
def test_cached_gradients_are_those_of_the_full_batch(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "PASSAGE_TOKENS", 8)
    batch = batch_of(QUERIES, [plain_text(words, words) for words in (6, 30, 17, 50)])
    found = []
    for cached, chunk_tokens, share in ((False, 10_000, SHARE), (True, 40, SHARE), (False, 10_000, 0.0)):
        model = tiny_model(pooling="weighted")
        scoring = Scoring(WholeModel(model), chunk_tokens, cached, share)
        retrieval_loss(LOSSES[loss], scoring, [4])(model, batch).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (found[1] - found[0]).norm() < 1e-4 * found[0].norm()
    assert (found[2] - found[0]).norm() > 1e-2 * found[0].norm()


def test_first_numbers_have_a_loss_of_their_own() -> None:
    """Cross-entropy in numpy, of cosines of vectors cut in numpy; the mean over lengths."""
    model, batch = model_of("mean", projection_dim=12), batch_of(QUERIES, DOCUMENTS[:4])
    loss = partial(LOSSES["mnrl"], scale=5.0)
    with torch.no_grad():
        queries, documents = (
            model(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]).pooler_output.double().numpy()
            for side in ("query", "document")
        )
    losses = []
    for dim in (12, 8, 3):
        q, d = (x[:, :dim] / np.linalg.norm(x[:, :dim], axis=1, keepdims=True) for x in (queries, documents))
        exponents = np.exp(5.0 * q @ d.T)
        losses.append(-np.log(exponents[range(3), range(3)] / exponents.sum(axis=1)).mean())
    found = [retrieval_loss(loss, Scoring(WholeModel(model), 5000), dims)(model, batch).item() for dims in ([], [8, 3])]
    assert found == pytest.approx([losses[0], np.mean(losses)], abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-3
