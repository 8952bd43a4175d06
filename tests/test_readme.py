"""The Python blocks of README.md run as written, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_readme_code_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 3
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 12
    quick = subprocess.run([sys.executable, "-c", blocks[0]], cwd=tmp_path, capture_output=True, text=True, check=True)
    first = quick.stdout.splitlines()[0]
    assert "camel.txt" in first and "Camels live in dry deserts" in first
    check = "causal = fft_conv(u, k, None, skip, pregate, postgate)\n"
    program = blocks[1] + "assert y.shape == u.shape\n" + check + blocks[2] + "torch.testing.assert_close(y, causal)\n"
    # torch.testing's float32 tolerance is too tight for sums of 5000 terms of size 1.
    program = program.replace("(y, causal)", "(y, causal, rtol=1e-3, atol=1e-2)")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ, check=True)
