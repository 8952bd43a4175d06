"""What LanceDB takes into memory at once: rows of a scan, bytes that it reads ahead, words of an index, what it keeps.

It reads the first three from the environment. With its own values, putting files of long documents together takes
gigabytes, and so does an index of words. A variable that whoever runs the process has set stays.
Tests: tests/search/test_lance_memory.py, tests/search/test_streaming.py.
"""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from m2bert.memory import memory_left

ROWS, WORDS, AHEAD = "LANCE_DEFAULT_BATCH_SIZE", "LANCE_FTS_PARTITION_SIZE", "LANCE_DEFAULT_IO_BUFFER_SIZE"
MOST_ROWS, LEAST_WORDS, MOST_WORDS = 512, 16, 2048  # the words in megabytes
# Several batches are on their way at once; with rows of a megabyte, batches of one take no more time than of hundreds.
BYTES_AT_ONCE = 8 << 20
# The share of the memory that is left that is given to words on their way into an index; as much again lies beside it.
SHARE_OF_WORDS = 8
# Shares of it for files that are read ahead (a scan would have up to 2 GB of them in memory, so all of most columns),
# and for what a connection keeps of files it has read; twice as much is taken as LanceDB counts.
SHARE_AHEAD, LEAST_AHEAD, MOST_AHEAD = 16, 16 << 20, 2 << 30
SHARE_KEPT, MOST_KEPT = 32, 1 << 30
# Rows that are looked at for how large they are: what they take on the disk says little, since words compress up to a
# hundred times. Of fewer bytes on the disk all together, none.
ROWS_LOOKED_AT, LOOKED_AT_FROM = 8, 1 << 20
# What putting files together took, at most: in and out, and a part of the index of words, whose rows get new numbers,
# so many times what it has on the disk. Or all rows so many times, where those are less.
TOGETHER, PART_TOGETHER, ROWS_TOGETHER = 100 << 20, 15, 4
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


def bytes_ahead() -> int:
    """What a scan may have of files in memory before it comes to them."""
    return min(max(memory_left() // SHARE_AHEAD, LEAST_AHEAD), MOST_AHEAD)


os.environ.setdefault(AHEAD, str(bytes_ahead()))


def bytes_kept() -> int:
    """What a new connection may keep of the files it has read: where their columns lie, and some of their values."""
    return min(memory_left() // SHARE_KEPT, MOST_KEPT)


def keep_in_bounds(table: Any) -> None:
    """Before a table is read as a whole: as many rows at once as they allow, and as many words as fit into what is left
    of the memory; the latter once a process."""
    if ROWS in _ours:
        os.environ[ROWS] = str(min(max(BYTES_AT_ONCE // _bytes_of_a_row(table), 1), MOST_ROWS))
    if WORDS in _ours:
        os.environ[WORDS] = str(min(max((memory_left() >> 20) // SHARE_OF_WORDS, LEAST_WORDS), MOST_WORDS))


def fits_together(table: Any, part: int) -> bool:
    """Whether what is left of the memory is enough to put the files of a table together. part: bytes that the largest
    part of its index of words has on the disk, which another process may have made."""
    everything = int(table.count_rows()) * _bytes_of_a_row(table)
    return memory_left() >= min(TOGETHER + PART_TOGETHER * part, ROWS_TOGETHER * everything)


def _bytes_of_a_row(table: Any) -> int:
    """Bytes in memory of a row: of the largest that this process has written, or of some of the table in the mean."""
    rows, total = int(table.count_rows()), int(table.stats()["total_bytes"])
    seen: list[int] = []
    if total >= LOOKED_AT_FROM:
        for offset in sorted({rows * part // ROWS_LOOKED_AT for part in range(ROWS_LOOKED_AT)}):
            seen.append(table.take_offsets([offset]).select(["text", "words"]).to_arrow().nbytes)
            if seen[-1] >= BYTES_AT_ONCE:
                break
    return max(total // max(rows, 1), sum(seen) // max(len(seen), 1), _largest)
