"""Short bfloat16 convolutions on matrix tiles (AMX): the tiles, the convolution, and when it is chosen.

The twin of the instructions runs on every machine; the instructions themselves where there is AMX.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import run_forked
from native import built, needs_compiler
from test_fft_conv import direct, exact, inputs
from torch import Tensor

import m2ops
from m2ops._library import binding
from m2ops.testing import BOUNDS, assert_matches, relative_error

UNITS = ["emulate", *(["1"] if binding.amx_state().startswith("yes") else [])]
BOUND = BOUNDS[torch.bfloat16]


@pytest.fixture(params=UNITS)
def tiles(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every bfloat16 convolution with contiguous positions goes through tiles."""
    binding.select_amx(request.param, always=True)
    yield request.param
    binding.select_amx(None)


def by_transform(x: dict[str, Any]) -> Tensor:
    binding.select_amx("0")
    return m2ops.fft_conv(**x)


@needs_compiler
def test_the_twin_computes_tiles_by_hand_and_convolutions_within_their_memory() -> None:
    done = subprocess.run([built("test_tiles")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks passed" in done.stdout


# Whole tiles, parts of them, transforms of 64 to 512 points, sizes around multiples of 32 and 64.
@pytest.mark.parametrize("seqlen", [1, 2, 3, 16, 31, 32, 33, 63, 64, 65, 100, 129, 200, 256, 300, 511, 512])
@pytest.mark.parametrize("causal", [False, True])
def test_tiles_match_the_direct_sum(seqlen: int, causal: bool, tiles: str) -> None:
    x = inputs(torch.bfloat16, seqlen, dim=2, batch=3)
    if causal:
        x["k_rev"] = None
    assert_matches(m2ops.fft_conv(**x), exact(x))


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 32, 33, 65])
def test_tiles_match_the_direct_sum_for_any_number_of_rows(batch: int, tiles: str) -> None:
    x = inputs(torch.bfloat16, 70, dim=5, batch=batch)
    assert_matches(m2ops.fft_conv(**x), exact(x))


@pytest.mark.parametrize(
    "missing", [("k_rev",), ("skip",), ("pregate",), ("postgate",), ("pregate", "postgate", "skip", "k_rev")]
)
def test_tiles_take_optional_arguments(missing: tuple[str, ...], tiles: str) -> None:
    x = inputs(torch.bfloat16, 90, dim=3, batch=18)
    x.update(dict.fromkeys(missing))
    assert_matches(m2ops.fft_conv(**x), exact(x))


def test_tiles_read_strided_rows_and_long_spectra(tiles: str) -> None:
    x = inputs(torch.bfloat16, 130, dim=4, batch=17)
    spectrum = m2ops.filter_spectrum(x["k"], x["k_rev"], 130)
    wide = torch.randn(17, 12, 200).bfloat16()
    x["u"], x["pregate"], x["postgate"] = wide[:, 1:5, 3:80], wide[:, 4:8, 100:177], wide[:, 8:, 50:127]
    out = m2ops.fft_conv(x["u"], spectrum, None, x["skip"], x["pregate"], x["postgate"])
    assert_matches(out, exact(x))


def test_tiles_and_transforms_agree_and_zeros_are_rejected(tiles: str) -> None:
    x = inputs(torch.bfloat16, 200, dim=3, batch=20)
    by_tiles, want = m2ops.fft_conv(**x), exact(x)
    other = by_transform(x)
    assert_matches(other, want)
    # Both are the float32 result rounded: they differ where it lies near the middle of two numbers.
    assert relative_error(by_tiles, other.double()) < BOUND / 2
    assert not torch.equal(by_tiles, other), "both went the same way"
    with pytest.raises(AssertionError, match="relative L2 error"):
        assert_matches(torch.zeros_like(by_tiles), want)


def test_tiles_lose_no_more_than_the_rounding_of_the_output_where_a_filter_cancels_its_input(tiles: str) -> None:
    """Smooth data, a filter whose taps sum to zero: what is rounded before the product would come out enlarged."""
    x = inputs(torch.bfloat16, 256, dim=2, batch=16)
    x["u"] = (x["u"].float().abs() + 4).bfloat16()
    x["pregate"] = (torch.rand(16, 2, 256) + 1).bfloat16()
    x["k"] = x["k"] - x["k"].mean(-1, keepdim=True)
    x["k"][:, 0] += 1e-3
    x.update(k_rev=None, skip=None)
    want = exact(x)
    assert relative_error(m2ops.fft_conv(**x), want) < 1.02 * relative_error(want.bfloat16(), want)


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16().double()
    return high, (x - high).bfloat16().double()


def test_why_data_and_taps_are_cut_in_two() -> None:
    """The choice between one, two and three products, in float64: only three keep the bound with a gate."""
    seqlen, batch = 128, 64
    x = inputs(torch.bfloat16, seqlen, dim=1, batch=batch)
    one = torch.eye(seqlen, dtype=torch.float64)[:, None]
    matrix = direct(one, x["k"], x["k_rev"], None, None, None)[:, 0]  # row s: what an impulse at s gives
    g, post = (x["u"].double() * x["pregate"].double())[:, 0], x["postgate"].double()[:, 0]
    want = (g @ matrix) * post
    (high, low), (taps, rest) = parts(g), parts(matrix)

    def error(out: Tensor) -> float:
        return relative_error((out * post).bfloat16(), want)

    least = relative_error(want.bfloat16(), want)
    assert error(high @ taps) > BOUND  # one product
    assert error(high @ (taps + rest)) > 1.3 * least  # two: within the bound here, not if the filter cancels
    assert error(high @ (taps + rest) + low @ taps) < 1.01 * least


def test_tiles_propagate_non_finite_inputs(tiles: str) -> None:
    x = inputs(torch.bfloat16, 64, dim=3, batch=2)
    x["u"][0, 1, 5] = float("nan")
    x["u"][1, 2, 60] = float("inf")
    out = m2ops.fft_conv(**x)
    assert not torch.isfinite(out[0, 1]).any() and not torch.isfinite(out[1, 2]).any()
    assert torch.isfinite(out[0, 0]).all() and torch.isfinite(out[1, 1]).all()


def test_tiles_give_the_same_bits_on_any_number_of_threads_and_have_gradients(tiles: str) -> None:
    x = inputs(torch.bfloat16, 60, dim=7, batch=40)
    once = m2ops.fft_conv(**x)
    torch.set_num_threads(3)
    assert torch.equal(m2ops.fft_conv(**x), once)
    torch.set_num_threads(1)
    u = x["u"].clone().requires_grad_()
    m2ops.fft_conv(**{**x, "u": u}).sum().backward()
    wide = {n: t.double() for n, t in x.items()}
    wide["u"].requires_grad_()
    m2ops.fft_conv_ref(**wide).sum().backward()
    assert_matches(u.grad, wide["u"].grad, bound=3 * BOUND)


def cheaper_with_tiles(batch: int, seqlen: int, gated: bool = True, causal: bool = False) -> bool:
    size = m2ops.fft_size(seqlen)
    return bool(binding.toeplitz_seconds(batch, seqlen, size, gated, causal) < binding.transform_seconds(batch, size))


def test_the_cheaper_way_is_chosen_by_cost() -> None:
    assert cheaper_with_tiles(64, 64) and cheaper_with_tiles(64, 128) and cheaper_with_tiles(64, 256, causal=True)
    assert not cheaper_with_tiles(64, 1024, causal=True) and not cheaper_with_tiles(64, 4096, gated=False)
    assert not any(cheaper_with_tiles(1, n, gated=False, causal=True) for n in (1, 32, 128, 512))
    for batch, seqlen in ((1, 64), (16, 200), (64, 512)):
        size = m2ops.fft_size(seqlen)
        cost = {(g, c): binding.toeplitz_seconds(batch, seqlen, size, g, c) for g in (0, 1) for c in (0, 1)}
        assert cost[0, 0] < cost[1, 0] and cost[0, 1] <= cost[0, 0] and cost[1, 1] <= cost[1, 0]
        assert cost[0, 0] < binding.toeplitz_seconds(batch + 32, seqlen, size, False, False)
        assert cost[0, 0] < binding.toeplitz_seconds(batch, seqlen + 64, 2 * size, False, False)


def test_fft_conv_goes_the_cheaper_way_for_the_filter_it_gets() -> None:
    """One length where only causal filters are cheaper with tiles, which fft_conv finds in the spectrum."""
    seqlen, batch = 320, 64
    assert cheaper_with_tiles(batch, seqlen, causal=True) and not cheaper_with_tiles(batch, seqlen)
    x = inputs(torch.bfloat16, seqlen, dim=1, batch=batch)
    causal = {**x, "k_rev": None}
    binding.select_amx("0")
    transforms = m2ops.fft_conv(**x), m2ops.fft_conv(**causal)
    try:
        binding.select_amx("emulate")
        assert torch.equal(m2ops.fft_conv(**x), transforms[0])
        out = m2ops.fft_conv(**causal)
        assert not torch.equal(out, transforms[1])
        assert relative_error(out, transforms[1].double()) < BOUND / 2
        last = {n: causal[n].transpose(1, 2).contiguous() for n in ("u", "pregate", "postgate")}
        channels_last = m2ops.fft_conv(**{**causal, **last}, layout="bld").transpose(1, 2)
        assert torch.equal(channels_last, transforms[1]), "channels last are transformed"
        with m2ops.use_isa("scalar"):
            by_scalar = m2ops.fft_conv(**causal)
        if m2ops.available_isas() != ["scalar"]:
            assert not torch.equal(by_scalar, out), "another instruction set turns tiles off"
    finally:
        binding.select_amx(None)


def report(mode: str) -> subprocess.CompletedProcess[str]:
    program = "import runpy; runpy.run_module('m2ops', run_name='__main__')"
    return run_forked(program, env={"M2OPS_AMX": mode, "M2OPS_ISA": ""})


def test_the_environment_variable_and_the_report_say_whether_tiles_are_used() -> None:
    assert "emulated (M2OPS_AMX=emulate), in use for bfloat16" in report("emulate").stdout
    wrong = report("yes")
    assert wrong.returncode != 0 and "M2OPS_AMX: must be 1" in wrong.stderr and "got 'yes'" in wrong.stderr
    with pytest.raises(ValueError, match="select_amx: must be 1"):
        binding.select_amx("2")
    try:
        binding.select_amx("0")
        assert binding.amx_state() == "off (M2OPS_AMX=0)"
        binding.select_amx("emulate")
        if m2ops.available_isas() != ["scalar"]:
            with m2ops.use_isa("scalar"):
                assert "not in use: another instruction set is forced" in binding.amx_state()
    finally:
        binding.select_amx(None)


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_the_library_holds_the_instructions_where_the_compiler_knows_them() -> None:
    if "not in this build" in binding.amx_state():
        pytest.skip("the compiler of this build knows no AMX")
    library = Path(m2ops.__file__).parent / "libm2ops_kernels.so"
    symbol = "_ZN2m23amx12_GLOBAL__N_18Toeplitz7productEPKtS4_Pf"
    command = ["objdump", "-d", f"--disassemble={symbol}", library]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("ldtilecfg", "tilezero", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease"):
        assert name in listing, name
