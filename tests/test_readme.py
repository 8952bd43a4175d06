"""The Python blocks of README.md run as written, one after the other, and print what README.md says they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from forking import run_forked

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"-?\d+\.\d+")


def test_readme_code_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", text, re.S)
    codes = [code for code, _ in blocks]
    assert len(blocks) == 6
    assert all(len([line for line in code.splitlines() if line.strip()]) <= 12 for code in codes[:4])
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "page.html").write_text("<p>Herons stand in the reeds.</p>")
    quick = "".join(codes[:3]) + 'assert index.search("herons in reeds")[0].id == "page.html"\n' + codes[3]
    done = subprocess.run([sys.executable, "-c", quick], cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = "".join(said for _, said in blocks[:4])
    assert NUMBER.sub("#", done.stdout) == NUMBER.sub("#", shown)
    # Instruction sets differ in the last digits.
    for got, said in zip(NUMBER.findall(done.stdout), NUMBER.findall(shown), strict=True):
        assert abs(float(got) - float(said)) <= 1.1e-3
    check = "causal = fft_conv(u, k, None, skip, pregate, postgate)\n"
    program = codes[4] + "assert y.shape == u.shape\n" + check + codes[5] + "torch.testing.assert_close(y, causal)\n"
    # torch.testing's float32 tolerance is too tight for sums of 5000 terms of size 1.
    program = program.replace("(y, causal)", "(y, causal, rtol=1e-3, atol=1e-2)")
    done = run_forked(program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
