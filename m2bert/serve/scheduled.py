"""An encoder whose texts wait for their turn at a scheduler, so that searching and indexing share it with all requests.

Test: tests/serve/test_scheduler.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

from m2bert.encoders.protocol import EncodedDocument, Encoder, Progress
from m2bert.ranking.parts import Mixture, mixture_of
from m2bert.serve.limits import HungUpError
from m2bert.serve.scheduler import Job, Scheduler
from m2bert.serve.steps import Kind


class Ticket:
    """The jobs of one request. `cancel` gives back the places of all, and of those that would follow."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._cancelled = False

    def hold(self, job: Job) -> None:
        self._jobs.append(job)
        if self._cancelled:
            job.cancel()

    def cancel(self) -> None:
        self._cancelled = True
        for job in self._jobs:
            job.cancel()

    def check(self) -> None:
        """Raise HungUpError if the request is not waited for any more."""
        if self._cancelled:
            raise HungUpError

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whatever is submitted inside, in this thread, belongs to this ticket."""
        token = _TICKET.set(self)
        try:
            yield
        finally:
            _TICKET.reset(token)


_TICKET: ContextVar[Ticket | None] = ContextVar("ticket", default=None)


class ScheduledEncoder:
    """An Encoder (m2bert.encoders.protocol) in front of another one's scheduler; its fingerprint is read once.

    shortens: whether the first numbers of its vectors are vectors too (Embedder's truncate_dim).
    """

    def __init__(self, encoder: Encoder, scheduler: Scheduler) -> None:
        self.name, self.location, self.fingerprint = encoder.name, encoder.location, encoder.fingerprint
        self.dim, self.max_tokens, self.overflow = encoder.dim, encoder.max_tokens, encoder.overflow
        self.mixture: Mixture = mixture_of(encoder)
        self.shortens = hasattr(encoder, "full_dim")
        self.scheduler = scheduler

    def embed(self, texts: Sequence[str], kind: Kind, *, passages: bool = False) -> list[EncodedDocument]:
        """Embeddings of texts with their token counts. Raises Refusal, HungUpError and M2BertError."""
        ticket = _TICKET.get()
        if ticket is not None:
            ticket.check()
        job = self.scheduler.submit(texts, kind, passages=passages)
        if ticket is not None:
            ticket.hold(job)
        return job.result()

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Embeddings of queries (len(texts), dim) float32."""
        vectors = [one.vector for one in self.embed(texts, "query")]
        return np.asarray(vectors, dtype=np.float32).reshape(len(vectors), self.dim)

    def encode_documents(
        self, texts: Sequence[str], *, passages: bool = True, progress: Progress | None = None
    ) -> list[EncodedDocument]:
        """Embeddings of documents with their passages and token counts, in the order of `texts`."""
        return self.embed(texts, "document", passages=passages)
