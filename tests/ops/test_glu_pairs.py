"""blockdiag_glu of bfloat16 tensors by products of pairs: over the instruction, where the CPU has it, and its twin."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from forking import run_forked
from test_blockdiag import glu_exact, glu_inputs

import m2ops
from m2ops._library import binding
from m2ops.testing import assert_matches

HAS_INSTRUCTION = binding.has_products("bfloat16") and m2ops.current_isa() == "avx512"
# The hidden channels and the result are rounded once each, 1.7e-3 twice; a single token may have bad luck.
BOUND, BOUND_OF_ONE = 2.5e-3, 3e-3


@pytest.fixture(
    params=["emulate", pytest.param("1", marks=pytest.mark.skipif(not HAS_INSTRUCTION, reason="needs AVX512-BF16"))],
    autouse=True,
)
def pairs(request: pytest.FixtureRequest) -> Iterator[str]:
    binding.select_bf16(request.param)
    yield request.param
    binding.select_bf16(None)


def in_pairs(w_in: torch.Tensor, w_out: torch.Tensor) -> bool:
    blocks_in, width, in_size = w_in.shape
    return bool(binding.glu_in_pairs(blocks_in, in_size, width, *w_out.shape[1:]))


@pytest.mark.parametrize(("nblocks", "nblocks_out"), [(4, 4), (1, 1), (2, 4), (3, 3), (4, 2), (6, 1)])
@pytest.mark.parametrize("tokens", [1, 17, 193])
def test_every_way_that_blocks_can_lie(nblocks: int, nblocks_out: int, tokens: int) -> None:
    x, *weights = glu_inputs(nblocks, nblocks_out, torch.bfloat16, tokens, inter=24 * 12, dim=48 * 3)
    assert in_pairs(*weights[:2])
    out = torch.ops.m2ops.blockdiag_glu_tiles(x.flatten(0, 1), *weights)
    assert_matches(out, glu_exact(x, *weights).flatten(0, 1), bound=BOUND if tokens > 1 else BOUND_OF_ONE)
    assert torch.equal(m2ops.blockdiag_glu(x, *weights), out.view(x.shape))  # it is what the operator takes


def test_rows_and_weights_that_lie_anywhere() -> None:
    """Rows at odd places, weights that are views, registers that end early, no bias."""
    x = torch.randn(70, 2 * 38 + 3).bfloat16()[:, 1 : 2 * 38 + 1]
    w_in = (torch.randn(2, 38, 110) / 6).bfloat16().transpose(1, 2)
    w_out = (torch.randn(1, 29, 110) / 10).bfloat16()
    assert in_pairs(w_in, w_out)
    exact = m2ops.blockdiag_glu_ref(x.double(), w_in.double(), w_out.double())
    assert_matches(torch.ops.m2ops.blockdiag_glu_tiles(x, w_in, w_out, None), exact, bound=BOUND)


def test_odd_blocks_are_left_to_the_other_kernels() -> None:
    x, *weights = glu_inputs(4, 4, torch.bfloat16, inter=20, dim=12)
    assert not in_pairs(*weights[:2])
    assert_matches(m2ops.blockdiag_glu(x, *weights), glu_exact(x, *weights), bound=1e-2)


def test_the_same_bits_on_any_number_of_threads_and_tokens() -> None:
    x, *weights = glu_inputs(4, 4, torch.bfloat16, tokens=300)
    rows = x.flatten(0, 1)
    once = torch.ops.m2ops.blockdiag_glu_tiles(rows, *weights)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    assert torch.equal(torch.ops.m2ops.blockdiag_glu_tiles(rows, *weights), once)
    torch.set_num_threads(threads)
    assert torch.equal(torch.ops.m2ops.blockdiag_glu_tiles(rows[5:9], *weights), once[5:9])
    rows[3] = torch.nan
    out = torch.ops.m2ops.blockdiag_glu_tiles(rows, *weights)
    assert out[3].isnan().all() and torch.equal(out[4:], once[4:])


def test_the_instruction_and_its_twin_multiply_as_the_manual_says() -> None:
    """First the odd numbers, then the even ones, a rounding after each."""

    def bits(even: torch.Tensor, odd: torch.Tensor) -> list[int]:
        low, high = (t.view(torch.int16).int() & 0xFFFF for t in (even, odd))
        return [a | b << 16 for a, b in zip(low.tolist(), high.tolist(), strict=True)]

    for _ in range(20):  # (a product of two bfloat16 numbers is exact in float32)
        sums = torch.randn(16) * 100
        a_even, a_odd, b_even, b_odd = (torch.randn(16).bfloat16() for _ in range(4))
        got = torch.tensor(binding.multiply_pairs(bits(a_even, a_odd), bits(b_even, b_odd), sums.tolist()))
        wanted = (sums.double() + a_odd.double() * b_odd.double()).float()
        wanted = (wanted.double() + a_even.double() * b_even.double()).float()
        assert torch.equal(got, wanted)


def test_the_environment_variable_chooses(pairs: str) -> None:
    show = "import m2ops._library as l; print(l.binding.bf16_state(), l.binding.glu_in_pairs(2, 4, 8, 4, 8))"
    said = {mode: run_forked(show, env={**os.environ, "M2OPS_BF16": mode}) for mode in ("0", "emulate", "maybe")}
    assert said["0"].stdout.startswith("off (M2OPS_BF16=0)") and said["0"].stdout.endswith("False\n")
    assert "emulated" in said["emulate"].stdout and said["emulate"].stdout.endswith("True\n")
    assert (
        said["maybe"].returncode and "M2OPS_BF16: must be 1 (where the machine has it), 0 (off)" in said["maybe"].stderr
    )
