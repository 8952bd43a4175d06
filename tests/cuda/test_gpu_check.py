"""scripts/gpu_check.py on the CPU with tiny sizes: it finds what is wrong, says what it left out, judges its goals."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import m2ops

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def gpu_check() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("gpu_check")
    sys.path.remove(str(SCRIPTS))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def gpu_operators(gpu_check: ModuleType) -> ModuleType:
    return sys.modules["gpu_operators"]


@pytest.fixture(scope="module")
def results(gpu_check: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("gpu") / "cpu.json"
    assert gpu_check.main(["--device", "cpu", "--json", str(path)]) == 0
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_every_operator_is_checked_and_timed(results: dict[str, Any]) -> None:
    assert [check for check in results["checks"] if not check["passed"]] == []
    names = " ".join(check["check"] for check in results["checks"])
    for op in ("fft_conv", "short_conv", "monarch_mixer", "blockdiag_glu", "blockdiag_matmul", "monarch_matmul"):
        for way in ("forward", "backward"):
            assert any(c["check"].startswith(op) and c["check"].endswith(way) for c in results["checks"])
    assert "torch.compile" in names
    for op in ("fft_conv", "short_conv", "monarch_mixer"):
        assert f"the same bits in every run: {op}" in names
    assert "elements apart" in names and "short_conv of 256 elements" in names and "fft_conv of 768 elements" in names
    groups = {row["group"].split(",")[0] for row in results["rows"]}
    assert groups == {"copy", "encoder", "training step", "blockdiag_glu", "short_conv", "fft_conv", "monarch_mixer"}
    whole = {row["group"] for row in results["rows"]}
    assert {f"fft_conv, gated, {way}" for way in ("bidirectional", "causal", "causal, forward + backward")} <= whole
    assert {"encoder, spectra kept", "encoder, filters made", "blockdiag_glu, forward + backward"} <= whole
    for way in ("forward", "backward"):
        mixers = [row for row in results["rows"] if row["group"] == f"monarch_mixer, {way}"]
        assert mixers and all(row["seconds"]["composition"] > 0 and not row["without"] for row in mixers)
    timed = [row for row in results["rows"] if row["group"] != "copy"]
    assert all(row["seconds"]["ours"] > 0 and row["timed"]["ours"] == "a call" for row in timed)


def test_what_cannot_be_done_without_a_gpu_is_named(results: dict[str, Any]) -> None:
    left_out = {part["part"] for part in results["skipped"]}
    assert left_out == {"streams, graphs, devices, 2^31 elements", "compute-sanitizer"}
    assert results["goals"] and all(goal["passed"] is None for goal in results["goals"])


def test_rows_of_a_gpu(gpu_check: ModuleType) -> None:
    """Every length class, causal ones, small batches of long texts, none larger than a GPU of 80 GB holds."""
    cases = list(gpu_check.gpu_times.conv_cases(tiny=False))
    assert len(set(cases)) == len(cases)
    lengths = {256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}
    for dtype, causal in ((torch.bfloat16, False), (torch.float32, False), (torch.bfloat16, True)):
        assert lengths <= {case.seqlen for case in cases if case.dtype == dtype and case.causal == causal}
    assert {case.batch for case in cases if case.seqlen == 32768} == {1, 2, 4, 8, 64}
    assert all(4 * case.batch * case.dim * case.seqlen * case.dtype.itemsize < 30e9 for case in cases)
    assert {(case.seqlen, case.batch) for case in cases if case.judged} == {
        (seqlen, 64) for seqlen in gpu_check.gpu_times.FLOOR_GOALS
    }


def test_parts_can_be_chosen(gpu_check: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "parts.json"
    assert gpu_check.main(["--device", "cpu", "--parts", "sanitizer", "--json", str(path)]) == 0
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["checks"] == results["rows"] == []
    assert [part["part"] for part in results["skipped"]] == ["compute-sanitizer", "checks", "times"]


def test_without_time_every_part_is_named(gpu_check: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    assert gpu_check.main(["--device", "cpu", "--minutes", "0", "--json", str(path)]) == 0
    results = json.loads(path.read_text(encoding="utf-8"))
    assert [row["group"] for row in results["rows"]] == ["copy"]
    assert {part["part"].split()[0] for part in results["skipped"]} >= {
        "fft_conv",
        "short_conv",
        "encoder",
        "torch.compile,",
    }


def test_a_wrong_operator_fails(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative control: results one percent off, in one operator, in one direction."""
    right = m2ops.short_conv

    def wrong(*args: Any, **kwargs: Any) -> Tensor:
        return 1.01 * right(*args, **kwargs)

    monkeypatch.setattr(m2ops, "short_conv", wrong)
    assert gpu_check.main(["--device", "cpu", "--operators-only"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert failed and all("short_conv" in line for line in failed)


def test_inputs_keep_their_gaps(gpu_operators: ModuleType) -> None:
    """The operator sees views, not copies; so does its gradient."""
    seen: list[bool] = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            seen.append(x.is_contiguous())
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> Tensor:  # type: ignore[override]
            seen.append(dout.is_contiguous())
            return dout.clone()

    gpu_operators.compare(Spy.apply, lambda x: x * 1, [gpu_operators.random(torch.device("cpu"), 2, 3, 9)], True)
    assert seen == [False, False]


@pytest.mark.parametrize("op", ["fft_conv", "short_conv", "monarch_mixer"])
def test_bits_that_change_between_runs_are_found(
    gpu_operators: ModuleType, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a result that varies a little, or one gradient that does."""
    right = getattr(m2ops, op)

    def noise(x: Tensor) -> Tensor:
        return x * (1 + 1e-3 * torch.rand(()))

    def noisy_gradient(*args: Tensor, **kwargs: Any) -> Tensor:
        last = args[-1] * 1  # of the last argument alone
        last.register_hook(noise)
        return right(*args[:-1], last, **kwargs)

    for wrong, what in ((lambda *args: noise(right(*args)), "another result"), (noisy_gradient, "another gradient")):
        monkeypatch.setattr(m2ops, op, wrong)
        checks = dict(gpu_operators.repeat_checks(torch.device("cpu"), (60,)))
        with pytest.raises(AssertionError, match=what):
            checks[f"the same bits in every run: {op} float32, 60"]()


def test_entries_lie_apart(gpu_operators: ModuleType) -> None:
    tensors = gpu_operators.apart(torch.device("cpu"), 5000, torch.float16, [(2, 3, 60), (2, 60, 9)])
    assert [x.stride() for x in tensors] == [(5000, 60, 1), (5000, 9, 1)]
    assert all(x.isfinite().all() and x.std() > 0.5 for x in tensors)  # none overwrites another's with zeros


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert "--device cuda needs a GPU and the CUDA library, but torch sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("times_floor", "ratio", "passed"), [(1.4, 2.1, True), (1.6, 2.1, False), (1.4, 1.9, False)])
def test_goals_are_judged(gpu_check: ModuleType, times_floor: float, ratio: float, passed: bool) -> None:
    run = SimpleNamespace(goals=[], tiny=False)
    row: dict[str, Any] = {
        "group": "fft_conv",
        "case": "a",
        "times_floor": times_floor,
        "ratio": {"FlashFFTConv": ratio},
    }
    gpu_check.gpu_times.judge_forward(run, row, 8192)
    assert all(goal["passed"] for goal in run.goals) == passed and len(run.goals) == 2


class PretendedGpu:
    """torch.cuda as scripts/gpu_timing.py uses it; a call takes a millisecond, an event pair 0.01 more, replays too."""

    Stream = staticmethod(lambda device: SimpleNamespace(wait_stream=lambda other: None))
    current_stream = Stream

    def __init__(self, captures: bool) -> None:
        self.captures, self.made, self.clock, self.holds = captures, 0, 0.0, 0
        self.inside = False

    def call(self) -> None:
        if self.inside and not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.holds += self.inside
        self.made += not self.inside
        self.clock += 0.0 if self.inside else 1.0

    def Event(self, enable_timing: bool) -> Any:
        gpu = self

        class Event:
            def record(self) -> None:
                gpu.clock += 0.005
                self.at = gpu.clock

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at) + 0.005

        return Event()

    def CUDAGraph(self) -> Any:
        def replay() -> None:
            self.clock += self.holds

        return SimpleNamespace(replay=replay)

    @contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        yield

    def synchronize(self, device: torch.device) -> None:
        pass


@pytest.mark.parametrize("captures", [True, False])
def test_calls_are_timed_in_graphs_or_by_the_ten(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, captures: bool
) -> None:
    """What surrounds a call of 1 ms, here 0.01 ms, is divided among the calls of a measurement."""
    gpu_timing, gpu = sys.modules["gpu_timing"], PretendedGpu(captures)
    monkeypatch.setattr(gpu_timing, "torch", SimpleNamespace(cuda=gpu))

    def refuses() -> None:
        raise ModuleNotFoundError("no peer")

    taken = gpu_timing.timed({"ours": gpu.call, "peer": refuses}, torch.device("cuda"))
    calls, way = (5, "graph of 5") if captures else (10, "10 calls: operation not permitted when stream is capturing")
    assert taken.ways == {"ours": way} and taken.refused == {"peer": "ModuleNotFoundError: no peer"}
    assert taken.seconds["ours"] == pytest.approx((calls + 0.01) / calls / 1000)
    assert gpu.made == (2 if captures else 2 + 10 * gpu_timing.REPEATS)


def test_long_calls_are_repeated_less(gpu_check: ModuleType) -> None:
    gpu_timing = sys.modules["gpu_timing"]
    assert [gpu_timing.calls_for(t) for t in (0.0, 1e-5, 1e-3, 4e-3, 1.0)] == [10, 10, 5, 2, 1]
    assert [gpu_timing.repeats_for(t) for t in (0.0, 5e-3, 0.1, 1.0)] == [15, 15, 5, 3]
