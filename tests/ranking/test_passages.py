"""Rounded passages and their best pairs, against loops over passages and numbers one by one."""

from __future__ import annotations

import math
import struct
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from m2bert.errors import M2BertError
from m2bert.ranking.passages import QuantisedPassages, best_pairs, num_pairs, pair_cosines, pair_sums

COUNTS = [1, 3, 2, 1, 7, 2, 1]


def random_vectors(count: int, dim: int = 24, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def pairs_of(passages: list[Any]) -> list[Any]:
    """Sums of neighbours in float64, number by number; one passage is its own pair."""
    if len(passages) == 1:
        return [[float(x) for x in passages[0]]]
    return [[float(x) + float(y) for x, y in zip(one, other, strict=True)] for one, other in pairwise(passages)]


def cosine(vector: Any, query: Any) -> float:
    norm = math.sqrt(sum(x * x for x in vector))
    return sum(x * float(y) for x, y in zip(vector, query, strict=True)) / norm if norm else 0.0


def documents(seed: int = 0) -> list[Any]:
    vectors = random_vectors(sum(COUNTS), seed=seed)
    return np.split(vectors, np.cumsum(COUNTS)[:-1])


@pytest.mark.parametrize("dim", [1, 2, 24, 768])
def test_each_number_is_off_by_at_most_half_a_scale(dim: int) -> None:
    vectors = random_vectors(50, dim) * np.logspace(-6, 3, 50, dtype=np.float32)[:, None]
    made = QuantisedPassages.of(vectors)
    assert made.codes.dtype == np.int8 and made.scales.dtype == made.pair_norms.dtype == np.float32
    for vector, codes, scale, rounded in zip(vectors, made.codes, made.scales, made.vectors, strict=True):
        largest = max(abs(float(x)) for x in vector)
        assert float(scale) == pytest.approx(largest / 127, rel=1e-6)
        assert max(abs(int(code)) for code in codes) == 127
        for x, code, y in zip(vector, codes, rounded, strict=True):
            assert float(y) == pytest.approx(int(code) * float(scale), rel=1e-6)
            assert abs(float(x) - float(y)) <= 0.5 * float(scale) * (1 + 1e-5)


def test_cosines_are_off_by_little() -> None:
    """Errors spread evenly over a scale: their length is scale sqrt(dim / 12), and what a query sees of it is random.

    For unit vectors of 768 numbers the largest is about 3.3 / sqrt(768): an error of 3.3 / 127 / sqrt(12 768), some
    0.00027, of which four times is more than any of 4000 may have.
    """
    vectors, queries = random_vectors(40, 768, 1), random_vectors(100, 768, 2)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    made = QuantisedPassages.of(vectors)
    exact = vectors.astype(np.float64) @ queries.T.astype(np.float64)
    found = made.products(queries.T) / np.linalg.norm(made.vectors, axis=1)[:, None]
    assert np.abs(exact).max() > 0.1
    assert 0 < np.abs(found - exact).max() < 4 * 3.3 / 127 / math.sqrt(12 * 768)


def test_rounding_what_is_rounded_changes_nothing() -> None:
    for seed in range(5):
        once = QuantisedPassages.of(random_vectors(2000, 16, seed))
        twice = QuantisedPassages.of(once.vectors)
        np.testing.assert_array_equal(twice.codes, once.codes)
        np.testing.assert_array_equal(twice.scales, once.scales)
        np.testing.assert_array_equal(twice.pair_norms, once.pair_norms)
        np.testing.assert_array_equal(twice.vectors, once.vectors)
        assert np.abs(once.vectors).max() > 1


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_lengths_of_pairs_are_those_of_what_is_kept(count: int) -> None:
    made = QuantisedPassages.of(random_vectors(count))
    norms = [math.sqrt(sum(x * x for x in pair)) for pair in pairs_of(list(made.vectors))]
    assert len(norms) == num_pairs(count) == (1 if count < 3 else count - 1)
    np.testing.assert_allclose(made.pair_norms, norms, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_rows_are_rounded_some_at_a_time(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2bert.ranking.passages.ROWS_AT_ONCE", 2)
    test_lengths_of_pairs_are_those_of_what_is_kept(count)
    vectors = random_vectors(count)
    made = QuantisedPassages.of(vectors)
    for vector, codes, scale in zip(vectors, made.codes, made.scales, strict=True):
        assert [round(float(x) / float(scale)) for x in vector] == codes.tolist()


def test_rounding_takes_no_memory_beside_what_it_makes() -> None:
    """Numbers in four bytes were there five times over: 2 GB for the passages of a document of 50 MB."""
    vectors = random_vectors(20_000, 128)
    tracemalloc.start()
    made = QuantisedPassages.of(vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < made.codes.nbytes + vectors.nbytes


def test_products_with_one_query_and_with_several() -> None:
    made, queries = QuantisedPassages.of(random_vectors(5)), random_vectors(3, seed=9)
    expected = [
        [sum(float(x) * float(y) for x, y in zip(row, query, strict=True)) for query in queries] for row in made.vectors
    ]
    np.testing.assert_allclose(made.products(queries.T), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.products(queries[1]), [row[1] for row in expected], rtol=1e-4, atol=1e-5)


def test_sums_of_neighbours_stay_within_their_documents() -> None:
    expected = [pair for passages in documents() for pair in pairs_of(list(passages))]
    found = pair_sums(np.concatenate(documents()), COUNTS)
    assert len(found) == sum(num_pairs(count) for count in COUNTS)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_best_pairs_of_documents_of_one_and_of_many_passages() -> None:
    queries = random_vectors(4, seed=5)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    made = [QuantisedPassages.of(passages) for passages in documents()]
    products = np.concatenate([one.products(queries.T) for one in made])
    norms = np.concatenate([one.pair_norms for one in made])
    cosines = [[cosine(pair, query) for query in queries] for one in made for pair in pairs_of(list(one.vectors))]
    np.testing.assert_allclose(pair_cosines(products, norms, COUNTS), cosines, atol=1e-5)
    expected = [[max(cosine(pair, query) for pair in pairs_of(list(one.vectors))) for query in queries] for one in made]
    found = best_pairs(products, norms, COUNTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # One document at a time, and its numbers as an array, are the same.
    for number, one in enumerate(made):
        alone = best_pairs(one.products(queries.T), one.pair_norms, np.array([COUNTS[number]]))
        np.testing.assert_allclose(alone[0], found[number], atol=1e-6)


def test_an_answer_across_a_cut_is_found_by_its_pair() -> None:
    """Two passages of cosine 0.71 each make a pair of cosine 1, beside which the best single one is worth less."""
    query = np.array([1, 1, 0], dtype=np.float32) / np.float32(math.sqrt(2))
    made = QuantisedPassages.of(np.array([[0, 0, 5], [1, 0, 0], [0, 1, 0], [0, 0, 5]], dtype=np.float32))
    cosines = pair_cosines(made.products(query)[:, None], made.pair_norms, [4])[:, 0]
    np.testing.assert_allclose(cosines, [math.sqrt(0.5 / 26), 1.0, math.sqrt(0.5 / 26)], atol=1e-6)


def test_vectors_of_zeros_stay_zeros_and_score_nothing() -> None:
    rows = np.array([[0, 0], [0, 0], [3, 4], [-3, -4]], dtype=np.float32)
    made = QuantisedPassages.of(rows)
    np.testing.assert_array_equal(made.codes[:2], 0)
    np.testing.assert_allclose(made.vectors[2:], rows[2:], atol=4 / 254)
    query = np.array([0.6, 0.8], dtype=np.float32)
    cosines = pair_cosines(made.products(query)[:, None], made.pair_norms, [4])[:, 0]
    np.testing.assert_allclose(cosines, [0, 1, 0], atol=1e-3)
    assert best_pairs(made.products(-query)[:, None], made.pair_norms, [4])[0, 0] == 0  # above the pair of -1
    alone = QuantisedPassages.of(np.zeros((1, 2), np.float32))
    assert best_pairs(alone.products(query)[:, None], alone.pair_norms, [1]).tolist() == [[0.0]]


@pytest.mark.parametrize("count", [2, 3, 50])
def test_bytes_hold_scales_then_lengths_then_codes(count: int) -> None:
    made = QuantisedPassages.of(random_vectors(count, 5))
    blob = made.to_bytes()
    numbers = [*made.scales.tolist(), *made.pair_norms.tolist()]
    assert blob == struct.pack(f"<{2 * count - 1}f{5 * count}b", *numbers, *made.codes.reshape(-1).tolist())
    back = QuantisedPassages.from_bytes(blob, 5)
    np.testing.assert_array_equal(back.codes, made.codes)
    np.testing.assert_array_equal(back.scales, made.scales)
    np.testing.assert_array_equal(back.pair_norms, made.pair_norms)
    for wrong in (b"", blob[:-1], blob + b"1", QuantisedPassages.of(random_vectors(1, 5)).to_bytes()):
        with pytest.raises(M2BertError, match=f"passages: {len(wrong)} bytes are not those of passages of 5 numbers"):
            QuantisedPassages.from_bytes(wrong, 5)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (2, 3, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(M2BertError, match=r"passages: vectors must have shape \(passages, dim\), got \("):
        QuantisedPassages.of(np.ones(shape, np.float32))
