"""Reciprocal rank fusion against exact fractions and values worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from m2bert.errors import M2BertError
from m2bert.fusion import reciprocal_rank_fusion


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
