"""The progress display: bars on a terminal, lines elsewhere at the start, now and then and at the end, or nothing."""

from __future__ import annotations

import io
import logging
import sys
import time
from typing import Any

import pytest

from m2bert.cli import progress
from m2bert.train.budget import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture()
def clock(monkeypatch: Any) -> list[float]:
    """The seconds of time.monotonic, set by the test."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def open_terminal(monkeypatch: Any) -> Terminal:
    """A terminal as stderr. No fixture: pytest puts its own stderr back before the test begins."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return made


@pytest.fixture()
def quiet() -> Any:
    progress.set_quiet(True)
    yield
    progress.set_quiet(False)


def work() -> None:
    """Work of every kind that is reported."""
    with progress.counted("embedding", "tokens") as count:
        count(5, 10)
    with progress.staged() as stage:
        stage("[qmsum]: documents", 0.5)
    with progress.training_progress() as train:
        train(Progress("pretraining", step=3, fraction=0.25, loss=2.5, tokens_per_second=1000, seconds_left=61))
    with progress.announced("reading [texts]"):
        pass
    with progress.shown() as show:
        show("test documents", None, "7 texts")


def test_lines_come_at_the_start_every_ten_seconds_and_at_the_end(clock: Any, capsys: Any) -> None:
    with progress.staged() as stage:
        for seconds, fraction in ((0, 0.0), (4, 0.3), (9.9, 0.4), (10, 0.5), (19, 0.6), (20.5, 1.0)):
            clock[0] = 100 + seconds
            stage("a", fraction)
            if fraction == 0.5:
                stage("b", 0.0)
    assert capsys.readouterr().err.splitlines() == ["a: 0%", "a: 50%", "b: 0%", "a: 100%"]


def test_counted_work_tells_amounts_rate_and_time_left(clock: Any, capsys: Any) -> None:
    with progress.counted("embedding", "tokens") as report:
        for seconds, done, total in ((0, 0, 6000), (10, 2000, 6000), (20, 3000, 0), (30, 6000, 6000)):
            clock[0] = 100 + seconds
            report(done, total)
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 0%, 0 of 6,000 tokens",
        "embedding: 33%, 2,000 of 6,000 tokens, 200/s, 20 s left",
        "embedding: 3,000 tokens, 150/s",
        "embedding: 100%, 6,000 of 6,000 tokens, 200/s",
    ]


def test_training_tells_stage_step_loss_and_time_left(clock: Any, capsys: Any) -> None:
    with progress.training_progress() as show:
        show(Progress("tokenising", step=1200, tokens=3_400_000))
        show(Progress("teaching", fraction=0.5, tokens=2_000_000))
        show(Progress("training", 70, 0.25, tokens_per_second=12_345.6, seconds_left=3661, loss=2.3456))
    assert capsys.readouterr().err.splitlines() == [
        "tokenising: 1,200 texts, 3.4M tokens",
        "teaching: 50%, 2.0M tokens",
        "training: 25%, step 70, loss 2.346, 12,346 tokens/s, 01:01:01 left",
    ]


def test_a_terminal_gets_bars_with_the_same_words(monkeypatch: Any) -> None:
    terminal = open_terminal(monkeypatch)
    work()
    shown = terminal.getvalue()
    for words in ("embedding", "5 of 10 tokens", "50%", "[qmsum]: documents", "step 3, loss 2.500", "reading [texts]"):
        assert words in shown
    assert "━" in shown and "7 texts" in shown


def test_quiet_work_says_nothing_anywhere(quiet: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "SECONDS_BEFORE_NOTICE", 0.0)
    work()
    progress.notice("indexing")
    with progress.warnings_noticed():
        logging.getLogger("m2bert.test").warning("waiting")
    time.sleep(0.05)
    assert capsys.readouterr() == ("", "")
    terminal = open_terminal(monkeypatch)
    work()
    assert terminal.getvalue() == ""


def test_silent_work_is_announced_after_a_while(capsys: Any, monkeypatch: Any) -> None:
    with progress.announced("reading"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SECONDS_BEFORE_NOTICE", 0.01)
    with progress.announced("reading"):
        time.sleep(0.2)
    assert capsys.readouterr().err == "reading ...\n"


def test_warnings_of_the_library_are_notices(capsys: Any) -> None:
    with progress.warnings_noticed():
        logging.getLogger("m2bert.test").warning("waiting for %s", "another writer")
    logging.getLogger("m2bert.test").debug("never seen")
    assert capsys.readouterr().err == "m2bert: waiting for another writer\n"
