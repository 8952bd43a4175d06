"""Reading files in processes of their own, each file within bounds of time and memory, so that none stops the others.

A process lives on from file to file, and is ended, and made anew for the next one, where a file hangs, crashes it, or
takes too much memory.
Test: tests/search/test_reading.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from m2bert.errors import M2BertError
from m2bert.search.formats import FormatError, Parsed
from m2bert.search.sections import Section

# -P: what lies in the working folder, which may be the one that is read, is never taken for a module.
WORKER = (sys.executable, "-P", "-m", "m2bert.search.formats.worker")
SECONDS_TO_START = 120.0
# Files that are read at once: more processes than this wait for the disk.
MOST_AT_ONCE = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Limits:
    """What one file may take to be read. megabytes: of memory, on Linux alone; and the size of plain text, anywhere."""

    seconds: float = 60.0
    megabytes: int = 1024

    def check_size(self, size: int) -> None:
        """Raise FormatError for a file of more bytes."""
        if size > self.megabytes << 20:
            raise FormatError(f"has {size >> 20:,} MB, over the limit of {self.megabytes:,} (--megabytes-per-file)")


class Readers:
    """Processes that read files, for any number of threads; made when they are needed, ended at the end of `with`."""

    def __init__(self, limits: Limits | None = None, command: Sequence[str] = WORKER) -> None:
        self.limits = limits or Limits()
        self._command = [*command, str(self.limits.megabytes)]
        self._idle: list[_Worker] = []
        self._running: set[_Worker] = set()

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in list(self._running):
            self._end(worker)

    def read(self, path: Path) -> Parsed:
        """What is in a file.

        Raises FormatError saying why it cannot be read, naming the bound where one was met, and M2BertError when no
        process for it starts.
        """
        worker = self._worker()
        answer = worker.ask(str(path), self.limits.seconds)
        if answer is None or "memory" in answer:
            self._end(worker)
            raise FormatError(self._reason(answer, worker))
        self._idle.append(worker)
        if "reason" in answer:
            raise FormatError(answer["reason"], holds_nothing=answer["holds_nothing"])
        sections = tuple(Section(start, label) for start, label in answer["sections"])
        lost = tuple((name, reason) for name, reason in answer["lost"])
        return Parsed(answer["text"], sections, answer["guessed"], lost)

    def _worker(self) -> _Worker:
        try:
            return self._idle.pop()
        except IndexError:
            worker = _Worker(self._command)
            self._running.add(worker)
            return worker

    def _end(self, worker: _Worker) -> None:
        self._running.discard(worker)
        worker.end()

    def _reason(self, answer: dict[str, Any] | None, worker: _Worker) -> str:
        memory = f"the limit of {self.limits.megabytes:,} MB of memory (--megabytes-per-file)"
        if answer is not None:
            return f"takes more to read than {memory}"
        if worker.timed_out:
            return f"takes longer to read than the limit of {self.limits.seconds:g} s (--seconds-per-file)"
        return f"ends the process that reads it (code {worker.code}): broken, or beyond {memory}"


class _Worker:
    """One process. timed_out: whether it was ended for taking too long. code: what it ended with."""

    def __init__(self, command: Sequence[str]) -> None:
        self.timed_out = False
        self.code: int | None = None
        self._command = command
        # It finds modules where this process does.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            encoding="utf-8",
        )  # fmt: skip
        self._is_ready = False

    def ask(self, path: str, seconds: float) -> dict[str, Any] | None:
        """What it answers within `seconds` of being ready; None when it ends, or is ended, without an answer."""
        if not self._is_ready:
            self._is_ready = bool(self._line("", SECONDS_TO_START))
        if not self._is_ready:
            raise M2BertError(
                f"read_corpus: a process that reads files must start, got code {self.code}; try "
                f"`{' '.join(self._command)}`, or allow it more memory (Limits)"
            )
        line = self._line(json.dumps(path) + "\n", seconds)
        if not line:
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _line(self, question: str, seconds: float) -> str:
        """A whole line of its answers, in time; empty when there is none and it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(seconds, self._stop)
        timer.start()
        try:
            self._process.stdin.write(question)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
            timer.join()  # it may be stopping the process just now
        if self.timed_out or not line.endswith("\n"):
            self.code = self._process.wait()
            return ""
        return line

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a question it did not read
                    pipe.close()
        self._process.wait()

    def _stop(self) -> None:
        self.timed_out = True
        self._process.kill()
