"""Encode times: the clock runs over the encoding alone, texts are read whole, and what cannot be timed is refused."""

from __future__ import annotations

from typing import Any

import pytest
from bag_of_words import BagOfWords
from tiny import tiny_embedder

from m2bert.bench.encode_time import run_encode_time, sample_text
from m2bert.encoders.protocol import EncodedDocument
from m2bert.errors import M2BertError


class Slow(BagOfWords):
    """Moves a clock by a millisecond per word, more in the first call, and divides long texts."""

    def __init__(self, name: str, clock: list[float], room: int | None = None) -> None:
        super().__init__()
        self.name, self.clock, self.calls = name, clock, 0
        if room is not None:
            self.split = lambda text: [
                " ".join(text.split()[start : start + room]) for start in range(0, len(text.split()), room)
            ]

    def encode_documents(self, texts: Any, *, passages: bool = True, progress: Any = None) -> Any:
        assert not passages
        self.calls += 1
        self.clock[0] += 100.0 if self.calls == 1 else 0.001 * sum(len(text.split()) for text in texts)
        return [EncodedDocument(self.vector(text), [], len(text.split()), 1, 0) for text in texts]


def test_times_are_those_of_the_encoding_without_the_warm_up() -> None:
    clock = [0.0]
    encoders = [Slow("a", clock), Slow("b", clock, room=50)]
    report = run_encode_time(encoders, lengths=[202, 102], repeats=3, clock=lambda: clock[0])
    assert [encoder.calls for encoder in encoders] == [8, 8]
    first, second = report.systems
    assert [row.tokens for row in first.rows] == [102, 202]
    assert [row.median for row in first.rows] == pytest.approx([0.1, 0.2])
    assert [(row.read, row.lost, row.pieces) for row in first.rows] == [(100, 0, 1), (200, 0, 1)]
    assert [row.pieces for row in second.rows] == [2, 4] and second.rows[1].seconds == pytest.approx([0.2] * 3)
    assert report.to_dict()["settings"]["repeats"] == 3


def test_a_model_reads_the_whole_text_and_says_how_it_pads() -> None:
    report = run_encode_time([tiny_embedder()], lengths=[16, 200], repeats=1)
    (system,) = report.systems
    words = [len(sample_text(tokens).split()) for tokens in (16, 200)]
    assert words == [14, 198]
    assert all(row.read >= count and row.lost == 0 for row, count in zip(system.rows, words, strict=True))
    assert system.rows[0].pieces == 1 and system.rows[1].pieces == -(-system.rows[1].read // 62)
    assert (system.device, system.max_tokens) == ("cpu", 64) and system.padding == "to the longest of a batch"
    assert 0 < system.rows[0].fastest <= system.rows[0].median <= system.rows[0].slowest


def test_what_cannot_be_timed_is_refused() -> None:
    for encoders, options, message in [
        ([], {}, "different names, got none"),
        ([BagOfWords(), BagOfWords()], {}, "different names, got bag-of-words, bag-of-words"),
        ([BagOfWords()], {"lengths": [2]}, "lengths must be at least 3"),
        ([BagOfWords()], {"repeats": 0}, "repeats 1, got"),
    ]:
        with pytest.raises(M2BertError, match=message):
            run_encode_time(encoders, **options)
