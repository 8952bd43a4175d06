"""Time and memory of `m2bert index` by a document's length: `python scripts/measure_long_document.py MODEL 12.5 25 50`.

MODEL: a model folder or a name; then lengths in megabytes. Each document is indexed by a process of its own into a
store that is thrown away. Prints CPU seconds and the most memory.
Test: none; the time is that of m2bert.encoders, held to the length by tests/encoders/test_tokens.py.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path

WORDS = ["river", "stone", "light", "paper", "engine", "market", "garden", "winter", "signal", "harbor"]


def text_of(size: int) -> str:
    """Sentences of ten words in paragraphs of ten sentences, `size` characters."""
    generator, parts, length = random.Random(0), [], 0
    while length < size:
        parts.append(" ".join(generator.choices(WORDS, k=10)) + (".\n\n" if len(parts) % 10 == 9 else ". "))
        length += len(parts[-1])
    return "".join(parts)[:size]


def measured(model: str, megabytes: float) -> tuple[float, int]:
    """CPU seconds and the most bytes of memory of one run."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "docs").mkdir()
        (Path(folder) / "docs" / "long.txt").write_text(text_of(int(megabytes * 1e6)), encoding="utf-8")
        command = [sys.executable, "-m", "m2bert", "index", f"{folder}/docs", "--store", f"{folder}/s", "-q"]
        process = os.posix_spawn(sys.executable, [*command, "--model", model], os.environ)
        _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"measure_long_document: index of {megabytes:g} MB failed; see above")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> None:
    """See the module."""
    if len(sys.argv) < 3:
        raise SystemExit(f"usage: {sys.argv[0]} MODEL MEGABYTES...")
    print("MB of text | CPU s | memory MB | CPU s a MB")
    for megabytes in map(float, sys.argv[2:]):
        seconds, memory = measured(sys.argv[1], megabytes)
        print(f"{megabytes:g} | {seconds:.1f} | {memory >> 20} | {seconds / megabytes:.2f}", flush=True)


if __name__ == "__main__":
    main()
