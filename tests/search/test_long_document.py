"""One long document is taken in within some times its size, and in time that grows with its length.

By hand with 50 MB: scripts/measure_long_document.py, figures in docs/reliability.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys, time
from pathlib import Path
import numpy as np
from tiny import story
from m2bert.encoders.protocol import EncodedDocument, Passage
from m2bert.search.index import SearchIndex
from m2bert.search.streams import stream_corpus

class OfLength:
    '''An encoder that takes neither time nor memory: a passage every thousand characters.'''

    name = location = "of-length"
    fingerprint, overflow, dim, max_tokens = "0123456789ab", "window", 16, 64

    def encode_documents(self, texts, *, passages=True, progress=None):
        vector = np.full(16, 0.25, np.float32)
        return [
            EncodedDocument(vector, [Passage(n, min(n + 1000, len(text)), vector) for n in range(0, len(text), 1000)],
                            len(text) // 6, len(text) // 360, 0)
            for text in texts
        ]

folder = Path(sys.argv[1])
(folder / "docs").mkdir()
index, block, seen = SearchIndex(folder / "s", OfLength()), story(20_000) + "\\n", []
for megabytes in (1, 4, 8):
    text = block * (megabytes * 1_000_000 // len(block)) + sys.argv[2]
    (folder / "docs" / "long.txt").write_text(text, encoding="utf-8")
    size = len(text)
    del text
    start = time.process_time()
    index.update(stream_corpus(folder / "docs"))
    seconds = time.process_time() - start
    # Not getrusage's, which begins with the memory of the process that started this one.
    most = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    seen.append((size, seconds, int(most) * 1024))
assert index.document("long.txt").num_tokens == size // 6
print(json.dumps(seen))
"""


def taken_in(folder: Path, end: str) -> tuple[list[float], float]:
    """Seconds of documents of doubled lengths, and bytes of memory a character more takes."""
    folder.mkdir()
    # What the C library keeps of freed blocks of up to 32 MB, which these are and those of longer documents are not.
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "MALLOC_MMAP_THRESHOLD_": "100000"}
    command = [sys.executable, "-c", PROGRAM, str(folder), end]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes, seconds, memory = zip(*json.loads(done.stdout), strict=True)
    return list(seconds), (memory[-1] - memory[1]) / (sizes[-1] - sizes[1])


def test_a_store_takes_a_long_document_in_some_times_its_size(tmp_path: Path) -> None:
    """The text, its words, and what the database makes of them: ten bytes a character."""
    seconds, bytes_each = taken_in(tmp_path / "letters", "the end")
    print(f"{seconds} s of 1, 4, 8 MB; {bytes_each:.1f} bytes a character")
    assert 1 < bytes_each < 13
    assert seconds[2] < 2.5 * seconds[1], seconds


def test_a_sign_of_four_bytes_makes_no_text_four_times_as_dear(tmp_path: Path) -> None:
    """Every character of such a text takes four bytes in Python, and it lies there once."""
    _, bytes_each = taken_in(tmp_path / "signs", "the end \U0001f642")
    print(f"{bytes_each:.1f} bytes a character")
    assert 4 < bytes_each < 17
