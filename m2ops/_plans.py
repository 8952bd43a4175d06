"""Plans of the CPU transforms: which factors a length is built from, and a search for the fastest on this machine.

What a search finds is kept in a file, by CPU and instruction set, and used from the next import on: the environment's
M2OPS_PLANS, else m2ops/fft_plans.json in the user's cache folder. `python -m m2ops plans` shows and searches.
Test: tests/ops/test_plan.py. The usual factors and why: csrc/plan/fft_plan.cpp, docs/kernels.md.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2ops._library import binding

PLANS_VARIABLE = "M2OPS_PLANS"
ROUNDS = 9
# A plan must be this much faster than the usual one to take its place: less is noise.
WORTH = 1.03


@dataclass(frozen=True)
class FftPlan:
    """A transform of fft_size = outer * n1 * n2 points: radices of the columns (n1) and of the rows (n2), in order.

    flops: operations of one gated convolution with the spectrum given.
    """

    fft_size: int
    outer: int
    n1: int
    n2: int
    radices1: tuple[int, ...]
    radices2: tuple[int, ...]
    flops: float

    def __str__(self) -> str:
        columns, rows = ("*".join(map(str, radices)) for radices in (self.radices1, self.radices2))
        return f"{self.fft_size} = {self.outer} x {self.n1} ({columns}) x {self.n2} ({rows})"


@dataclass(frozen=True)
class SearchedPlan:
    """The fastest plan found, and seconds of one row of a convolution under it and under the usual one."""

    plan: FftPlan
    seconds: float
    usual_seconds: float


def fft_plan(seqlen: int) -> FftPlan:
    """The plan by which the CPU kernels convolve `seqlen` positions. Raises ValueError unless 1 <= seqlen <= 2^22."""
    return _described(binding.fft_plan(binding.fft_size(seqlen)))


def _described(plan: Any) -> FftPlan:
    return FftPlan(
        plan.size, plan.outer, plan.n1, plan.n2, tuple(plan.radices1), tuple(plan.radices2), float(plan.flops)
    )


def machine_name() -> str:
    """What plans are kept by: the CPU's name and the instruction set in use."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return f"{cpu}, {binding.current_isa()}"


def plans_file() -> Path:
    """Where plans are kept."""
    chosen = os.environ.get(PLANS_VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(cache) / "m2ops" / "fft_plans.json"


def search_fft_plans(
    seqlens: Iterable[int], *, progress: Callable[[int, int], None] | None = None
) -> list[SearchedPlan]:
    """Time every plan for each of `seqlens` in turn and keep the fastest in the file; one thread, seconds a length.

    They take effect in processes started later: spectra made in this one keep their order. `progress` is called with
    the lengths done and the lengths in all. Raises ValueError unless every length is in 1 .. 2^22, OSError if the file
    cannot be written; then the file is as it was.
    """
    sizes = sorted({binding.fft_size(seqlen) for seqlen in seqlens})
    kept, found = _read(plans_file()), []
    for done, size in enumerate(sizes):
        if progress is not None:
            progress(done, len(sizes))
        found.append(_search(size))
    mine = kept.setdefault(machine_name(), {})
    mine.update({str(item.plan.fft_size): [item.plan.outer, item.plan.n1] for item in found})
    _write(plans_file(), kept)
    return found


def _search(size: int) -> SearchedPlan:
    plans = [binding.fft_plan(size, *factors) for factors in binding.fft_factors(size)]
    times: list[list[float]] = [[] for _ in plans]
    for _ in range(ROUNDS):  # in turn, so that what else goes on disturbs all alike
        for plan, seconds in zip(plans, times, strict=True):
            seconds.append(binding.time_convolution(plan))
    medians = [statistics.median(seconds) for seconds in times]
    usual = binding.usual_fft_factors(size)
    usual_seconds = medians[[(plan.outer, plan.n1) for plan in plans].index(usual)]
    best = min(range(len(plans)), key=medians.__getitem__)
    if medians[best] * WORTH > usual_seconds:
        return SearchedPlan(_described(binding.fft_plan(size, *usual)), usual_seconds, usual_seconds)
    return SearchedPlan(_described(plans[best]), medians[best], usual_seconds)


def _read(path: Path) -> dict[str, dict[str, list[int]]]:
    if not path.is_file():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {str(machine): {str(int(n)): [int(f) for f in plan] for n, plan in plans.items()}
                for machine, plans in kept.items()}  # fmt: skip
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"m2ops: {path} must hold plans as search_fft_plans writes them ({error}); delete it"
        ) from error


def _write(path: Path, kept: dict[str, dict[str, list[int]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(kept, file, indent=1)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def use_kept_plans() -> None:
    """Use what the file holds for this machine; called once, at import.

    Raises ValueError naming the file if it cannot be used.
    """
    path = plans_file()
    try:
        kept = _read(path)
    except OSError as error:
        if os.environ.get(PLANS_VARIABLE):
            raise ValueError(
                f"m2ops: {PLANS_VARIABLE} names {path}, which cannot be read ({error.strerror})"
            ) from error
        return  # a home that this process may not enter: the usual plans serve
    plans = kept.get(machine_name(), {}) if kept else {}
    try:
        for size, factors in plans.items():
            binding.choose_fft_factors(int(size), *factors)
    except (ValueError, TypeError) as error:
        raise ValueError(f"m2ops: {path} holds a plan that this version cannot use ({error}); delete it") from error
