"""How long encoders take for one document, by its length in tokens.

The paper's table 5 gives such times without saying whether the device had finished, and how texts were padded; its
7.1 ms for 32,768 tokens is less than the matrix products alone take at the peak of its GPU. Here:

    text        common English words, one token each in the usual vocabularies: the same text for every encoder, as
                long as asked with the two special tokens
    time        wall clock from the text to the embedding on the host, tokenising included; the device is waited for
                before and after. One warm-up, then rounds in which the encoders take turns; the median is quoted
    too long    a text longer than an encoder is read whole: in windows or chunks of equal length
    padding     what each encoder says of itself

Test: tests/bench/test_encode_time.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from m2bert.bench.systems import Progress
from m2bert.encoders.protocol import EncodedDocument, Encoder
from m2bert.errors import M2BertError
from m2bert.provenance import provenance

RUN_VERSION = 1
LENGTHS, REPEATS = (128, 512, 2048, 8192, 32768), 5
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "it",
    "was",
    "he",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
)


@dataclass(frozen=True)
class EncodeTime:
    """One encoder and length. tokens: asked for, special tokens included; read: those of the text that it read,
    in `pieces`; lost: those that it did not. seconds: of every round; median, fastest and slowest of them.
    """

    tokens: int
    read: int
    lost: int
    pieces: int
    seconds: list[float]
    median: float
    fastest: float
    slowest: float


@dataclass(frozen=True)
class EncoderTimes:
    """One encoder: what it is, where it ran, how it pads, and its times by length."""

    name: str
    fingerprint: str
    max_tokens: int
    device: str
    padding: str
    rows: list[EncodeTime]


@dataclass(frozen=True)
class TimeReport:
    """All encoders, and what is needed to repeat the times."""

    systems: list[EncoderTimes]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A run of kind "encode_time", as plain data for JSON."""
        return {"kind": "encode_time", "version": RUN_VERSION, **asdict(self), **provenance()}


def sample_text(tokens: int) -> str:
    """A text of tokens - 2 words."""
    count = max(1, tokens - 2)
    return " ".join((WORDS * (count // len(WORDS) + 1))[:count])


def run_encode_time(
    encoders: Sequence[Encoder],
    *,
    lengths: Sequence[int] = LENGTHS,
    repeats: int = REPEATS,
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TimeReport:
    """Time every encoder at every length, shortest first.

    Raises M2BertError without encoders, for two of one name, for lengths below 3 tokens and for repeats below 1.
    """
    names = [encoder.name for encoder in encoders]
    if not names or len(set(names)) != len(names):
        raise M2BertError(f"encode-time: needs encoders of different names, got {', '.join(names) or 'none'}")
    if not lengths or min(lengths) < 3 or repeats < 1:
        raise M2BertError(f"encode-time: lengths must be at least 3 and repeats 1, got {list(lengths)} and {repeats}")
    rows: dict[str, list[EncodeTime]] = {name: [] for name in names}
    wanted = sorted(set(lengths))
    for place, tokens in enumerate(wanted, 1):
        label = f"encode-time: {tokens:,} tokens, {place} of {len(wanted)}"
        for name, row in _time_in_turns(encoders, tokens, repeats, clock, label, on_progress).items():
            rows[name].append(row)
    systems = [
        EncoderTimes(
            encoder.name, encoder.fingerprint, encoder.max_tokens, getattr(encoder, "device", "unknown"),
            getattr(encoder, "padding", "unknown"), rows[encoder.name],
        )
        for encoder in encoders
    ]  # fmt: skip
    settings = {
        "lengths": wanted, "repeats": repeats, "threads": _threads(), "batch": "one document",
        "time": "text to embedding, tokenising included, device waited for; rounds interleaved after one warm-up",
    }  # fmt: skip
    return TimeReport(systems, settings)


def _time_in_turns(
    encoders: Sequence[Encoder],
    tokens: int,
    repeats: int,
    clock: Callable[[], float],
    label: str,
    on_progress: Progress | None,
) -> dict[str, EncodeTime]:
    """{encoder's name: its times for a text of `tokens`}: a round that is not timed, then `repeats` that are."""
    text = sample_text(tokens)
    seconds: dict[str, list[float]] = {encoder.name: [] for encoder in encoders}
    read: dict[str, Sequence[EncodedDocument]] = {}
    for number in range(repeats + 1):
        for place, encoder in enumerate(encoders, 1):
            _wait_for_device()
            began = clock()
            read[encoder.name] = _encode_whole(encoder, text)
            _wait_for_device()
            if number:
                seconds[encoder.name].append(clock() - began)
            if on_progress is not None:
                on_progress(label, (number * len(encoders) + place) / ((repeats + 1) * len(encoders)))
    return {name: _row(tokens, documents, seconds[name]) for name, documents in read.items()}


def _encode_whole(encoder: Encoder, text: str) -> Sequence[EncodedDocument]:
    """Encode the text as pieces that are read whole, where the encoder can divide it, or else as it does by itself."""
    split: Callable[[str], list[str]] | None = getattr(encoder, "split", None)
    return encoder.encode_documents([text] if split is None else split(text), passages=False)


def _row(tokens: int, documents: Sequence[EncodedDocument], seconds: list[float]) -> EncodeTime:
    read, lost = (sum(getattr(each, name) for each in documents) for name in ("num_tokens", "num_truncated"))
    pieces = sum(each.num_windows for each in documents)
    rounded = [round(value, 6) for value in seconds]
    return EncodeTime(tokens, read, lost, pieces, rounded, statistics.median(rounded), min(rounded), max(rounded))


def _wait_for_device() -> None:
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
