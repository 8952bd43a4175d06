"""A score is the weighted sum of its parts: by hand, with every choice of parts, and from a model's folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from m2bert.errors import M2BertError
from m2bert.ranking.parts import FILE, PARTS, Mixture, mixture_of

SCORES = {"whole": 0.5, "passages": 0.75, "words": 2.0, "terms": 0.25}
OWN = {"whole": 0.6, "passages": 0.4, "words": 0.2, "terms": 0.1}


def test_a_score_is_the_weighted_sum_of_the_parts_that_count() -> None:
    assert Mixture().weighted(SCORES) == pytest.approx({"whole": 0.35, "passages": 0.225, "words": 1.4})
    assert Mixture().combined(SCORES) == pytest.approx(1.975)
    assert Mixture(**OWN).combined(SCORES) == pytest.approx(0.3 + 0.3 + 0.4 + 0.025)
    # What weighs nothing need not be known.
    assert Mixture(1, 0, 0).combined({"whole": 0.5}) == 0.5
    assert Mixture(1, 0, 0).weighted({"whole": 0.5}) == {"whole": 0.5}


def test_arrays_are_added_number_by_number() -> None:
    scores = {part: np.array([value, -value, 3 * value]) for part, value in SCORES.items()}
    np.testing.assert_allclose(Mixture().combined(scores), [1.975, -1.975, 5.925])


def test_a_part_alone_weighs_one_and_several_keep_their_weights() -> None:
    own = Mixture(**OWN)
    assert own.only("all") == own
    for part in PARTS:
        alone = own.only(part)
        assert alone.used == [part] and alone.combined(SCORES) == SCORES[part]
    for count in (2, 3, 4):
        for parts in combinations(PARTS, count):
            chosen = own.only("+".join(parts[::-1]))
            assert chosen.used == [part for part in PARTS if part in parts]
            assert chosen.combined(SCORES) == pytest.approx(sum(OWN[part] * SCORES[part] for part in parts))


@pytest.mark.parametrize("rank", ["", "any", "whole,words", "whole+", "whole+all", "words+words", "Whole", None, 1])
def test_other_names_are_refused_with_those_there_are(rank: Any) -> None:
    with pytest.raises(M2BertError, match=r"rank: must be all, whole, passages, words, terms, or .*, got ") as told:
        Mixture().only(rank)
    assert str(told.value).endswith(repr(rank))


@pytest.mark.parametrize("weights", [(0, 0, 0), (-0.1, 1, 1), (float("nan"), 1, 1), (float("inf"), 1, 1), ("1", 1, 1)])
def test_weights_that_mean_nothing_are_refused(weights: Any) -> None:
    with pytest.raises(M2BertError, match="rank: weights must be numbers of 0 or more and not all 0, got"):
        Mixture(*weights)
    with pytest.raises(M2BertError, match="not all 0"):
        Mixture(0, 0, 1).only("whole+passages")


def test_a_folder_keeps_a_mixture_of_its_own(tmp_path: Path) -> None:
    assert asdict(Mixture.read(tmp_path)) == {"whole": 0.7, "passages": 0.3, "words": 0.7, "terms": 0.0}
    assert FILE == "ranking.json"
    (tmp_path / "ranking.json").write_text(json.dumps(OWN))
    assert asdict(Mixture.read(tmp_path)) == OWN
    (tmp_path / "ranking.json").write_text('{"words": 2}')
    assert asdict(Mixture.read(tmp_path)) == {"whole": 0.7, "passages": 0.3, "words": 2, "terms": 0.0}


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"width": 1}', '{"words": "much"}', '{"words": -1}', "\udcff"])
def test_a_file_of_other_things_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "ranking.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(M2BertError, match=r"rank: .*ranking\.json must hold weights such as .*; mend or remove it"):
        Mixture.read(tmp_path)


def test_encoders_have_their_own_mixture_or_the_default() -> None:
    assert mixture_of(SimpleNamespace(mixture=Mixture(**OWN))).words == 0.2
    assert mixture_of(object()) == Mixture(0.7, 0.3, 0.7, 0.0)
