"""How a call is timed on a GPU: replays of a CUDA graph of it, else runs of ten calls, medians, peers interleaved.

One event pair around one call of Python shows what the host takes to ask for it: at 256 positions that is longer than
the kernel. A graph is launched at once, whatever it holds, and nothing else lies between the events. A call that
cannot be captured (it synchronises, or a library of its own does) is made ten times in a row between two events, and
the row says so.
Test: tests/cuda/test_gpu_check.py.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[[], Any]
CALLS = 10  # of one measurement, at most in a graph and at least without one
MEASUREMENT_SECONDS = 5e-3  # a graph holds as many calls as take this long: what surrounds it is microseconds
REPEATS, FEWEST_REPEATS, SECONDS_OF_A_CALL = 15, 3, 0.5


@dataclass
class Timings:
    """Median seconds of each call, how it was timed, and why others could not run."""

    seconds: dict[str, float] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """`run` makes `calls` calls; `way` says how."""

    run: Call
    calls: int
    way: str


def elapsed(run: Call, device: torch.device) -> float:
    """Seconds of `run`: between two CUDA events on a GPU."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def calls_for(seconds: float) -> int:
    """How many calls of about `seconds` a graph holds."""
    return max(1, min(CALLS, math.ceil(MEASUREMENT_SECONDS / max(seconds, 1e-9))))


def repeats_for(seconds: float) -> int:
    """How often a measurement of about `seconds` is made."""
    return max(FEWEST_REPEATS, min(REPEATS, int(SECONDS_OF_A_CALL / max(seconds, 1e-9))))


def captured(call: Call, calls: int) -> Call:
    """The replay of a CUDA graph of `calls` calls; torch's error if `call` cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph.replay


def prepared(call: Call, device: torch.device) -> Measurement:
    """The measurement of `call`, after two calls that are not measured; its error if it cannot run."""
    if device.type == "cpu":
        call()
        return Measurement(call, 1, "a call")
    side = torch.cuda.Stream(device)  # capturing wants the call's first run, with its allocations, on another stream
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream(device).wait_stream(side)
    calls = calls_for(elapsed(call, device))
    try:
        replay = captured(call, calls)
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        reason = str(error).splitlines()[0]
        return Measurement(lambda: [call() for _ in range(CALLS)], CALLS, f"{CALLS} calls: {reason}")
    replay()
    return Measurement(replay, calls, f"graph of {calls}")


def timed(calls: dict[str, Call], device: torch.device, repeats: int = 0) -> Timings:
    """Median seconds of a call of each, one measurement of each in turn; `repeats` 0: as many as time allows."""
    out, ready = Timings(), {}
    for name, call in calls.items():
        try:
            ready[name] = prepared(call, device)
        except Exception as error:  # a peer that is absent or refuses a size is named, whatever it raises
            out.refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    taken: dict[str, list[float]] = {name: [elapsed(ready[name].run, device)] for name in ready}
    wanted = {name: repeats or repeats_for(first) for name, (first,) in taken.items()}
    for turn in range(1, max(wanted.values(), default=0)):
        for name, measurement in ready.items():
            if turn < wanted[name]:
                taken[name].append(elapsed(measurement.run, device))
    for name, measurement in ready.items():
        out.seconds[name] = statistics.median(taken[name]) / measurement.calls
        out.ways[name] = measurement.way
    return out
