"""examples/tour.py, written from the README alone, runs from beginning to end on files of every kind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from optional import needs
from real_files import REAL_FILES

pytestmark = needs(
    "test", "sentence_transformers", "mteb", "datasets", "accelerate", "pypdfium2", "mammoth", "reportlab", "docx"
)

TOUR = Path(__file__).resolve().parents[2] / "examples" / "tour.py"


def test_a_day_with_the_library_works_at_the_first_try(tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # threads that wait for each other burn time
    (tmp_path / "documents").mkdir()
    for file in REAL_FILES:
        file.make(tmp_path / "documents" / file.name, file.sentence)
    questions = [file.sentence for file in REAL_FILES]
    command = [sys.executable, str(TOUR), str(tmp_path / "day"), str(tmp_path / "documents"), *questions]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout
    assert "encoded (1000, 768); nearest: The" in said and "builds baskets." in said
    assert f"indexed {len(REAL_FILES)} files, of which 1 had to be guessed" in said and "left out" not in said
    assert f"read again: {len(REAL_FILES)} unchanged" in said
    for file in REAL_FILES:
        [line] = [line for line in said.splitlines() if line.startswith(repr(file.sentence))]
        assert f" is in {file.name}, " in line
        assert file.place in line or file.name == "store.py", line  # where a passage is more than the method
    vectors, search = (float(x) for x in re.findall(r"mteb, \w+: nDCG@10 (\d\.\d+)", said))
    assert 0.3 < vectors <= 1.0 and 0.3 < search <= 1.0
    assert float(said.split("differ by ")[1]) < 1e-5
