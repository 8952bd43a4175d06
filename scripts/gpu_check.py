"""Checks and times m2ops on a machine that has a GPU: `python scripts/gpu_check.py`.

Needs the built package and torch with CUDA; the build itself can come from a machine without a GPU. First
compute-sanitizer, where it is on PATH; then every operator against float64, forward and backward; streams, devices,
CUDA graphs, torch.compile, more than 2^31 elements; then the times against the memory floor (bytes over the copy rate
measured here) and every peer that can be imported. Prints one table, writes one JSON (the form of benchmarks/results),
exits with 1 if a check or a goal failed. Ends within --minutes; what found no time is named in the JSON. `--parts` runs
some of it, `--device cpu` the same on tiny sizes, and judges no goal.
Guide: docs/gpu.md. Operators: scripts/gpu_operators.py. Rows, peers and goals: scripts/gpu_times.py.
Test: tests/cuda/test_gpu_check.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import m2ops
from m2ops._library import cuda_loaded
from m2ops.testing import assert_matches

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu_times
from gpu_operators import LENGTHS, Check, compare, large_checks, operator_checks, random, repeat_checks

SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_SECONDS = 90.0


class Run:
    """What one run has found; `fits(seconds)` is the clock every part asks before it starts."""

    def __init__(self, device: torch.device, minutes: float) -> None:
        self.device, self.deadline = device, time.monotonic() + 60 * minutes
        self.tiny = device.type == "cpu"
        self.checks: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.goals: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []

    def fits(self, part: str, seconds: float) -> bool:
        left = self.deadline - time.monotonic()
        if left < seconds:
            self.skip(part, f"needs {seconds:.0f} s, {max(left, 0):.0f} s are left")
        return left >= seconds

    def skip(self, part: str, reason: str) -> None:
        self.skipped.append({"part": part, "reason": reason})

    def check(self, name: str, action: Callable[[], None]) -> None:
        """Run one check; any error is a failed check, not the end of the run."""
        if sys.stderr.isatty():
            print(f"\r\033[K{name}", end="\r", file=sys.stderr, flush=True)
        try:
            action()
            error = ""
        except Exception as problem:
            error = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem).strip() else ''}"
        self.checks.append({"check": name, "passed": not error, "error": error})


def sample_call(device: torch.device) -> tuple[Callable[[], Tensor], Tensor]:
    """A call of the short and the long convolution, and the input it reads."""
    x, weight, k = (
        torch.randn(2, 4, 300, device=device),
        torch.randn(4, 3, device=device),
        torch.randn(4, 300, device=device),
    )
    return lambda: m2ops.fft_conv(m2ops.short_conv(x, weight), k), x


def check_compile(device: torch.device) -> None:
    call, _ = sample_call(device)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_matches(compiled(), call().double())


def check_side_stream(device: torch.device) -> None:
    call, x = sample_call(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    exact = call().double() * 2
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would read x before it is doubled
        x.mul_(2)
        out = call()
    torch.cuda.current_stream(device).wait_stream(stream)
    assert_matches(out, exact)


def check_graph(device: torch.device) -> None:
    call, x = sample_call(device)
    call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert_matches(out, call().double())


def check_second_device(device: torch.device) -> None:
    other = torch.device("cuda", 1)
    call, _ = sample_call(other)
    assert torch.cuda.current_device() == (device.index or 0) and call().device == other
    compare(m2ops.short_conv, m2ops.short_conv_ref, [random(other, 2, 3, 50), random(other, 3, 3)], True)


def machinery_checks(run: Run) -> Iterator[Check]:
    """Streams, devices, graphs, the compiler, large tensors: what is not arithmetic."""
    device = run.device
    yield from repeat_checks(device, (60, 130) if run.tiny else (300, 4096, 8192, 40000))
    yield "torch.compile, whole graph", partial(check_compile, device)
    if device.type == "cpu":
        yield from large_checks(device, tiny=True)
        run.skip("streams, graphs, devices, 2^31 elements", "there is no GPU")
        return
    yield "a side stream", partial(check_side_stream, device)
    yield "a CUDA graph", partial(check_graph, device)
    if torch.cuda.device_count() > 1:
        yield "a second device", partial(check_second_device, device)
    else:
        run.skip("a second device", "there is one GPU")
    if torch.cuda.mem_get_info(device)[0] > 32 * 2**30:
        yield from large_checks(device, tiny=False)
    else:
        run.skip("2^31 elements", "needs 32 GB of free memory")


def check_sanitizer(tool: str, seconds: float) -> None:
    """The operators at small sizes under compute-sanitizer, allocations not pooled, so that it sees each."""
    command = [
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        __file__,
        "--operators-only",
    ]
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode != 9, next((line for line in done.stdout.splitlines() if "=====" in line), "errors found")
    assert "checks passed" in done.stdout, f"the run ended with {done.returncode}"


def sanitizers(run: Run) -> None:
    if run.device.type == "cpu" or shutil.which("compute-sanitizer") is None:
        run.skip("compute-sanitizer", "there is no GPU" if run.tiny else "it is not on PATH")
        return
    for tool in SANITIZER_TOOLS:
        if run.fits(f"compute-sanitizer {tool}", SANITIZER_SECONDS):
            run.check(f"compute-sanitizer {tool}", partial(check_sanitizer, tool, SANITIZER_SECONDS))


def correctness(run: Run) -> None:
    lengths = (1, 63, 130) if run.tiny else LENGTHS
    for name, action in operator_checks(run.device, lengths):
        if run.fits(name, 1.0):
            run.check(name, action)
    for name, action in machinery_checks(run):
        if run.fits(name, 10.0 if not run.tiny else 1.0):
            run.check(name, action)


def machine(device: torch.device) -> dict[str, Any]:
    facts = {"torch": torch.__version__, "m2ops": m2ops.__version__, "python": platform.python_version()}
    if device.type == "cpu":
        return {"cpu": platform.processor() or platform.machine(), **facts}
    return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, **facts}


def print_report(run: Run) -> None:
    failed = [c for c in run.checks if not c["passed"]]
    for check in failed:
        print(f"FAIL  {check['check']}: {check['error']}")
    print(f"{len(run.checks) - len(failed)} of {len(run.checks)} checks passed")
    gpu_times.print_rows(run.rows)
    for goal in run.goals:
        verdict = {True: "pass", False: "FAIL", None: "not judged"}[goal["passed"]]
        print(f"{verdict}  {goal['goal']}: {goal['got']}, wanted {goal['wanted']}")
    for part in run.skipped:
        print(f"left out  {part['part']}: {part['reason']}")


# In the order of work: what may be wrong with all of it first.
PARTS: dict[str, Callable[[Run], None]] = {
    "sanitizer": sanitizers,
    "checks": correctness,
    "times": gpu_times.measure,
}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a try on tiny sizes (default cuda)")
    parser.add_argument("--minutes", type=float, default=15.0, help="time budget (default 15)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run (default all)")
    parser.add_argument("--json", type=Path, help="file to write (default benchmarks/results/DATE-DEVICE.json)")
    parser.add_argument("--operators-only", action="store_true", help="small operator checks, no times, no file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run everything; 0 if all checks and goals passed, 1 if not, 2 if there is nothing to run on."""
    args = arguments(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not (torch.cuda.is_available() and cuda_loaded):
        missing = "libm2ops_cuda.so is not in the package" if torch.cuda.is_available() else "torch sees no GPU"
        print(f"gpu_check: --device {args.device} needs a GPU and the CUDA library, but {missing}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    if device.type == "cpu":
        torch.set_num_threads(1)  # tiny sizes
    run = Run(device, args.minutes)
    if args.operators_only:
        for name, action in operator_checks(device, (1, 130)):
            run.check(name, action)
        print_report(run)
        return int(not all(c["passed"] for c in run.checks))
    for name, part in PARTS.items():
        if name in args.parts:
            part(run)
        else:
            run.skip(name, "not asked for")
    print_report(run)
    name = str(machine(device).get("gpu", "cpu")).lower().replace(" ", "-")
    path = args.json or Path(__file__).resolve().parent.parent / f"benchmarks/results/{date.today()}-{name}.json"
    parts = {"checks": run.checks, "rows": run.rows, "goals": run.goals, "skipped": run.skipped}
    path.write_text(json.dumps({"machine": machine(device), **parts}, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return int(any(entry["passed"] is False for entry in (*run.checks, *run.goals)))


if __name__ == "__main__":
    sys.exit(main())
