"""Transform lengths and plans."""

from __future__ import annotations

import math

import pytest

import m2ops
from m2ops._library import binding


def test_fft_size_is_the_smallest_of_its_form() -> None:
    forms = sorted(64 * odd << a for odd in (1, 3, 5) for a in range(17) if 64 * odd << a <= 1 << 22)
    for seqlen in [*range(1, 1400, 7), 4096, 4097, 32768, 32769, 1 << 22]:
        assert m2ops.fft_size(seqlen) == binding.fft_size(seqlen) == min(n for n in forms if n >= seqlen)


@pytest.mark.parametrize("size", [64, 128, 192, 256, 320, 640, 768, 1280, 4096, 5120, 98304, 1 << 22])
def test_fft_plan_factors_the_size(size: int) -> None:
    plan = binding.fft_plan(size)
    assert plan.n1 * plan.n2 == plan.size == size and plan.n1 % plan.lanes == plan.n2 % 16 == 0
    assert math.prod(plan.radices1) == plan.n1 and math.prod(plan.radices2) == plan.n2
    # Two complex transforms cost at least 2 * 4 n log2 n operations (split radix), at most 2.5 times that and products.
    assert 8 * size * math.log2(size) < plan.flops < 20 * size * math.log2(size) + 40 * size


@pytest.mark.parametrize("size", [0, 100, 257, 1792])
def test_fft_plan_refuses_other_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="fft_size must be 64"):
        binding.fft_plan(size)


@pytest.mark.parametrize("seqlen", [0, -1, (1 << 22) + 1])
def test_fft_size_refuses_lengths_out_of_range(seqlen: int) -> None:
    with pytest.raises(ValueError, match="seqlen must be between 1"):
        m2ops.fft_size(seqlen)
    with pytest.raises(ValueError, match="seqlen must be between 1"):
        binding.fft_size(seqlen)
