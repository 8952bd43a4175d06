"""examples/tour.py, written from the README alone, runs from beginning to end in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("sentence_transformers", "mteb", "datasets", "accelerate"):
    pytest.importorskip(package, reason="needs the extras peers, mteb and train")

TOUR = Path(__file__).resolve().parents[2] / "examples" / "tour.py"


def test_a_day_with_the_library_works_at_the_first_try(tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # threads that wait for each other burn time
    command = [sys.executable, str(TOUR), str(tmp_path / "day")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout
    assert "encoded (1000, 768); nearest: The" in said and "builds baskets." in said
    assert re.search(r"indexed \d files; found octopus.md: .*three hearts", said)
    vectors, search = (float(x) for x in re.findall(r"mteb, \w+: nDCG@10 (\d\.\d+)", said))
    assert 0.3 < vectors <= 1.0 and 0.3 < search <= 1.0
    assert float(said.split("differ by ")[1]) < 1e-5
