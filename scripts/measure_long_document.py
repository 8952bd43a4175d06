"""Time and memory of `m2bert index` by a document's length: `python scripts/measure_long_document.py MODEL 12.5 25 50`.

MODEL: a model folder or a name; then lengths in megabytes. Each document is indexed by a process of its own into a
store that is thrown away. Prints CPU seconds and the most memory. A length may say of what: 12.5:words are sentences of
ten words, as without a name; unlike, of which no two are the same; signs, Chinese ones without white space; one, all
letters of one word; mixed, words and at their end a sign of four bytes.
Test: none; the time is that of m2bert.encoders, held to the length by tests/encoders/test_tokens.py.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path

WORDS = ["river", "stone", "light", "paper", "engine", "market", "garden", "winter", "signal", "harbor"]

KINDS = ("words", "unlike", "signs", "one", "mixed")


def text_of(size: int, kind: str = "words") -> str:
    """A text of `size` bytes in UTF-8; words are sentences of ten in paragraphs of ten sentences."""
    generator = random.Random(0)
    if kind == "one":
        return "a1b2" * (size // 4)
    if kind == "signs":
        signs = [chr(0x4E00 + number) for number in range(3000)]
        return "".join("".join(generator.choices(signs, k=19)) + "。" for _ in range(size // 60))
    if kind == "unlike":
        return " ".join(f"{generator.getrandbits(40):010x}" for _ in range(size // 11))
    if kind == "mixed":
        return text_of(size - 4) + "\U0001f642"
    parts, length = [], 0
    while length < size:
        parts.append(" ".join(generator.choices(WORDS, k=10)) + (".\n\n" if len(parts) % 10 == 9 else ". "))
        length += len(parts[-1])
    return "".join(parts)[:size]


def measured(model: str, megabytes: float, kind: str) -> tuple[float, int]:
    """CPU seconds and the most bytes of memory of one run."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "docs").mkdir()
        (Path(folder) / "docs" / "long.txt").write_text(text_of(int(megabytes * 1e6), kind), encoding="utf-8")
        command = [sys.executable, "-m", "m2bert", "index", f"{folder}/docs", "--store", f"{folder}/s", "-q"]
        process = os.posix_spawn(sys.executable, [*command, "--model", model], os.environ)
        _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"measure_long_document: index of {megabytes:g} MB failed; see above")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> None:
    """See the module."""
    if len(sys.argv) < 3:
        raise SystemExit(f"usage: {sys.argv[0]} MODEL MEGABYTES[:KIND]...")
    print("MB of text | CPU s | memory MB | CPU s a MB")
    for size, _, kind in (asked.partition(":") for asked in sys.argv[2:]):
        if kind not in ("", *KINDS):
            raise SystemExit(f"measure_long_document: a text is of {', '.join(KINDS)}, got {kind!r}")
        megabytes = float(size)
        seconds, memory = measured(sys.argv[1], megabytes, kind or "words")
        print(f"{size} {kind} | {seconds:.1f} | {memory >> 20} | {seconds / megabytes:.2f}", flush=True)


if __name__ == "__main__":
    main()
