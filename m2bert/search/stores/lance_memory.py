"""What LanceDB takes into memory at once, which it reads from the environment: rows of a scan, and words of an index.

With its own values, putting files of long documents together takes gigabytes, and so does an index of words. A variable
that whoever runs the process has set stays. Tests: tests/search/test_lance_memory.py, tests/search/test_streaming.py.
"""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from m2bert.memory import memory_left

ROWS, WORDS = "LANCE_DEFAULT_BATCH_SIZE", "LANCE_FTS_PARTITION_SIZE"
MOST_ROWS, LEAST_WORDS, MOST_WORDS = 512, 16, 2048  # the words in megabytes
# Several batches are on their way at once; with rows of a megabyte, batches of one take no more time than of hundreds.
BYTES_AT_ONCE = 8 << 20
# The share of the memory that is left that is given to words on their way into an index; as much again lies beside it.
SHARE_OF_WORDS = 8
# Set before LanceDB is loaded, so that a later change takes the place of a value and moves nothing that is being read.
_ours = {
    name
    for name, most in ((ROWS, str(MOST_ROWS)), (WORDS, str(MOST_WORDS)))
    if os.environ.setdefault(name, most) == most
}
_largest = 1


def note_rows(batch: pa.RecordBatch) -> None:
    """Remember how large rows of this batch are, which are being written."""
    global _largest
    if batch.num_rows:
        _largest = max(_largest, batch.nbytes // batch.num_rows)


def keep_in_bounds(table: Any) -> None:
    """Before a table is read as a whole: as many rows at once as its rows, in the mean, and the largest that this
    process has written allow, and as many words as fit into what is left of the memory; the latter once a process."""
    rows = table.count_rows()
    mean = int(table.stats()["total_bytes"] / rows) if rows else 1
    if ROWS in _ours:
        os.environ[ROWS] = str(min(max(BYTES_AT_ONCE // max(mean, _largest), 1), MOST_ROWS))
    if WORDS in _ours:
        os.environ[WORDS] = str(min(max((memory_left() >> 20) // SHARE_OF_WORDS, LEAST_WORDS), MOST_WORDS))
