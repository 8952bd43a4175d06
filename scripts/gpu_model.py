"""How long the CUDA kernels take on an H200, without one: `python scripts/gpu_model.py`.

Launches are those of the operators at the sizes of benchmarks/results (sass/recording.py), machine code is that of the
library (sass/binary.py). A block of it is run for its exact way and addresses (sass/threads.py), and what it did is
replayed on one multiprocessor (sass/multiprocessor.py, sass/prediction.py). Kernels without products on tensor cores
come out as measured; those with them took 1.27 times as long as simulated, all of them: what mma.sync costs beside its
unit is not published, and enters as that one factor.
Prints a table: what was predicted beside what an H200 took, and what bounds it. A row whose schedulers mostly wait for
global memory is outside of what the model can say, and marked.
Guide: docs/gpu.md. Test: tests/cuda/test_gpu_model.py.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))
from sass.binary import Binary  # noqa: E402
from sass.prediction import Estimate, Memory, Walk, of_blocks, of_units  # noqa: E402
from sass.recording import PROCESSORS, Recorded, Recorder  # noqa: E402

MEASURED = ROOT / "benchmarks/results/2026-11-27-nvidia-h200.json"
# The same for all kernels with products on tensor cores, and for all without; fitted to MEASURED.
TENSOR_CORE_FACTOR, OTHER_FACTOR = 1.27, 1.0
HOST_SECONDS = 50e-6  # of a call between two events, the way the rows of MEASURED were timed
ALIGNMENT = 512  # bytes, of what a GPU's allocator gives
SLAB = 4096  # positions of all rows that a block of the short kernel works on at a time


@dataclass(frozen=True)
class Problem:
    """A call of operators, the tensors of which a block reads its own part, and those that other blocks read too."""

    call: Callable[[Any], object]
    streamed: tuple[Tensor, ...]
    shared: tuple[Tensor, ...] = ()

    def memory(self, launches: Sequence[Recorded] = ()) -> Memory:
        """Of tensors, and of what launches keep between them in scratch memory, which is in the L2 cache. The constants
        of a transform of 32,768 positions are more than its blocks leave room for in the L1 cache: what is not
        streamed is from L2."""
        streamed, shared = (
            [(x.data_ptr(), x.data_ptr() + x.nbytes) for x in xs] for xs in (self.streamed, self.shared)
        )
        for launch in launches:
            if launch.kernel.startswith("spectrum_prep"):  # spectra, sums of gradients over the batch, exponents
                _, size, *_, spectra, exponents = struct.unpack_from("<7Q", launch.arguments)
                shared.append((spectra, exponents) if size < 32768 else (0, 1 << 64))
        return streamed, shared


def allocated(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor where a GPU's allocator would put it: what an access touches depends on its address."""
    size = math.prod(shape) * dtype.itemsize
    memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8)
    start = -memory.data_ptr() % ALIGNMENT
    return memory[start : start + size].view(dtype).view(shape)


def convolution(dtype: torch.dtype, batch: int, dim: int, seqlen: int, backward: bool = False) -> Problem:
    """fft_conv, gated and bidirectional, its spectrum given, or its gradients."""
    u, pre, post, dout = rows = tuple(allocated(batch, dim, seqlen, dtype=dtype) for _ in range(4))
    spectrum, skip = allocated(dim, 2 * max(seqlen, 256)), allocated(dim)
    args = (u, spectrum, skip, pre, post, False)
    if backward:
        return Problem(lambda ops: ops.fft_conv_bwd(dout, *args), rows, (spectrum,))
    return Problem(lambda ops: ops.fft_conv(*args), rows, (spectrum,))


def glu(dtype: torch.dtype, tokens: int, inner: int = 768) -> Problem:
    """blockdiag_glu of 768 channels, `inner` hidden ones in each of four blocks."""
    shapes = ((tokens, 768), (4, 2 * inner, 192), (4, 192, inner))
    x, w_in, w_out = (allocated(*shape, dtype=dtype) for shape in shapes)
    return Problem(lambda ops: ops.blockdiag_glu_fused(x, w_in, w_out, None), (x,), (w_in, w_out))


def short_convolution(dtype: torch.dtype, batch: int, seqlen: int, dim: int) -> Problem:
    x, weight, bias = allocated(batch, seqlen, dim, dtype=dtype), allocated(dim, 3), allocated(dim)
    return Problem(lambda ops: ops.short_conv(x, weight, bias, True), (x,))


@dataclass(frozen=True)
class Case:
    """A row: its place among the measured ones, its problem, and for kernels that walk over units of work how many a
    block gets, a problem with a given number of them in a given number of stretches, and positions of a unit."""

    group: str
    name: str
    problem: Callable[[], Problem]
    small: Callable[[int, int], Problem] | None = None
    units: Callable[[int], float] = lambda grid: 1.0  # of a block, where there are `grid` of them
    stretches: float = 1.0
    few: tuple[int, int] = (2, 3)  # units of the small problems
    processors: int = PROCESSORS  # that they are recorded for
    positions: int = 256  # of a unit, or of a block

    @property
    def key(self) -> str:
        return f"{self.group} {self.name}"


@dataclass(frozen=True)
class Row:
    """What is said of a case: predicted seconds, measured seconds if there are any, and its launches."""

    case: Case
    seconds: float
    measured: float | None
    launches: tuple[Estimate, ...]

    @property
    def main(self) -> Estimate:
        return max(self.launches, key=lambda x: x.seconds)

    @property
    def ratio(self) -> float | None:
        """Predicted over measured, of which the host's part is taken off."""
        return None if self.measured is None else self.seconds / (self.measured - HOST_SECONDS)

    @property
    def instructions(self) -> float:
        """Instructions of a warp for 256 positions, on the steady path."""
        return self.main.unit.instructions * 256 / self.case.positions


def fft_case(dtype: torch.dtype, seqlen: int, batch: int = 64, dim: int = 768) -> Case:
    name = f"{str(dtype).removeprefix('torch.')} {batch} x {dim} x {seqlen}"
    group = "fft_conv, gated, bidirectional"
    whole = lambda: convolution(dtype, batch, dim, seqlen)  # noqa: E731
    if dtype == torch.float32 or seqlen > SLAB:
        return Case(group, name, whole, positions=seqlen)
    rows = SLAB // max(seqlen, 256)  # of a slab
    slabs = math.ceil(batch / rows)
    small = lambda units, channels: convolution(dtype, units // channels * rows, channels, seqlen)  # noqa: E731
    stretches = dim / PROCESSORS if slabs < 32 else 1.0  # a channel of many slabs starts seldom
    return Case(group, name, whole, small, lambda grid: slabs * dim / grid, stretches, (2, 4), 1, SLAB)


def backward_case(seqlen: int, batch: int = 64, dim: int = 768) -> Case:
    """The gradients alone, which were measured only together with other launches."""
    name, rows = f"bfloat16 {batch} x {dim} x {seqlen}", max(1, SLAB // seqlen)  # of a slab
    whole = lambda: convolution(torch.bfloat16, batch, dim, seqlen, True)  # noqa: E731
    small = lambda units, _: convolution(torch.bfloat16, units * rows, dim, seqlen, True)  # noqa: E731
    units = lambda grid: batch // rows * dim / grid  # noqa: E731
    return Case("fft_conv, gradients alone", name, whole, small, units, few=(1, 2), positions=max(seqlen, SLAB))


def glu_case(tokens: int) -> Case:
    small = lambda units, _: glu(torch.bfloat16, tokens, 32 * units)  # noqa: E731
    name = f"bfloat16 {tokens} tokens, 768 -> 3072 -> 768"
    return Case("blockdiag_glu", name, lambda: glu(torch.bfloat16, tokens), small, lambda grid: 24.0, positions=256)


def short_case(dtype: torch.dtype) -> Case:
    name = f"{str(dtype).removeprefix('torch.')} 16 x 4096 x 2304, width 3"
    return Case("short_conv", name, lambda: short_convolution(dtype, 16, 4096, 2304), positions=2048)


def cases() -> Iterator[Case]:
    """All rows, those that were measured first."""
    for seqlen in (1024, 4096, 8192, 32768):
        yield fft_case(torch.bfloat16, seqlen)
    yield glu_case(65536)
    for seqlen in (1024, 4096, 8192):
        yield fft_case(torch.float32, seqlen)
    yield short_case(torch.float32)
    yield short_case(torch.bfloat16)
    yield fft_case(torch.bfloat16, 256)
    for seqlen in (1024, 4096, 8192):
        yield backward_case(seqlen)


def factor(estimate: Estimate) -> float:
    """Measured over simulated."""
    return TENSOR_CORE_FACTOR if estimate.unit.products else OTHER_FACTOR


class Model:
    """Predicts cases from a library's machine code and the emulated library's launches."""

    def __init__(self, library: Path, emulated: Path) -> None:
        self.binary, self.recorder = Binary(library, "90"), Recorder(emulated)
        rows = json.loads(MEASURED.read_text(encoding="utf-8"))["rows"]
        self.measured = {f"{r['group']} {r['case']}": r["seconds"].get("ours") for r in rows if "seconds" in r}

    def row(self, case: Case) -> Row:
        problem = case.problem()
        launches = self.recorder.launches(problem.call)
        estimates = tuple(self._estimate(case, launch, problem, launches) for launch in launches)
        later = case.key.startswith("short_conv bfloat16") or any(x.kernel.startswith("tc_conv") for x in launches)
        measured = None if later else self.measured.get(case.key)  # the kernel came after the measurement
        return Row(case, sum(factor(x) * x.seconds for x in estimates), measured, estimates)

    def _estimate(self, case: Case, launch: Recorded, problem: Problem, launches: Sequence[Recorded]) -> Estimate:
        if case.small is None or launch.kernel.startswith(("fft_conv_bwd_sum", "spectrum_prep")):
            return of_blocks(self.binary, launch, problem.memory(launches))
        few, more = case.few
        wanted = [(few, 1), (more, 1), (more, 2)] if case.stretches > 1 else [(few, 1), (more, 1)]
        walks = [self._walk(case, case.small(*sizes), launch.kernel, *sizes) for sizes in wanted]
        return of_units(self.binary, launch, walks, case.units(launch.grid), case.stretches)

    def _walk(self, case: Case, problem: Problem, kernel: str, units: int, stretches: int) -> Walk:
        found = self.recorder.launches(problem.call, case.processors)
        return Walk(next(x for x in found if x.kernel == kernel), problem.memory(found), units, stretches)


def table(rows: Sequence[Row]) -> str:
    """The rows as a table of Markdown."""
    names = (
        "row",
        "predicted ms",
        "measured",
        "ratio",
        "instructions",
        "wavefronts",
        "sectors",
        "registers",
        "issue",
        "bound",
    )
    out = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        unit, busy = row.main.unit, row.main.busy
        measured = "" if row.measured is None else f"{1000 * row.measured:.3f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        most = max((share, name) for name, share in busy.items() if name != "issue")
        bound = "latency: outside" if row.main.latency_bound else f"{most[1]} {most[0]:.0%}"
        out.append(
            f"| {row.case.key} | {1000 * row.seconds:.3f} | {measured} | {ratio} | {row.instructions:.0f} | "
            f"{unit.conflicts:.2f} | {unit.scatter:.2f} | {row.main.registers} | {busy['issue']:.0%} | {bound} |"
        )
    return "\n".join(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--library", type=Path, default=ROOT / "m2ops/libm2ops_cuda.so", help="machine code for sm_90")
    parser.add_argument("--emulated", type=Path, default=ROOT / "build/testing/libm2ops_emulated.so",
                        help="what records launches; the tests build it")  # fmt: skip
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args = parser.parse_args(argv)
    model, rows = Model(args.library, args.emulated), []
    for case in cases():
        if args.only in case.key:
            if sys.stderr.isatty():
                print(f"\r\033[K{case.key}", end="\r", file=sys.stderr, flush=True)
            rows.append(model.row(case))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
