"""Turns at the model: one thread owns it, and takes batches of a token budget from all requests that wait.

Requests of few tokens are short, all others long. Whoever is short when a batch of long ones ends goes before the next
one: a short request never waits for more than one batch of long ones, and long ones move on under any number of short
ones, which come after them if they come later. Among long requests a batch goes to each in turn, so that a document of
a hundred windows does not hold up one of two.
Test: tests/serve/test_scheduler.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

from m2bert.encoders.protocol import EncodedDocument
from m2bert.serve.limits import HungUpError, Limits, busy, stopping
from m2bert.serve.steps import Kind, Piece, Steps, Work

BATCH_TOKENS = 8192
# A request of so many tokens takes a tenth of a second on two cores; eight of them fill a batch.
SHORT_TOKENS = 1024
# Pieces share a batch where padding them to the same length at most doubles the work; below this it costs nothing.
SHORTEST_PADDED = 32
# A batch takes a second on two cores; a model that is silent for so long is stuck.
SECONDS_STUCK = 120.0

logger = logging.getLogger("m2bert.serve")


@dataclass(frozen=True)
class BatchRun:
    """What went through the model at once: pieces, their tokens, and the seconds it took."""

    pieces: int
    tokens: int
    seconds: float


class Job:
    """One request's texts. `result` waits for their embeddings; `cancel` gives the places back.

    waiting: pieces that have had no turn, of `tokens` together.
    """

    def __init__(self, work: Work, scheduler: Scheduler) -> None:
        self.waiting = sorted(work.pieces, key=lambda piece: -piece.tokens)
        self.tokens = sum(piece.tokens for piece in work.pieces)
        self.open_pieces = len(work.pieces)
        self.short = self.tokens <= SHORT_TOKENS
        self.finish = work.finish
        self.future: Future[list[EncodedDocument]] = Future()
        self._scheduler = scheduler

    def result(self) -> list[EncodedDocument]:
        """The embeddings, when they are made. Raises HungUpError for a cancelled job, and what the model raised."""
        try:
            return self.future.result()
        except CancelledError:
            raise HungUpError from None

    def cancel(self) -> None:
        """Nobody waits for this: what has not begun never will."""
        if self.future.cancel():
            self._scheduler.drop(self)


class Scheduler:
    """The thread that owns a model, and the two queues in front of it. waiting_tokens: in both of them."""

    def __init__(
        self,
        steps: Steps,
        *,
        batch_tokens: int = BATCH_TOKENS,
        limits: Limits | None = None,
        observe: Callable[[BatchRun], None] = lambda run: None,
    ) -> None:
        """batch_tokens: padding included; a batch holds at least one piece, so 1 means one at a time. observe: called
        after every batch, in the thread that ran it."""
        self._steps, self._batch_tokens, self._observe = steps, batch_tokens, observe
        self._limits = limits or Limits()
        self._short: deque[Job] = deque()
        self._long: deque[Job] = deque()
        self.waiting_tokens = 0
        self._ahead = 0  # short requests that go before the next batch of long ones
        self._was_long = False  # the batch before
        self._closing = False
        self._begun: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="m2bert-model", daemon=True)
        self._thread.start()

    def submit(self, texts: Sequence[str], kind: Kind = "document", *, passages: bool = False) -> Job:
        """Queue texts. Raises Refusal where too much is waiting or the server stops, and TextError as encoders do."""
        job = Job(self._steps.plan(texts, kind, passages=passages), self)
        if not job.open_pieces:
            job.future.set_result([])
            return job
        with self._changed:
            if self._closing:
                raise stopping()
            most = self._limits.waiting_tokens
            if self.waiting_tokens and self.waiting_tokens + job.tokens > most:
                raise busy(f"{self.waiting_tokens:,} tokens wait, and with {job.tokens:,} more they are over {most:,}")
            (self._short if job.short else self._long).append(job)
            self.waiting_tokens += job.tokens
            self._changed.notify()
        return job

    @property
    def waiting_requests(self) -> int:
        """Requests in the queues that have had no turn, or not all of their turns."""
        return len(self._short) + len(self._long)

    @property
    def answers(self) -> bool:
        """Whether the thread lives and is not stuck in a batch."""
        begun = self._begun
        return self._thread.is_alive() and (begun is None or time.monotonic() - begun < SECONDS_STUCK)

    def drop(self, job: Job) -> None:
        """Take a cancelled job out of its queue."""
        with self._changed:
            queue = self._short if job.short else self._long
            if job in queue:
                queue.remove(job)
            self.waiting_tokens -= job.tokens
            job.waiting, job.tokens = [], 0

    def close(self) -> None:
        """Take nothing new, finish what is queued, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            began = self._begun = time.monotonic()
            jobs = dict.fromkeys(job for job, _ in batch)
            try:
                self._steps.run([piece for _, piece in batch])
            except Exception as error:  # whatever it is: those who wait are told, and others are served
                logger.exception("a batch of %d texts failed", len(batch))
                for job in jobs:
                    self.drop(job)
                    _settle(job, error)
                continue
            finally:
                self._begun = None
            self._observe(BatchRun(len(batch), sum(piece.tokens for _, piece in batch), time.monotonic() - began))
            for job, _ in batch:
                job.open_pieces -= 1
            for job in jobs:
                if job.open_pieces == 0:
                    _settle(job)

    def _next(self) -> list[tuple[Job, Piece]]:
        """The next batch; waits for one. Empty when the scheduler is closed and nothing is left."""
        with self._changed:
            while not (self._short or self._long or self._closing):
                self._changed.wait()
            if self._was_long:
                self._ahead = len(self._short)
            self._was_long = bool(self._long) and not (self._short and self._ahead)
            if self._was_long:
                first = self._long[0]
                batch = self._filled(self._long)
                if self._long and self._long[0] is first:
                    self._long.rotate(-1)
            else:
                before = len(self._short)
                batch = self._filled(self._short)
                self._ahead = max(self._ahead - (before - len(self._short)), 0)
            return batch

    def _filled(self, queue: deque[Job]) -> list[tuple[Job, Piece]]:
        """A batch of pieces of similar length, those of the first request before all; done requests leave the queue."""
        batch: list[tuple[Job, Piece]] = []
        low = high = 0
        for job in list(queue):
            kept = []
            for piece in job.waiting:
                shortest, longest = min(low or piece.tokens, piece.tokens), max(high, piece.tokens)
                alike = longest <= 2 * max(shortest, SHORTEST_PADDED)
                if batch and not (alike and (len(batch) + 1) * longest <= self._batch_tokens):
                    kept.append(piece)
                    continue
                batch.append((job, piece))
                low, high = shortest, longest
                job.tokens -= piece.tokens
                self.waiting_tokens -= piece.tokens
            job.waiting = kept
            if not kept:
                queue.remove(job)
        return batch


def _settle(job: Job, error: Exception | None = None) -> None:
    """Give a job its embeddings, or the error; not if it was cancelled meanwhile."""
    if not job.future.set_running_or_notify_cancel():
        return
    try:
        if error is not None:
            raise error
        job.future.set_result(job.finish())
    except Exception as reason:  # a vector that is not finite concerns one request; who waits is told
        job.future.set_exception(reason)
