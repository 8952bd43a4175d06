"""scripts/gpu_check.py on the CPU with tiny sizes: it finds what is wrong, says what it left out, judges its goals."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
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
    assert groups == {"copy", "encoder", "blockdiag_glu", "short_conv", "fft_conv", "monarch_mixer"}
    for way in ("forward", "backward"):
        mixers = [row for row in results["rows"] if row["group"] == f"monarch_mixer, {way}"]
        assert mixers and all(row["seconds"]["composition"] > 0 and not row["without"] for row in mixers)
    assert all(row["seconds"]["ours"] > 0 for row in results["rows"] if row["group"] != "copy")


def test_what_cannot_be_done_without_a_gpu_is_named(results: dict[str, Any]) -> None:
    left_out = {part["part"] for part in results["skipped"]}
    assert left_out == {"streams, graphs, devices, 2^31 elements", "compute-sanitizer"}
    assert results["goals"] and all(goal["passed"] is None for goal in results["goals"])


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
    row = {"group": "fft_conv", "case": "a", "times_floor": times_floor, "ratio": {"FlashFFTConv": ratio}}
    gpu_check.gpu_times.judge_forward(run, row, 8192, torch.bfloat16)
    assert all(goal["passed"] for goal in run.goals) == passed and len(run.goals) == 2
