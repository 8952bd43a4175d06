"""Retrieval losses against numbers worked out by hand and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from m2bert.errors import M2BertError
from m2bert.train.losses import (
    LOSSES,
    cosent,
    cosine_matrix,
    multiple_negatives_ranking,
    orthogonal_projection,
    prototype,
    ranking_agreement,
    symmetric_ranking,
)


def numpy_mnrl(queries: np.ndarray, documents: np.ndarray, scale: float = 20.0) -> float:
    total = 0.0
    for i, query in enumerate(queries):
        cosines = [query @ d / np.linalg.norm(query) / np.linalg.norm(d) for d in documents]
        exponents = [math.exp(scale * c) for c in cosines]
        total -= math.log(exponents[i] / sum(exponents))
    return total / len(queries)


def test_orthogonal_projection_of_known_angles() -> None:
    query = torch.tensor([[3.0, 0.0]])
    # Cosines 0.6 with the positive, 1 and 0 with the negatives.
    documents = torch.tensor([[3.0, 4.0], [2.0, 0.0], [0.0, 5.0]])
    expected = 0.5 * (0.6 - 1) ** 2 + 0.5 * (1.0**2 + 0.0**2) / 2
    assert orthogonal_projection(cosine_matrix(query, documents)).item() == pytest.approx(expected, abs=1e-6)
    assert orthogonal_projection(cosine_matrix(query, documents[:1])).item() == pytest.approx(0.16, abs=1e-6)


def test_orthogonal_projection_is_zero_only_where_it_should_be() -> None:
    aligned = torch.eye(3)
    assert orthogonal_projection(cosine_matrix(aligned, 7 * aligned)).item() == pytest.approx(0.0, abs=1e-12)
    assert orthogonal_projection(cosine_matrix(aligned, -aligned)).item() == pytest.approx(2.0, abs=1e-6)
    # Everything in one direction: positives perfect, every negative at fault.
    assert orthogonal_projection(cosine_matrix(torch.ones(2, 3), torch.ones(2, 3))).item() == pytest.approx(
        0.5, abs=1e-6
    )


def test_orthogonal_projection_gradient_by_hand() -> None:
    # One pair in the plane, cos = cos(angle); d/d angle of (cos - 1)^2 = -2 (cos - 1) sin.
    angle = torch.tensor(0.7, dtype=torch.float32, requires_grad=True)
    document = torch.stack([angle.cos(), angle.sin()])[None]
    orthogonal_projection(cosine_matrix(torch.tensor([[1.0, 0.0]]), document)).backward()
    assert angle.grad is not None
    assert angle.grad.item() == pytest.approx(-2 * (math.cos(0.7) - 1) * math.sin(0.7), rel=1e-4)


def test_orthogonal_projection_batches_are_means_of_single_queries() -> None:
    queries, documents = torch.randn(4, 8), torch.randn(4, 8)
    whole = orthogonal_projection(cosine_matrix(queries, documents))
    order = [[i, *(j for j in range(4) if j != i)] for i in range(4)]
    single = [orthogonal_projection(cosine_matrix(queries[i : i + 1], documents[order[i]])) for i in range(4)]
    assert whole.item() == pytest.approx(torch.stack(single).mean().item(), rel=1e-5)


def test_mnrl_matches_numpy_softmax() -> None:
    queries, documents = torch.randn(5, 16), torch.randn(9, 16)
    expected = numpy_mnrl(queries.double().numpy(), documents.double().numpy())
    assert multiple_negatives_ranking(cosine_matrix(queries, documents)).item() == pytest.approx(expected, rel=1e-5)
    # Negative control: the positives of other queries do not give the same number.
    wrong = numpy_mnrl(queries.double().numpy(), documents.double().numpy()[[1, 0, 2, 3, 4, 5, 6, 7, 8]])
    assert abs(wrong - expected) > 1e-3


def test_symmetric_ranking_is_the_mean_of_both_directions() -> None:
    queries, documents = torch.randn(4, 8), torch.randn(4, 8)
    q, d = queries.double().numpy(), documents.double().numpy()
    expected = 0.5 * (numpy_mnrl(q, d) + numpy_mnrl(d, q))
    assert symmetric_ranking(cosine_matrix(queries, documents)).item() == pytest.approx(expected, rel=1e-5)


def test_cosent_is_the_published_sum_over_pairs_of_pairs() -> None:
    queries, documents = torch.randn(3, 8), torch.randn(5, 8)
    cosines = cosine_matrix(queries, documents).double().numpy()
    positives = [cosines[i, i] for i in range(3)]
    negatives = [cosines[i, j] for i in range(3) for j in range(5) if i != j]
    expected = math.log(1 + sum(math.exp(20 * (n - p)) for n in negatives for p in positives))
    assert cosent(cosine_matrix(queries, documents)).item() == pytest.approx(expected, rel=1e-5)
    assert abs(cosent(cosine_matrix(queries, documents.roll(1, 0))).item() - expected) > 1e-3


def ignored_by_hand(name: str, queries: torch.Tensor, documents: torch.Tensor) -> float:
    """Two queries, three documents; document 2 also answers query 0, document 0 also answers query 1."""
    c = cosine_matrix(queries, documents).double().numpy()
    if name == "opl":
        return float(0.5 * ((c[0, 0] - 1) ** 2 + (c[1, 1] - 1) ** 2) / 2 + 0.5 * (c[0, 1] ** 2 + c[1, 2] ** 2) / 2)
    if name == "cosent":
        return math.log1p(sum(math.exp(20 * (n - p)) for n in (c[0, 1], c[1, 2]) for p in (c[0, 0], c[1, 1])))
    forward = (math.log1p(math.exp(20 * (c[0, 1] - c[0, 0]))) + math.log1p(math.exp(20 * (c[1, 2] - c[1, 1])))) / 2
    # Backwards, document 0 has no negative left (query 1 is answered by it), document 1 still has query 0.
    backward = math.log1p(math.exp(20 * (c[0, 1] - c[1, 1]))) / 2
    return forward if name == "mnrl" else (forward + backward) / 2


@pytest.mark.parametrize("name", LOSSES)
def test_a_document_that_answers_a_query_is_never_its_negative(name: str) -> None:
    queries, documents = torch.randn(2, 8), torch.randn(3, 8)
    # As near as an answer is: counted as a negative it would show.
    documents[2] = queries[0] + 0.1
    ignored = torch.tensor([[False, False, True], [True, False, False]])
    loss = LOSSES[name](cosine_matrix(queries, documents), ignored)
    assert loss.item() == pytest.approx(ignored_by_hand(name, queries, documents), rel=1e-4)
    assert abs(LOSSES[name](cosine_matrix(queries, documents), None).item() - loss.item()) > 1e-3


def test_cosines_stay_precise_under_autocast() -> None:
    queries, documents = torch.randn(3, 64), torch.randn(4, 64)
    exact = cosine_matrix(queries, documents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosine_matrix(queries, documents), exact)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_refuse_what_does_not_fit(loss: object) -> None:
    assert callable(loss)
    with pytest.raises(M2BertError, match="a positive document for each"):
        loss(torch.randn(3, 2))
    with pytest.raises(M2BertError, match="a positive document for each"):
        loss(torch.randn(0, 2))


def test_cosines_refuse_vectors_that_do_not_fit() -> None:
    with pytest.raises(M2BertError, match="same dim"):
        cosine_matrix(torch.randn(2, 4), torch.randn(2, 5))


def test_prototype_of_known_angles() -> None:
    students, teachers = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, -1.0]])
    assert prototype(students, teachers).item() == pytest.approx(((1 - 0.6) + 2) / 2, abs=1e-6)
    assert prototype(7 * teachers, teachers).item() == pytest.approx(0.0, abs=1e-6)


def test_ranking_agreement_matches_numpy_and_is_zero_for_equals_alone() -> None:
    students, teachers = torch.randn(6, 8), torch.randn(6, 8)

    def softmax(rows: np.ndarray) -> np.ndarray:
        exponents = np.exp(20 * rows)
        return exponents / exponents.sum(axis=1, keepdims=True)

    wanted = softmax(cosine_matrix(teachers, teachers).double().numpy())
    found = softmax(cosine_matrix(students, teachers).double().numpy())
    expected = float((wanted * np.log(wanted / found)).sum(axis=1).mean())
    assert ranking_agreement(students, teachers).item() == pytest.approx(expected, rel=1e-4)
    assert ranking_agreement(3 * teachers, teachers).item() == pytest.approx(0.0, abs=1e-5)
    assert ranking_agreement(teachers.roll(1, 0), teachers).item() > 0.1
