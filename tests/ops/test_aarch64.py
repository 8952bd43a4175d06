"""The NEON rows of the kernel table, compiled for aarch64 and run by qemu-user: operators, an encoder, instructions.

The tests are those of the operators, on the sizes listed here; boundary and kernels are what a library for aarch64
holds, torch and the judge are this machine's. Neither macOS nor a real ARM machine is seen.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_blockdiag as blockdiag
import test_fft_conv as fft_conv
import test_monarch_mixer as monarch_mixer
import test_short_conv as short_conv
import torch
from aarch64 import Aarch64, needs_aarch64, program

import m2ops
from m2ops.testing import assert_matches, relative_error

pytestmark = needs_aarch64

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HERE = m2ops.current_isa()  # what those tests select on this machine, which does not compute


@pytest.fixture(scope="module")
def neon() -> Iterator[Aarch64]:
    machine = Aarch64("neon")
    yield machine
    machine.close()


@pytest.fixture
def on_neon(neon: Aarch64) -> Iterator[Aarch64]:
    """Inside, operators run there; a test during which none did is wrong."""
    before = len(neon.calls)
    with neon:
        yield neon
    assert len(neon.calls) > before


def test_the_rows_of_aarch64_are_found_best_first(neon: Aarch64) -> None:
    assert neon.isas == ["neon_bf16", "neon", "scalar"]
    plain = Aarch64("neon", "-cpu", "cortex-a72")
    assert plain.isas == ["neon", "scalar"]  # a CPU without BF16 instructions
    plain.close()


# One, part of a register, transforms of 4, 8 and 16 lanes, 3 and 5 times a power of two.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seqlen", [1, 3, 63, 129, 380, 1280])
def test_fft_conv(seqlen: int, dtype: torch.dtype, on_neon: Aarch64) -> None:
    fft_conv.test_fft_conv_matches_the_direct_sum(seqlen, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("seqlen", "dim"), [(5, 16), (100, 17)])
def test_fft_conv_channels_last(seqlen: int, dim: int, dtype: torch.dtype, on_neon: Aarch64) -> None:
    fft_conv.test_fft_conv_reads_channels_last(seqlen, dim, dtype)


@pytest.mark.parametrize(
    ("seqlen", "dtype"),
    [(40, torch.float32), (300, torch.float32), (120, torch.bfloat16), (200, torch.float16)],
    ids=str,
)
def test_fft_conv_gradients(seqlen: int, dtype: torch.dtype, on_neon: Aarch64) -> None:
    fft_conv.test_fft_conv_gradients_match_the_reference(seqlen, dtype)


# Two passes down the columns; rows that are first split.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seqlen", [3100, 12300])
def test_fft_conv_of_long_rows_and_its_gradients(seqlen: int, dtype: torch.dtype, on_neon: Aarch64) -> None:
    fft_conv.test_fft_conv_of_rows_that_are_first_split(seqlen, dtype, "bdl")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_short_conv(layout: str, dtype: torch.dtype, on_neon: Aarch64) -> None:
    for dim, seqlen, width in ((1, 1, 2), (17, 50, 3), (40, 33, 7)):
        short_conv.test_short_conv_matches_conv1d(layout, dim, seqlen, width, dtype)
    if dtype == torch.float32:
        short_conv.test_short_conv_gradients_match_conv1d(layout)
    if dtype in (torch.bfloat16, torch.float16):
        short_conv.test_short_conv_rounds_to_16_bits_as_torch_does(layout, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seqlen", [1, 3, 63, 129])
def test_monarch_mixer(seqlen: int, dtype: torch.dtype, on_neon: Aarch64) -> None:
    monarch_mixer.test_monarch_mixer_at_awkward_lengths_under_a_ragged_mask(seqlen, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("seqlen", "width"), [(2, 7), (33, 2), (150, 3)])
def test_monarch_mixer_gradients(seqlen: int, width: int, dtype: torch.dtype, on_neon: Aarch64) -> None:
    monarch_mixer.test_monarch_mixer_gradients_match_the_reference(seqlen, width, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 31, 193])
def test_the_fused_mlp_and_its_gradient(tokens: int, dtype: torch.dtype, on_neon: Aarch64) -> None:
    blockdiag.test_the_fused_mlp_takes_awkward_sizes(tokens, HERE, dtype)
    blockdiag.test_the_gradient_of_the_fused_mlp_takes_awkward_sizes(tokens, HERE, dtype)
    blockdiag.test_the_fused_mlp_matches_dense_matrices(2, 4, HERE, dtype)
    blockdiag.test_the_gradient_of_the_fused_mlp_matches_dense_matrices(4, 2, HERE, dtype)


def test_the_gate_of_the_fused_mlp(on_neon: Aarch64) -> None:
    blockdiag.test_the_gate_of_the_fused_mlp_is_the_exact_gelu(HERE)


def test_bfloat16_by_its_instructions() -> None:
    """The row with BF16 instructions rounds as the others do, and has the same bound."""
    machine = Aarch64("neon_bf16")
    with machine:
        for layout in ("bdl", "bld"):
            short_conv.test_short_conv_rounds_to_16_bits_as_torch_does(layout, torch.bfloat16)
        fft_conv.test_fft_conv_matches_the_direct_sum(300, torch.bfloat16)
        monarch_mixer.test_monarch_mixer_gradients_match_the_reference(33, 3, torch.bfloat16)
        blockdiag.test_the_fused_mlp_takes_awkward_sizes(31, HERE, torch.bfloat16)
    assert len(machine.calls) > 8
    machine.close()


def test_an_encoder(neon: Aarch64) -> None:
    """States of a small model, as near to those in float64 as this machine's own float32."""
    from tiny import tiny_model

    model = tiny_model()
    ids = torch.randint(5, 40, (2, 50))
    mask = torch.ones(2, 50, dtype=torch.int64)
    mask[1, 30:] = 0
    with torch.no_grad():
        with neon:
            ours = model(ids, attention_mask=mask).last_hidden_state
        assert {"fft_conv", "monarch_mixer"} & set(neon.calls[-8:])
        here = model(ids, attention_mask=mask).last_hidden_state
        exact = model.double()(ids, attention_mask=mask).last_hidden_state
    assert_matches(ours, exact, bound=2 * relative_error(here, exact))


# ---- instructions ----

TRACE = re.compile(r"^Trace \d+: 0x[0-9a-f]+ \[[0-9a-f]+/([0-9a-f]+)/")
INSTRUCTION = re.compile(r"^0x([0-9a-f]+):\s+[0-9a-f]{8}\s+([a-z0-9.]+)")


def executed(log: Path, inside: Callable[[int], bool]) -> Counter[str]:
    """How often each kind of instruction was executed, of blocks whose address is `inside`, from qemu's log."""
    blocks: dict[int, Counter[str]] = {}
    traces: Counter[str] = Counter()
    block: Counter[str] = Counter()
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("Trace"):
                traces[line] += 1
            elif line.startswith("IN:"):
                block = Counter()
            elif match := INSTRUCTION.match(line):
                if not block:
                    blocks[int(match[1], 16)] = block
                block[match[2]] += 1
    total: Counter[str] = Counter()
    for line, times in traces.items():
        if (match := TRACE.match(line)) and inside(at := int(match[1], 16)):
            for name, number in blocks[at].items():
                total[name] += times * number
    return total


def functions(isa: str) -> list[range]:
    """Where the code of a row lies in the library of the kernels."""
    (library,) = program().parent.rglob("libm2ops_kernels.so")
    nm = subprocess.run(["aarch64-linux-gnu-nm", "-S", library], capture_output=True, text=True, check=True).stdout
    found = re.findall(rf"^(\w+) (\w+) [tTuW] \w*2m2{len(isa)}{isa}12_GLOBAL__N_1", nm, re.M)
    return [range(int(start, 16), int(start, 16) + int(size, 16)) for start, size in found]


def instructions(isa: str, operator: str, arguments: tuple[Any, ...], folder: Path) -> Counter[str]:
    """Those of the kernels of a row in one call."""
    log, code = folder / f"{isa}.log", functions(isa)
    machine = Aarch64(isa, "-d", "in_asm,exec,nochain", "-D", str(log))
    base = machine.base()
    machine.call(operator, *arguments)
    machine.close()
    return executed(log, lambda at: any(at - base in function for function in code))


def floating(counts: Counter[str]) -> int:
    return sum(n for name, n in counts.items() if re.match(r"fn?m?(add|sub|mul|mla|mls|neg|div|abs)\b", name))


def arguments_of(operator: str) -> tuple[Any, ...]:
    if operator == "blockdiag_glu_tiles":
        return torch.randn(32, 96), torch.randn(2, 96, 48), torch.randn(2, 48, 48), None
    if operator == "short_conv":
        return torch.randn(1, 64, 16), torch.randn(16, 3), torch.randn(16), True
    size = int(operator.removeprefix("fft_conv "))
    rows = [torch.randn(1, 1, size) for _ in range(3)]
    return rows[0], torch.randn(1, 2 * size), torch.randn(1), rows[1], rows[2], False


@pytest.mark.parametrize("operator", ["fft_conv 256", "fft_conv 4096", "short_conv", "blockdiag_glu_tiles"])
def test_four_lanes_take_a_quarter_of_the_instructions(operator: str, tmp_path: Path) -> None:
    """At most 1.3 times a quarter of what the same source takes with one lane, and the same of arithmetic alone."""
    arguments, name = arguments_of(operator), operator.split()[0]
    neon, scalar = (instructions(isa, name, arguments, tmp_path) for isa in ("neon", "scalar"))
    print(f"{operator}: NEON {neon.total()}, arithmetic {floating(neon)}; scalar {scalar.total()}, {floating(scalar)}")
    assert 0.9 < 4 * floating(neon) / floating(scalar) < 1.3
    assert 0 < 4 * neon.total() / scalar.total() < 1.3
