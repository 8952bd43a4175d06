"""Whose turn it is at the model, and that turns do not change embeddings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from bag_of_words import BagOfWords
from tiny import story, tiny_embedder

from m2bert.encoders.protocol import EncodedDocument
from m2bert.errors import TextError
from m2bert.serve.limits import HungUpError, Limits, Refusal
from m2bert.serve.scheduled import ScheduledEncoder, Ticket
from m2bert.serve.scheduler import BatchRun, Job, Scheduler
from m2bert.serve.steps import Piece, Work, steps_of


class Recorder:
    """Steps whose texts are "name:tokens+tokens..."; a batch runs when it is let, and its pieces are written down."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self._begun, self._let = threading.Semaphore(0), threading.Semaphore(0)

    def plan(self, texts: Sequence[str], kind: str, *, passages: bool) -> Work:
        pieces = []
        for text in texts:
            name, _, sizes = text.partition(":")
            pieces += [Piece(int(size), name) for size in sizes.split("+")]
        return Work(pieces, lambda: [EncodedDocument(np.ones(1, np.float32), [], 0, 1, 0) for _ in texts])

    def run(self, batch: Sequence[Piece]) -> None:
        self.batches.append([piece.content for piece in batch])
        self._begun.release()
        assert self._let.acquire(timeout=20)
        if batch[0].content == "broken":
            raise MemoryError("no room")

    def wait(self) -> None:
        """Until a batch is running."""
        assert self._begun.acquire(timeout=20)

    def let(self, batches: int = 1) -> None:
        """Let the running batch end, and some after it."""
        self._let.release(batches)


@pytest.fixture()
def recorder() -> Recorder:
    return Recorder()


def finish(scheduler: Scheduler, recorder: Recorder) -> list[list[str]]:
    recorder.let(100)
    scheduler.close()
    return recorder.batches


def long(name: str, windows: int) -> str:
    return f"{name}:" + "+".join(["8192"] * windows)


def test_waiting_requests_share_a_batch_within_the_budget(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder, batch_tokens=100)
    scheduler.submit(["first:10"])
    recorder.wait()
    jobs = [scheduler.submit([f"{name}:30"]) for name in "abcd"]
    assert (scheduler.waiting_requests, scheduler.waiting_tokens) == (4, 120)
    assert finish(scheduler, recorder) == [["first"], ["a", "b", "c"], ["d"]]
    assert all(len(job.result()) == 1 for job in jobs)
    assert (scheduler.waiting_requests, scheduler.waiting_tokens) == (0, 0)


def test_one_piece_larger_than_the_budget_goes_alone(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder, batch_tokens=1)
    scheduler.submit(["first:10"])
    recorder.wait()
    for name in "ab":
        scheduler.submit([f"{name}:10"])
    assert finish(scheduler, recorder) == [["first"], ["a"], ["b"]]


def test_padding_at_most_doubles_the_work(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder)
    scheduler.submit(["first:10"])
    recorder.wait()
    scheduler.submit(["query:9", "passage:500"])
    scheduler.submit(["other:64"])
    scheduler.submit(["similar:260"])
    assert finish(scheduler, recorder) == [["first"], ["passage", "similar"], ["query", "other"]]


def test_a_short_request_waits_for_one_batch_of_a_long_one(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder)
    scheduler.submit([long("long", 4)])
    recorder.wait()
    scheduler.submit(["a:5"])
    scheduler.submit(["b:5"])
    recorder.let()
    recorder.wait()  # a and b
    scheduler.submit(["c:5"])  # after the round that is running: behind one more batch of the long one
    assert finish(scheduler, recorder) == [["long"], ["a", "b"], ["long"], ["c"], ["long"], ["long"]]


def test_long_requests_move_on_under_any_number_of_short_ones(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder, batch_tokens=8192)
    scheduler.submit([long("long", 3)])
    for _ in range(6):
        recorder.wait()
        scheduler.submit(["short:5"])
        recorder.let()
    batches = finish(scheduler, recorder)
    assert [batch[0] for batch in batches[:6]] == ["long", "short"] * 3


def test_long_requests_take_turns(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder)
    scheduler.submit([long("a", 4)])
    recorder.wait()
    scheduler.submit([long("b", 2)])
    scheduler.submit([long("c", 1)])
    assert finish(scheduler, recorder) == [["a"], ["a"], ["b"], ["c"], ["a"], ["b"], ["a"]]


def test_many_short_texts_of_one_request_are_a_long_one(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder, batch_tokens=1000)
    scheduler.submit(["bulk:100"] * 30)
    recorder.wait()
    scheduler.submit(["query:5"])
    assert [batch[0] for batch in finish(scheduler, recorder)] == ["bulk", "query", "bulk", "bulk"]


def test_a_cancelled_request_gives_its_places_back(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder)
    begun = scheduler.submit([long("begun", 5)])
    recorder.wait()
    waiting = scheduler.submit([long("waiting", 5)])
    begun.cancel()
    waiting.cancel()
    assert (scheduler.waiting_requests, scheduler.waiting_tokens) == (0, 0)
    scheduler.submit(["after:5"])
    assert finish(scheduler, recorder) == [["begun"], ["after"]]
    for job in (begun, waiting):
        with pytest.raises(HungUpError):
            job.result()


def test_a_ticket_cancels_what_is_submitted_after_it(recorder: Recorder) -> None:
    scheduler, ticket = Scheduler(recorder), Ticket()
    encoder = ScheduledEncoder(BagOfWords(), scheduler)
    with ticket.held():
        ticket.cancel()
        with pytest.raises(HungUpError):
            encoder.embed(["a:5"], "document")
    assert finish(scheduler, recorder) == []


def test_a_full_queue_refuses_and_says_so(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder, limits=Limits(waiting_tokens=100))
    scheduler.submit(["first:10"])
    recorder.wait()
    scheduler.submit(["large:300"])  # alone it may be as long as it likes
    with pytest.raises(Refusal, match="300 tokens wait, and with 5 more they are over 100; wait a little") as caught:
        scheduler.submit(["a:5"])
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    finish(scheduler, recorder)


def test_closing_finishes_what_waits_and_takes_nothing_new(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder)
    jobs = [scheduler.submit(["a:5"]), scheduler.submit([long("b", 3)])]
    recorder.wait()
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while True:
        try:
            scheduler.submit(["late:5"]).cancel()
        except Refusal as refusal:
            assert refusal.status == 503
            break
    recorder.let(100)
    closing.join()
    assert all(job.future.done() and job.result() for job in jobs)


def test_a_batch_that_fails_is_told_to_those_who_wait(recorder: Recorder, caplog: Any) -> None:
    scheduler = Scheduler(recorder)
    broken = scheduler.submit(["broken:9000+9000"])
    recorder.wait()
    good = scheduler.submit(["good:5"])
    assert finish(scheduler, recorder) == [["broken"], ["good"]]
    with pytest.raises(MemoryError, match="no room"):
        broken.result()
    assert good.result() and "a batch of 1 texts failed" in caplog.text


def test_no_texts_are_no_work(recorder: Recorder) -> None:
    scheduler = Scheduler(recorder)
    assert scheduler.submit([]).result() == []
    assert scheduler.answers
    assert finish(scheduler, recorder) == []
    assert not scheduler.answers


def test_embeddings_are_those_of_the_embedder() -> None:
    embedder, texts = tiny_embedder(), [story(count, seed=count) for count in (3, 9, 40, 200, 350, 1)]
    runs: list[BatchRun] = []
    scheduler = Scheduler(steps_of(embedder), batch_tokens=200, observe=runs.append)
    jobs: list[Job] = [scheduler.submit([text], passages=True) for text in texts]
    together = scheduler.submit(texts, "query")
    found = [job.result()[0] for job in jobs]
    expected = tiny_embedder().encode_documents(texts)
    assert [one.num_windows for one in found] == [one.num_windows for one in expected] and found[3].num_windows > 3
    assert [one.num_tokens for one in found] == [one.num_tokens for one in expected]
    np.testing.assert_allclose([one.vector for one in found], [one.vector for one in expected], atol=1e-6)
    np.testing.assert_allclose([one.vector for one in together.result()], tiny_embedder().encode(texts), atol=1e-6)
    for one, other in zip(found, expected, strict=True):
        assert [(each.start, each.end) for each in one.passages] == [(each.start, each.end) for each in other.passages]
        for mine, its in zip(one.passages, other.passages, strict=True):
            np.testing.assert_allclose(mine.vector, its.vector, atol=1e-6)
    scheduler.close()
    assert sum(run.tokens for run in runs) == 2 * sum(one.num_tokens + 2 * one.num_windows for one in expected)
    assert max(run.pieces for run in runs) > 1
    with pytest.raises(TextError, match="text 1 is empty"):
        scheduler.submit(["river", " "])


class Counted(BagOfWords):
    """Another encoder, of which a text is one piece; queries are marked."""

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def encode(self, texts: Any, *, progress: Any = None) -> Any:
        return super().encode([f"query: {text}" for text in texts])


def test_other_encoders_get_whole_texts_each_kind_in_its_way() -> None:
    encoder = Counted()
    scheduler = Scheduler(steps_of(encoder))
    scheduled = ScheduledEncoder(encoder, scheduler)
    texts = ["a river", "stone and light", "paper"]
    np.testing.assert_array_equal(scheduled.encode(texts), encoder.encode(texts))
    documents = scheduled.encode_documents(texts)
    np.testing.assert_array_equal([one.vector for one in documents], [encoder.vector(text) for text in texts])
    assert [one.num_tokens for one in documents] == [2, 3, 1]
    assert [one.num_tokens for one in scheduled.embed(texts, "query")] == [2, 3, 1]
    assert scheduled.encode([]).shape == (0, encoder.dim)
    scheduler.close()
