"""The script that times servers, and the example of a client, against a server."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_embedder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture()
def run(monkeypatch: Any, capsys: Any) -> Any:
    """Run a program of the project in this process: what it prints."""

    def call(program: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        runpy.run_path(str(ROOT / program), run_name="__main__")
        return str(capsys.readouterr().out)

    return call


def test_servers_are_timed(run: Any, url: str, tmp_path: Path) -> None:
    options = ("--clients", "1,3", "--kinds", "query,300", "--seconds", "0.1", "--memory", "20")
    address = url.removeprefix("http://")
    shown = run("scripts/measure_serving.py", f"ours={address}", *options, "--json", tmp_path / "run.json")
    found = json.loads((tmp_path / "run.json").read_text())
    assert [(row["texts"], row["clients"], row["server"]) for row in found["rows"]] == [
        ("query", 1, "ours"), ("query", 3, "ours"), ("300 tokens", 1, "ours"), ("300 tokens", 3, "ours"),
    ]  # fmt: skip
    for row in found["rows"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["requests"] >= row["clients"]
        assert row["per_second"] * row["p50_ms"] / 1000 < 2 * row["clients"]  # Little's law, with room for the spread
        assert f"| {row['texts']} | {row['clients']} | ours | {row['per_second']:.1f} |" in shown
    assert len(found["memory_mb"]["ours"]) == 11 and min(found["memory_mb"]["ours"]) > 50


def test_the_example_asks_for_vectors_and_documents(run: Any, url: str) -> None:
    lines = run("examples/client.py", "copper harbor", url).splitlines()
    vectors = tiny_embedder().encode(
        ["copper harbor", "Camels store fat in their humps.", "The octopus has three hearts."]
    )
    cosines = [float(line.split()[0]) for line in lines[:2]]
    assert cosines == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-3)
    assert not np.allclose(cosines, 0)
    assert any(re.search(r"long\.txt  = whole -?\d\.\d\d \+ passages", line) for line in lines[2:])
