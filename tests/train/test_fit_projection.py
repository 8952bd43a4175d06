"""Projections fitted to text: the algebra against numpy by hand, even draws, and what `m2bert project` saves."""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model, tiny_tokenizer
from training_data import write_pairs, write_task

import m2bert.cli
from m2bert.encoders.embedder import Embedder
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import load_model, save_model
from m2bert.train.projection import fit_projection, second_moment, spread, whitening

SIZE = 16


def moment_of(values: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of these eigenvalues, and its eigenvectors as columns."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return turn @ np.diag(values) @ turn.T, turn


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 16 channels in half precision, so that saving it again changes no number, and its data."""
    folder = tmp_path_factory.mktemp("start")
    save_model(tiny_model(), tiny_tokenizer(), folder / "model")
    save_model(tiny_model(projection_dim=5), tiny_tokenizer(), folder / "projected")
    write_pairs(folder, pairs=20)
    write_task(folder / "loco", "train", documents=4)
    write_task(folder / "loco", "test", documents=4)
    return folder


def test_second_moments_are_means_of_outer_products_of_unit_vectors() -> None:
    vectors = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32) * 50
    expected = np.zeros((4, 4))
    for row in vectors.astype(np.float64):
        for i in range(4):
            for j in range(4):
                expected[i, j] += row[i] * row[j] / (row @ row) / 7
    np.testing.assert_allclose(second_moment(vectors), expected, atol=1e-12)
    assert np.trace(second_moment(vectors)) == pytest.approx(1.0)
    np.testing.assert_allclose(second_moment(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.18, 0.24], [0.24, 0.32]])


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dim", [1, 3, 4])
def test_rows_are_eigenvectors_by_variance_scaled_by_a_power_of_it(dim: int, exponent: float) -> None:
    """The eigenvalues and -vectors are known before: the matrix is made of them, in another order."""
    moment, turn = moment_of([1.0, 9.0, 0.25, 4.0])
    rows = whitening(moment, dim, exponent)
    values, columns = [9.0, 4.0, 1.0, 0.25][:dim], turn[:, [1, 3, 0, 2]][:, :dim]
    assert rows.shape == (dim, 4)
    for row, value, column in zip(rows, values, columns.T, strict=True):
        sign = math.copysign(1, column[np.abs(column).argmax()])
        np.testing.assert_allclose(row, sign * column * (values[-1] / value) ** exponent, atol=1e-12)
    products = rows @ rows.T
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-12)
    assert products.max() == pytest.approx(1.0)
    assert all(row[np.abs(row).argmax()] > 0 for row in rows)
    np.testing.assert_array_equal(whitening(moment, 4, exponent)[0] > 0, rows[0] > 0)


def test_without_scaling_all_directions_keep_cosines() -> None:
    generator = np.random.default_rng(2)
    vectors = generator.normal(size=(9, 6)) + 3
    rows = whitening(second_moment(vectors), 6, 0.0)
    np.testing.assert_allclose(unit(vectors @ rows.T) @ unit(vectors @ rows.T).T, unit(vectors) @ unit(vectors).T)
    assert np.abs(unit(vectors) @ unit(vectors).T).min() > 0.3
    fewer = unit(vectors @ whitening(second_moment(vectors), 2, 0.0).T)
    assert np.abs(fewer @ fewer.T - unit(vectors) @ unit(vectors).T).max() > 1e-3


def test_whitened_vectors_have_no_direction_of_their_own() -> None:
    """At 0.5 the second moment of what is projected is a multiple of the identity; below, it is on the way there."""
    moment, _ = moment_of([5.0, 2.0, 1.0, 0.1, 0.01], seed=4)
    for dim in (3, 5):
        rows = whitening(moment, dim, 0.5)
        projected = rows @ moment @ rows.T
        np.testing.assert_allclose(projected, projected[0, 0] * np.eye(dim), atol=1e-12)
        assert projected[0, 0] == pytest.approx([5, 2, 1, 0.1, 0.01][dim - 1])
    for exponent, ratio in ((0.0, 500.0), (0.3, 500.0**0.4), (0.5, 1.0)):
        spans = np.diag(whitening(moment, 5, exponent) @ moment @ whitening(moment, 5, exponent).T)
        assert spans.max() / spans.min() == pytest.approx(ratio)


def test_directions_that_hold_nothing_stay_finite() -> None:
    moment, _ = moment_of([1.0, 0.5, 0.0])
    rows = whitening(moment, 3, 0.5)
    assert np.isfinite(rows).all() and np.linalg.norm(rows[2]) == pytest.approx(1.0)
    assert np.linalg.norm(rows[0]) == pytest.approx(1e-9**0.5, rel=1e-6)


def test_texts_are_drawn_evenly_over_the_sources() -> None:
    sources = ["large"] * 50 + ["small"] * 3 + ["middle"] * 10
    chosen = spread(sources, 12, seed=1)
    assert Counter(sources[number] for number in chosen) == {"large": 5, "middle": 4, "small": 3}
    assert chosen == sorted(set(chosen)) == spread(sources, 12, seed=1) != spread(sources, 12, seed=2)
    assert chosen[:5] != list(range(5)), "drawn, not the first"
    assert spread(sources, 63, seed=1) == spread(sources, 1000, seed=1) == list(range(63))
    assert len(spread(sources, 2, seed=1)) == 2
    drawn = Counter(number for seed in range(200) for number in spread(["one"] * 10, 3, seed))
    assert set(drawn) == set(range(10)) and max(drawn.values()) < 100, "60 each on average"


@pytest.mark.parametrize(("dim", "exponent"), [(6, 0.3), (SIZE - 1, 0.0), (SIZE - 1, 0.5)])
def test_vectors_of_the_new_model_are_those_of_the_old_turned(
    start: Path, tmp_path: Path, dim: int, exponent: float
) -> None:
    """The layer norm before pooling leaves 15 directions of 16 channels: what they add up to is always the same."""
    made = fit_projection(
        str(start / "model"), str(tmp_path / "new"), pairs=[str(start / "pairs.jsonl.gz")], dim=dim, exponent=exponent
    )
    rows = load_model(tmp_path / "new")[0].projection.weight.detach().double().numpy()
    pairs = [json.loads(line) for line in gzip.decompress((start / "pairs.jsonl.gz").read_bytes()).splitlines()]
    old, new = Embedder(start / "model"), Embedder(tmp_path / "new")
    queries, documents = [row["query"] for row in pairs], [row["positive"] for row in pairs]
    for text, before, after in zip(documents, old.encode(documents), new.encode_documents(documents), strict=True):
        np.testing.assert_allclose(after.vector, unit(rows @ before), atol=1e-5, err_msg=text)
        np.testing.assert_allclose(sum(passage.vector for passage in after.passages), after.vector, atol=1e-5)
    # Both kinds of text count one half, whatever their numbers; bfloat16 has 8 binary digits.
    passages = np.stack([x.vector for each in old.encode_documents(documents) for x in each.passages])
    halves = [unit(each.astype(np.float64)) for each in (passages, old.encode(queries))]
    moment = sum(each.T @ each / len(each) for each in halves) / 2
    values, directions = (x[..., ::-1][..., :dim] for x in np.linalg.eigh(moment))
    alike = np.abs(unit(rows) @ directions)
    np.testing.assert_allclose(alike, np.eye(dim), atol=0.005)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), (values[-1] / values) ** exponent, rtol=0.005)
    np.testing.assert_allclose(
        np.diag(rows @ moment @ rows.T), values * (values[-1] / values) ** (2 * exponent), rtol=0.03
    )
    assert made == {"model": str(tmp_path / "new"), "dim": dim, "exponent": exponent, "passages": len(passages),
                    "queries": 20}  # fmt: skip
    assert len(passages) > len(documents) == 20 and new.dim == dim


def test_a_projection_that_the_model_has_is_replaced(start: Path, tmp_path: Path) -> None:
    """Also where the new one is longer: it is fitted to what is pooled, not to what was projected."""
    pairs = [str(start / "pairs.jsonl.gz")]
    fit_projection(str(start / "projected"), str(tmp_path / "new"), pairs=pairs, dim=12)
    old, new = load_model(start / "projected")[0], load_model(tmp_path / "new")[0]
    assert new.projection.weight.shape == (12, SIZE) and new.config.projection_dim == 12
    assert old.projection.weight.shape == (5, SIZE) and new.projection.weight.abs().max() > 0.1
    for name, x in old.state_dict().items():
        if not name.startswith("projection"):
            assert (new.state_dict()[name] == x).all(), name
    fit_projection(str(tmp_path / "new"), str(tmp_path / "again"), pairs=pairs, dim=12)
    again = load_model(tmp_path / "again")[0].projection.weight
    assert (again == new.projection.weight).all()


def test_fewer_texts_and_other_seeds_give_other_projections(start: Path, tmp_path: Path) -> None:
    weights = {}
    for name, options in {"all": {}, "few": {"texts": 5}, "others": {"texts": 5, "seed": 3}}.items():
        made = fit_projection(
            str(start / "model"), str(tmp_path / name), pairs=[str(start / "pairs.jsonl.gz")],
            loco=[str(start / "loco")], dim=SIZE, **options,
        )  # fmt: skip
        assert made["queries"] == (28 if name == "all" else 5), "20 of the pairs and 8 of the task"
        weights[name] = load_model(tmp_path / name)[0].projection.weight.detach().numpy()
    assert all(np.abs(weights[one] - weights["few"]).max() > 0.01 for one in ("all", "others"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "project: dim must be 1 to 16, the length of what the model pools, got 0"),
        ({"dim": 17}, "project: dim must be 1 to 16, .* got 17"),
        ({"exponent": -0.1}, "project: exponent must be 0 to 1, got -0.1"),
        ({"exponent": 1.1}, "project: exponent must be 0 to 1, got 1.1"),
        ({"pairs": [], "loco": ["loco/tinytask/test"]}, "project: .*test"),
        ({"pairs": []}, "project: the sources must hold pairs, got none"),
        ({"pairs": ["none.jsonl"]}, "project: .*none.jsonl"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    start: Path, tmp_path: Path, monkeypatch: Any, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(start)
    given: dict[str, Any] = {"pairs": ["pairs.jsonl.gz"], "dim": 4, **options}
    with pytest.raises(M2BertError, match=message):
        fit_projection("model", str(tmp_path / "new"), **given)
    assert not (tmp_path / "new").exists()


def test_a_model_that_pools_at_one_place_is_refused(tmp_path: Path, start: Path) -> None:
    save_model(tiny_model(pooling="cls"), tiny_tokenizer(), tmp_path / "cls")
    with pytest.raises(M2BertError, match="projection_dim needs pooling mean or weighted, got 'cls'"):
        fit_projection(str(tmp_path / "cls"), str(tmp_path / "new"), pairs=[str(start / "pairs.jsonl.gz")], dim=4)


def test_the_command_says_what_it_made(start: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m2bert", "project", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            m2bert.cli.main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    data = ("--pairs", start / "pairs.jsonl.gz", "--loco", start / "loco", "--texts", 9, "--seed", 4)
    new = tmp_path / "new"
    code, out, err = call(start / "model", "--output", new, *data, "--dim", 6, "--exponent", 0.5)
    assert code == 0 and "reading" in err
    made = json.loads(out)
    assert (made["model"], made["dim"], made["exponent"], made["queries"]) == (str(new), 6, 0.5, 9)
    library = fit_projection(
        str(start / "model"), str(tmp_path / "library"), pairs=[str(start / "pairs.jsonl.gz")],
        loco=[str(start / "loco")], dim=6, exponent=0.5, texts=9, seed=4,
    )  # fmt: skip
    assert {**library, "model": str(new)} == made
    assert Embedder(new).fingerprint == Embedder(tmp_path / "library").fingerprint
    code, out, err = call(start / "model", "--output", tmp_path / "x", *data)
    assert (code, out) == (2, "") and err == (
        "m2bert: project: dim must be 1 to 16, the length of what the model pools, got 768\n"
    )
    assert call(start / "model", "--output", tmp_path / "x", *data, "--texts", 1)[0] == 2
