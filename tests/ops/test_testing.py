"""The judge itself: it accepts rounding, rejects zeros, damage, NaN and wrong shapes, and notices when it is blind."""

from __future__ import annotations

import pytest
import torch

from m2ops.testing import BOUNDS, assert_matches, bound_for, relative_error


def test_accepts_rounding_and_rejects_damage() -> None:
    exact = torch.randn(50, dtype=torch.float64)
    assert_matches(exact.float(), exact)
    assert_matches(exact.bfloat16(), exact)
    for wrong in (torch.zeros(50), exact.float() * 1.001, exact.float().roll(1)):
        with pytest.raises(AssertionError, match="relative L2 error"):
            assert_matches(wrong, exact)


def test_rejects_nan_and_wrong_shape() -> None:
    exact = torch.randn(5, dtype=torch.float64)
    poisoned = exact.float()
    poisoned[2] = float("nan")
    assert relative_error(poisoned, exact) == float("inf")
    with pytest.raises(AssertionError, match="shape"):
        assert_matches(exact.float()[:4], exact)


def test_a_tolerance_that_accepts_zeros_is_called_blind() -> None:
    exact = torch.randn(5, dtype=torch.float64)
    with pytest.raises(AssertionError, match="blind"):
        assert_matches(exact.float(), exact, bound=2.0)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_the_bound_of_many_elements_is_the_one_in_the_docs(dtype: torch.dtype) -> None:
    assert bound_for(torch.randn(10000, dtype=torch.float64), dtype) == BOUNDS[dtype]
