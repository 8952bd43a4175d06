"""scripts/gpu_model.py: what it computes of machine code is right, it predicts what an H200 took, and what kernels ask
of a GPU stays within bounds. Needs no GPU; machine code is that of tests/cuda/test_cuda_build.py."""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from native import built, find_nvcc, machine_code, needs_emulator

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
pytestmark = [*needs_emulator, pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc (on PATH or in CUDA_HOME)")]


@pytest.fixture(scope="module")
def gpu_model() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("gpu_model")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def model(gpu_model: ModuleType) -> Any:
    return gpu_model.Model(machine_code("90"), built("libm2ops_emulated.so"))


@pytest.fixture(scope="module")
def rows(gpu_model: ModuleType, model: Any) -> dict[str, Any]:
    """The rows that BOUNDS hold, predicted once."""
    return {case.key: model.row(case) for case in gpu_model.cases() if case.key in BOUNDS}


@pytest.fixture(scope="module")
def controls(gpu_model: ModuleType) -> Any:
    return gpu_model.Binary(built("libcontrols.a"), "90")


@dataclass(frozen=True)
class Bound:
    """The most that a row may ask for: predicted milliseconds, instructions of a warp for 256 positions on the steady
    path, and wavefronts of shared memory and sectors of global memory over the fewest."""

    milliseconds: float
    instructions: float
    wavefronts: float = 1.0
    sectors: float = 1.0


CONV = "fft_conv, gated, bidirectional"
# What the kernels take now and a little more: a change that makes a kernel better lowers its bounds, one that makes it
# worse has a reason.
BOUNDS = {
    f"{CONV} bfloat16 64 x 768 x 1024": Bound(0.31, 649),
    f"{CONV} bfloat16 64 x 768 x 4096": Bound(1.14, 649),
    f"{CONV} bfloat16 64 x 768 x 8192": Bound(2.45, 604),
    f"{CONV} bfloat16 64 x 768 x 32768": Bound(17.0, 660),
    "fft_conv, gradients alone bfloat16 64 x 768 x 4096": Bound(3.3, 1930),
    "blockdiag_glu bfloat16 65536 tokens, 768 -> 3072 -> 768": Bound(1.75, 13_700),
    f"{CONV} float32 64 x 768 x 4096": Bound(2.85, 1290),
    "short_conv float32 16 x 4096 x 2304, width 3": Bound(0.46, 601, 1.0, 1.31),
    "short_conv bfloat16 16 x 4096 x 2304, width 3": Bound(0.33, 846, 1.0, 2.34),
}


def faults(estimate: Any, wavefronts: float = 1.0, sectors: float = 1.0) -> list[str]:
    """What a launch asks for beyond the bounds."""
    unit = estimate.unit
    found = {
        "wavefronts": unit.conflicts > wavefronts + 5e-3,
        "sectors": unit.scatter > sectors + 5e-3,
        "waits for memory": estimate.latency_bound,
    }
    return [name for name, wrong in found.items() if wrong]


@pytest.mark.parametrize("key", BOUNDS)
def test_rows_stay_within_their_bounds(rows: dict[str, Any], key: str) -> None:
    row, bound = rows[key], BOUNDS[key]
    assert 0.9 * bound.milliseconds < 1000 * row.seconds <= bound.milliseconds  # a bound that is far away holds nothing
    assert row.instructions <= bound.instructions
    assert faults(row.main, bound.wavefronts, bound.sectors) == []


def test_rows_come_out_as_measured(rows: dict[str, Any]) -> None:
    """Within 15 % of an H200, less the host's part of a call; one factor for all kernels that use tensor cores."""
    measured = {key: row.ratio for key, row in rows.items() if row.ratio is not None}
    assert len(measured) == 5 and all(0.85 <= ratio <= 1.15 for ratio in measured.values()), measured


def launch_of(gpu_model: ModuleType, binary: Any, name: str, arguments: bytes, **shape: int) -> Any:
    kernel = next(full for full in binary.registers if full.startswith(name))
    numbers = {"grid": 4096, "threads": 256, "shared_bytes": 0, **shape}
    return gpu_model.Recorded(kernel, numbers["grid"], numbers["threads"], numbers["shared_bytes"], arguments)


X, OUT = 1 << 40, 1 << 41
MEMORY = [(X, X + (1 << 30)), (OUT, OUT + (1 << 30))], []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("plain", []),
        ("scattered", ["sectors"]),
        ("serialised", ["waits for memory"]),
        ("padded", []),
        ("conflicting", ["wavefronts"]),
    ],
)
def test_bad_ways_to_memory_are_found(gpu_model: ModuleType, controls: Any, name: str, found: list[str]) -> None:
    """Negative controls, each beside its good twin: csrc/testing/machine_code/access.cu."""
    # Two blocks a multiprocessor where it is about latency: many warps hide it.
    shared = {"padded": 32 * 33 * 4, "conflicting": 32 * 32 * 4}.get(name, 100 * 1024)
    launch = launch_of(gpu_model, controls, f"{name}_kernel", struct.pack("<QQ", X, OUT), shared_bytes=shared)
    estimate = gpu_model.of_blocks(controls, launch, MEMORY)
    assert faults(estimate) == found, estimate


def test_integers_come_out_exactly(gpu_model: ModuleType, controls: Any) -> None:
    """Divisions of 32 and 64 bits, signed and not, shifts and masks: csrc/testing/machine_code/access.cu."""
    a, b, c = 77, 4099, 123457
    launch = launch_of(gpu_model, controls, "integers_kernel", struct.pack("<QiIq", OUT, a, b, c), grid=1, threads=32)
    prediction = importlib.import_module("sass.prediction")
    run = prediction.traced(controls.kernel(launch.kernel), launch, MEMORY, 0)
    places = {int(address) - OUT for addresses, _ in run.written for address in addresses}
    turns = range(-16, 16)
    wanted = [
        {32768 + int(t * 12345 / a) for t in turns},
        {65536 + t * 12345 % 2**32 % b for t in turns},
        {2 * 65536 + 32768 + (-1 if t < 0 else 1) * (abs(t * 1000000007) // c) for t in turns},
        {3 * 65536 + 32768 + (t * 777 >> 3) for t in turns},
        {4 * 65536 + (((t << 5) % 2**32 ^ b & 0xFF) & 0xFFFF) for t in turns},
    ]
    assert places == set().union(*wanted)


# Kernels that BOUNDS name too, so that their machine code is read once.
SMALL = {
    "fft_conv bfloat16": lambda ops, x: ops.fft_conv(x(2, 3, 300), x.wide(3, 1024), None, x(2, 3, 300), None, False),
    "fft_conv bfloat16, long": lambda ops, x: ops.fft_conv(x(1, 1, 8001), x.wide(1, 16384), None, None, None, False),
    "fft_conv float32": lambda ops, x: ops.fft_conv(x.wide(1, 2, 4001), x.wide(2, 8192), None, None, None, False),
    "short_conv": lambda ops, x: ops.short_conv(x(2, 67, 6), x.wide(6, 3), None, True),
    "blockdiag_glu": lambda ops, x: ops.blockdiag_glu_fused(x(130, 192), x(1, 64, 192), x(1, 192, 32), None),
}


class Tensors:
    """Makes tensors of bfloat16, or float32."""

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16)

    def wide(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape)


@pytest.mark.parametrize("name", SMALL)
def test_machine_code_writes_every_element_of_its_result_once(gpu_model: ModuleType, model: Any, name: str) -> None:
    """All blocks of a launch run: an address that came out wrong is outside, missing or there twice."""
    results: list[torch.Tensor] = []
    launch = model.recorder.launches(lambda ops: results.append(SMALL[name](ops, Tensors())))[-1]
    out, prediction = results[0], importlib.import_module("sass.prediction")
    written: list[int] = []
    for block in range(launch.grid):
        run = prediction.traced(model.binary.kernel(launch.kernel), launch, MEMORY, block)
        for addresses, size in run.written:
            written.extend(int(a) + byte for a in addresses for byte in range(0, size, out.element_size()))
    first = out.data_ptr()
    assert sorted(written) == list(range(first, first + out.nbytes, out.element_size()))


def replay(gpu_model: ModuleType, warps: int, items: list[Any]) -> Any:
    multiprocessor = importlib.import_module("sass.multiprocessor")
    return multiprocessor.Multiprocessor([[items] * warps]).run()


def test_replay_of_what_is_known(gpu_model: ModuleType) -> None:
    """One warp waits for its own stalls, many are bound by the unit that they all need, loads by the bandwidth."""
    item = importlib.import_module("sass.multiprocessor").Item
    stalls = [item("IADD3", "ALU", 4, 7, 7, ())] * 100
    assert replay(gpu_model, 1, stalls).cycles == pytest.approx(4 * 100, abs=5)
    assert replay(gpu_model, 16, stalls).cycles == pytest.approx(2 * 4 * 100, rel=0.02)  # 4 a scheduler, 2 cycles each
    products = [item("HMMA", "HMMA", 1, 7, 7, ())] * 100
    assert replay(gpu_model, 16, products).cycles == pytest.approx(6.4 * 4 * 100, rel=0.02)
    loads = [item("LDG", "MEMORY", 1, 0, 7, (), cycles=4.0, l2=512, dram=512, latency=700)] * 100
    assert replay(gpu_model, 16, loads).cycles == pytest.approx(1600 * 4, rel=0.1)  # the memory units are ahead
    chain = [item("LDG", "MEMORY", 1, 0, 7, (0,), cycles=1.0, l2=32, dram=32, latency=700)] * 20
    alone = replay(gpu_model, 1, chain)
    assert alone.cycles == pytest.approx(700 * 19, rel=0.02) and alone.idle["LDG"] > 0.9 * alone.cycles


def test_warps_wait_for_each_other_at_barriers(gpu_model: ModuleType) -> None:
    multiprocessor = importlib.import_module("sass.multiprocessor")
    item = multiprocessor.Item
    bar, slow = item("BAR", "NONE", 1, 7, 7, ()), item("IADD3", "ALU", 15, 7, 7, ())
    lines = [[*[slow] * work, bar, slow] for work in (100, 1, 1, 1)]
    assert multiprocessor.Multiprocessor([lines]).run().cycles == pytest.approx(15 * 100 + 15, abs=20)
