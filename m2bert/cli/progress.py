"""Progress of long work on stderr: bars on a terminal, now and then a line elsewhere.

Tests: tests/cli/test_cli_search.py, tests/cli/test_cli_evaluate.py.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBars
from rich.text import Text

if TYPE_CHECKING:
    from m2bert.train.budget import Progress

SECONDS_BEFORE_NOTICE = 2.0
SECONDS_BETWEEN_LINES = 10.0

Report = Callable[[int, int], None]
"""Called with the units done and the units in all; 0 in all while that is not known."""
Stages = Callable[[str, float], None]
"""Called with the label of a stage ("qmsum: documents") and the fraction of it that is done, 0 to 1."""


class RateColumn(ProgressColumn):
    """Units done and their rate: `81,920 of 1,158,687 tokens, 9,210/s`."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The text of the column."""
        return Text(_amounts(int(task.completed), int(task.total or 0), task.finished_speed or task.speed, self._unit))


@contextmanager
def counted(label: str, unit: str) -> Iterator[Report]:
    """Show the progress of work counted in `unit` ("tokens"): amounts, rate and time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console, label, unit)
        return
    columns = (TextColumn(label), BarColumn(bar_width=16), RateColumn(unit), TimeRemainingColumn())
    # The window of the rate is long, because one batch of a slow model takes seconds.
    with ProgressBars(*columns, console=console, speed_estimate_period=60.0) as bars:
        task = bars.add_task(label, total=None)

        def report(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total or None)

        yield report


@contextmanager
def announced(message: str) -> Iterator[None]:
    """Say what is going on when it takes longer than two seconds."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(message):
            yield
        return
    timer = threading.Timer(SECONDS_BEFORE_NOTICE, _print, (console, f"{message} ..."))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def staged() -> Iterator[Stages]:
    """A bar per stage on a terminal; elsewhere a line per stage at its start, every 10 s and at its end."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _stage_lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with ProgressBars(*columns, console=console) as bars:
        ids = {}

        def on_progress(label: str, fraction: float) -> None:
            if label not in ids:
                ids[label] = bars.add_task(label, total=1.0)
            bars.update(ids[label], completed=fraction)

        yield on_progress


def _stage_lines(console: Console) -> Stages:
    last: dict[str, float] = {}

    def on_progress(label: str, fraction: float) -> None:
        now = time.monotonic()
        if label not in last or fraction >= 1.0 or now - last[label] >= SECONDS_BETWEEN_LINES:
            last[label] = now
            _print(console, f"{label}: {fraction:.0%}")

    return on_progress


def _lines(console: Console, label: str, unit: str) -> Report:
    begun = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        speed = done / (now - begun)
        left = f", {(total - done) / speed:.0f} s left" if speed and total else ""
        _print(console, f"{label}: {_amounts(done, total, speed, unit)}{left}")

    return report


def _amounts(done: int, total: int, speed: float | None, unit: str) -> str:
    rate = f", {speed:,.0f}/s" if speed else ""
    of = f" of {total:,}" if total else ""
    return f"{done:,}{of} {unit}{rate}"


def _print(console: Console, message: str) -> None:
    console.print(message, highlight=False, markup=False, soft_wrap=True)


LINE_EVERY_SECONDS = 15.0


def _describe(progress: Progress) -> str:
    if progress.fraction == 0.0:
        return f"{progress.stage}: {progress.step:,} texts, {progress.tokens / 1e6:.1f}M tokens"
    if progress.step == 0:
        return f"{progress.stage}: {progress.tokens / 1e6:.1f}M tokens"
    left = "?" if math.isnan(progress.seconds_left) else time.strftime("%H:%M:%S", time.gmtime(progress.seconds_left))
    return (
        f"{progress.stage}: step {progress.step:,}  loss {progress.loss:.3f}  "
        f"{progress.tokens_per_second:,.0f} tokens/s  {left} left"
    )


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, otherwise a line on stderr from time to time."""
    console = Console(stderr=True)
    if not console.is_terminal:
        last = [0.0]

        def line(progress: Progress) -> None:
            if time.monotonic() - last[0] >= LINE_EVERY_SECONDS:
                last[0] = time.monotonic()
                print(f"{progress.fraction:6.1%}  {_describe(progress)}", file=sys.stderr, flush=True)

        yield line
        return
    with ProgressBars(TextColumn("{task.description}"), BarColumn(), console=console) as bars:
        task = bars.add_task("starting", total=1.0)
        yield lambda progress: bars.update(task, completed=progress.fraction, description=_describe(progress))
