"""Fusion of rankings against exact fractions and values worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from m2bert.errors import M2BertError
from m2bert.ranking.fusion import reciprocal_rank_fusion, score_fusion


def test_scores_and_order_worked_out_by_hand():
    fused = reciprocal_rank_fusion([["a", "b", "c"], ["b", "d"]])
    expected = {
        "b": Fraction(1, 62) + Fraction(1, 61),
        "a": Fraction(1, 61),
        "d": Fraction(1, 62),
        "c": Fraction(1, 63),
    }
    assert [document for document, _ in fused] == ["b", "a", "d", "c"]
    assert dict(fused) == pytest.approx({document: float(score) for document, score in expected.items()}, rel=1e-15)


def test_ties_go_by_id_and_k_flattens_the_first_ranks():
    assert [document for document, _ in reciprocal_rank_fusion([["z"], ["a"]])] == ["a", "z"]
    # First once, or second twice: the first wins only where k = 0 makes ranks steep.
    rankings = [["x", "y"], ["w", "y"]]
    assert reciprocal_rank_fusion(rankings, k=0)[0][1] == pytest.approx(1.0)
    assert [document for document, _ in reciprocal_rank_fusion(rankings, k=0)] == ["w", "x", "y"]
    assert reciprocal_rank_fusion(rankings, k=60)[0][0] == "y"


def test_the_order_of_the_rankings_does_not_matter_and_nothing_gives_nothing():
    rankings = [["a", "b", "c"], ["c", "a"], ["d"]]
    assert reciprocal_rank_fusion(rankings) == reciprocal_rank_fusion(rankings[::-1])
    assert rankings == [["a", "b", "c"], ["c", "a"], ["d"]]
    assert reciprocal_rank_fusion([]) == reciprocal_rank_fusion([[], []]) == []


def test_bad_input_is_refused_by_name():
    with pytest.raises(M2BertError, match="'b' again"):
        reciprocal_rank_fusion([["a", "b", "b"]])
    with pytest.raises(M2BertError, match="k must be 0 or more"):
        reciprocal_rank_fusion([["a"]], k=-1)


def test_fused_scores_worked_out_by_hand():
    cosines, counts = {"a": 0.9, "b": 0.8, "c": 0.5}, {"b": 30.0, "d": 10.0, "c": 12.0}
    fused = score_fusion([cosines, counts])
    expected = {"b": Fraction(3, 4) + 1, "a": Fraction(1), "c": 0 + Fraction(1, 10), "d": Fraction(0)}
    assert [document for document, _ in fused] == ["b", "a", "c", "d"]
    assert dict(fused) == pytest.approx({document: float(score) for document, score in expected.items()}, rel=1e-12)
    # What a score is measured in does not matter, nor the order of the rankings.
    scaled = {document: 7.0 * score - 100.0 for document, score in counts.items()}
    assert dict(score_fusion([scaled, cosines])) == pytest.approx(dict(fused), abs=1e-12)
    assert cosines == {"a": 0.9, "b": 0.8, "c": 0.5}


def test_equal_scores_share_the_first_place_and_ties_go_by_id():
    assert score_fusion([{"z": 2.0, "a": 2.0}, {"m": -1.0}]) == [("a", 1.0), ("m", 1.0), ("z", 1.0)]
    assert score_fusion([]) == score_fusion([{}, {}]) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused_by_name(bad):
    with pytest.raises(M2BertError, match=r"must be finite, got (nan|inf) for 'b'"):
        score_fusion([{"a": 1.0, "b": bad}])
