"""How benchmarks are made: validate, then time the peers interleaved in one process, medians, with the error beside.

`pytest benchmarks/ --benchmark-only` prints pytest-benchmark's table and, below it, ratios, errors and the distance
from the limit of the machine. M2OPS_BENCH_JSON=FILE keeps the rows with the machine's facts.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import m2ops
from m2ops.testing import assert_matches, relative_error

THREADS = 2
ROWS: list[dict[str, Any]] = []
Call = Callable[[], Tensor]


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


def seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.fixture(scope="session")
def ceilings() -> dict[str, float]:
    """What the machine reaches here and now: float32 GEMM in FLOP/s, copy in bytes/s (read and write counted)."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    source, target = torch.randn(1 << 25), torch.empty(1 << 25)
    gemm = min(seconds(lambda: torch.mm(a, b)) for _ in range(7))
    copy = min(seconds(lambda: target.copy_(source)) for _ in range(7))
    return {"flops": 2 * 1536**3 / gemm, "bytes": 2 * source.numel() * 4 / copy}


@pytest.fixture
def versus(benchmark: Any, ceilings: dict[str, float]) -> Callable[..., None]:
    """versus(group, ours, peers, exact, bound, flops, bytes): validate, time interleaved, record a row."""

    def run(
        group: str,
        case: str,
        ours: Call,
        peers: dict[str, Call],
        *,
        exact: Tensor | None = None,
        bound: float | None = None,
        flops: float = 0.0,
        nbytes: float = 0.0,
        rounds: int = 7,
    ) -> None:
        error = float("nan")
        if exact is not None:
            out = ours()
            assert_matches(out, exact, bound=bound)
            error = relative_error(out, exact)
        calls = {"ours": ours, **peers}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(seconds(call))
        medians = {name: statistics.median(values) for name, values in times.items()}
        limit = max(flops / ceilings["flops"], nbytes / ceilings["bytes"])
        row = {
            "group": group,
            "case": case,
            "seconds": medians,
            "ratio": {name: medians[name] / medians["ours"] for name in peers},
            "error": error,
            "share_of_limit": limit / medians["ours"] if limit else None,
        }
        ROWS.append(row)
        benchmark.group = group
        benchmark.extra_info.update(row)
        benchmark.pedantic(ours, rounds=3, warmup_rounds=0)

    return run


def machine_facts() -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "threads": THREADS,
        "isa": m2ops.current_isa(),
        "torch": torch.__version__,
        "m2ops": m2ops.__version__,
        "python": platform.python_version(),
    }


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The rows as a table: milliseconds of ours, how many times longer each peer takes, error, share of the limit."""
    if not ROWS:
        return
    terminalreporter.section("ours against the peers (medians, interleaved)")
    facts = machine_facts()
    terminalreporter.write_line(", ".join(f"{name} {value}" for name, value in facts.items()))
    for group in dict.fromkeys(row["group"] for row in ROWS):
        rows = [row for row in ROWS if row["group"] == group]
        terminalreporter.write_line(f"\n{group}")
        for row in rows:
            ratios = "  ".join(f"{name} {ratio:5.2f}x" for name, ratio in row["ratio"].items())
            share = "" if row["share_of_limit"] is None else f"  {row['share_of_limit']:4.0%} of the limit"
            error = "" if row["error"] != row["error"] else f"  error {row['error']:.1e}"
            terminalreporter.write_line(
                f"  {row['case']:<28} {row['seconds']['ours'] * 1e3:9.2f} ms  {ratios}{error}{share}"
            )
    path = os.environ.get("M2OPS_BENCH_JSON")
    if path:
        Path(path).write_text(json.dumps({"machine": facts, "rows": ROWS}, indent=1) + "\n")
