"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere, nothing under `--quiet`.

One display, `shown`, takes labels, fractions and words. Over it lie a function for each way in which the library
reports its work: units done (`counted`), stages of several names (`staged`), training (`training_progress`), and work
that reports nothing (`announced`).
Test: tests/cli/test_progress.py.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars

if TYPE_CHECKING:
    from m2bert.train.budget import Progress

SECONDS_BEFORE_NOTICE = 2.0
SECONDS_BETWEEN_LINES = 10.0

Show = Callable[[str, float | None, str], None]
"""Called with a label, the fraction of it that is done (0 to 1; None while that is not known), and words about it."""
Report = Callable[[int, int], None]
"""Called with the units done and the units in all; 0 in all while that is not known."""
Stages = Callable[[str, float], None]
"""Called with the label of a stage ("qmsum: documents") and the fraction of it that is done, 0 to 1."""

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether this process keeps progress and notices to itself; errors are told in any case."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether this process keeps progress and notices to itself."""
    return _quiet


def notice(message: str) -> None:
    """A line for the user on stderr."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


@contextmanager
def shown(*, transient: bool = False) -> Iterator[Show]:
    """A bar per label on a terminal; elsewhere a line per label at its start, every 10 s and at its end.

    transient: the bars vanish when the work is done; lines stay.
    """
    console = Console(stderr=True)
    if _quiet:
        yield lambda label, fraction, words: None
    elif not console.is_terminal:
        yield _lines()
    else:
        # File names and task names are shown as they are: square brackets in them are no markup.
        label_column = TextColumn("{task.description}", markup=False)
        words_column = TextColumn("{task.fields[words]}", markup=False)
        columns = (label_column, BarColumn(bar_width=16), TaskProgressColumn(), words_column, TimeElapsedColumn())
        with ProgressBars(*columns, console=console, transient=transient) as bars:
            yield _bars(bars)


def _bars(bars: ProgressBars) -> Show:
    ids = {}

    def show(label: str, fraction: float | None, words: str) -> None:
        if label not in ids:
            ids[label] = bars.add_task(label, total=None, words=words)
        total = None if fraction is None else 1.0
        bars.update(ids[label], total=total, completed=fraction or 0.0, words=words)

    return show


def _lines() -> Show:
    last: dict[str, float] = {}

    def show(label: str, fraction: float | None, words: str) -> None:
        now = time.monotonic()
        ended = fraction is not None and fraction >= 1.0
        if label not in last or ended or now - last[label] >= SECONDS_BETWEEN_LINES:
            last[label] = now
            share = "" if fraction is None else f"{fraction:.0%}"
            notice(f"{label}: {', '.join(part for part in (share, words) if part)}")

    return show


@contextmanager
def counted(label: str, unit: str) -> Iterator[Report]:
    """Show the progress of work counted in `unit` ("tokens"): amounts, rate and time left."""
    begun = time.monotonic()
    with shown() as show:

        def report(done: int, total: int) -> None:
            seconds = time.monotonic() - begun
            words = _amounts(done, total, done / seconds if seconds else 0.0, unit)
            show(label, done / total if total else None, words)

        yield report


@contextmanager
def staged() -> Iterator[Stages]:
    """Show the progress of stages, each under its own label."""
    with shown() as show:
        yield lambda label, fraction: show(label, fraction, "")


@contextmanager
def training_progress() -> Iterator[Callable[[Progress], None]]:
    """Show the progress of training: steps, loss, tokens per second and time left."""
    with shown() as show:
        yield lambda progress: show(progress.stage, progress.fraction or None, _describe(progress))


@contextmanager
def announced(message: str) -> Iterator[None]:
    """Say what is going on: at once on a terminal; elsewhere when it takes longer than two seconds."""
    if Console(stderr=True).is_terminal:
        with shown(transient=True) as show:
            show(message, None, "")
            yield
        return
    timer = threading.Timer(SECONDS_BEFORE_NOTICE, notice, (f"{message} ...",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def warnings_noticed() -> Iterator[None]:
    """Warnings of the library, such as waiting for another writer, as notices."""
    handler = _Notices()
    logger = logging.getLogger("m2bert")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        notice(f"m2bert: {record.getMessage()}")


def _amounts(done: int, total: int, speed: float, unit: str) -> str:
    """`81,920 of 1,158,687 tokens, 9,210/s, 117 s left`."""
    rate = f", {speed:,.0f}/s" if speed else ""
    of = f" of {total:,}" if total else ""
    left = f", {(total - done) / speed:,.0f} s left" if speed and total > done else ""
    return f"{done:,}{of} {unit}{rate}{left}"


def _describe(progress: Progress) -> str:
    if progress.fraction == 0.0:
        return f"{progress.step:,} texts, {progress.tokens / 1e6:.1f}M tokens"
    if progress.step == 0:
        return f"{progress.tokens / 1e6:.1f}M tokens"
    left = "?" if math.isnan(progress.seconds_left) else time.strftime("%H:%M:%S", time.gmtime(progress.seconds_left))
    return f"step {progress.step:,}, loss {progress.loss:.3f}, {progress.tokens_per_second:,.0f} tokens/s, {left} left"
