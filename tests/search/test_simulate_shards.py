"""scripts/simulate_shards.py against what can be counted: waiting by hand, the slowest of many by its distribution."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "simulate_shards.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("simulate_shards", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate_shards"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_queries_wait_in_line_for_cores(script: Any) -> None:
    arrivals, work = np.array([0.0, 1.0, 2.0, 50.0]), np.array([10.0, 10.0, 10.0, 5.0])
    np.testing.assert_allclose(script.waiting(arrivals, work, 1), [10, 19, 28, 5])
    np.testing.assert_allclose(script.waiting(arrivals, work, 2), [10, 10, 18, 5])


def test_the_slowest_of_many_shards_has_its_distribution(script: Any) -> None:
    """Of 100 log-normal times, without a line to wait in: the median of their maximum is their quantile 0.5 ** 0.01."""
    given = script.Assumptions(
        documents=1e8, documents_a_shard=1e6, straggler_share=0.0, queries_a_second=1e-3, network_ms=0.0, queries=4000
    )
    told = script.simulate(given)
    expected = given.milliseconds * math.exp(given.spread * NormalDist().inv_cdf(0.5**0.01))
    assert told["shards"] == 100 and told["one_shard_ms"] == 156.0
    assert told["median_ms"] == pytest.approx(expected, rel=0.02)
    assert told["recall"] == pytest.approx(0.98, abs=0.005) and told["p99_ms"] > told["median_ms"]


def test_it_prints_a_line_for_every_size(script: Any) -> None:
    arguments = ["--documents", "1e7", "--documents-a-shard", "1e6", "4e6", "--queries", "50"]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["shards"] for line in lines] == [10, 3]
    assert lines[1]["one_shard_ms"] == pytest.approx(156 * (0.3 + 0.7 * 4**0.7), abs=0.1)
    hedged = script.simulate(script.Assumptions(queries=500, hedge_ms=400.0))
    assert hedged["p99_ms"] < script.simulate(script.Assumptions(queries=500))["p99_ms"]
