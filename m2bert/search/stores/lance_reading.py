"""What is asked of one version of a LanceDB table: the nearest rows, those that have words, rows by ids, all rows.

Test: tests/search/test_ranking.py, tests/search/test_checksums.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m2bert.search.stores import Key
from m2bert.search.stores.candidates import Listed
from m2bert.search.stores.lance_indexes import VectorIndex
from m2bert.search.stores.lance_places import one_line

ROWS_SCANNED_AT_ONCE = 64
# Where so many times what meets a condition in the first partitions is not enough, reading the vectors of all that meet
# it (500 of a million: 19 ms) is quicker than all partitions of the index (61 ms).
NEXT_TO_NONE = 8


def near(
    table: Any,
    vector: NDArray[np.float32] | None,
    depth: int,
    where: str | None,
    index: VectorIndex | None,
    enough: int = 0,
) -> Listed:
    """The documents of highest inner product, by the vector index where there is one, whose scores are rough.

    where: the SQL condition that they meet, None for any. index: None for a scan. enough: of those that meet a
    condition, if the partitions that are looked into have fewer than `depth`; only a condition that few documents meet
    has so few there, and the best of few are found among fewer. Where there are not even so many, all partitions are
    looked into, which takes three times as long from the first one on; or, of next to none, all that meet it.
    """
    if vector is None:
        return Listed({}, True)

    def asked(count: int, index: VectorIndex | None, most_probes: int) -> Listed:
        query = table.search(vector, vector_column_name="vector").distance_type("dot")
        if index is None:
            query = query.bypass_vector_index()
        else:
            query = query.minimum_nprobes(index.probes).maximum_nprobes(most_probes)
        if where is not None:
            query = query.where(where, prefilter=True)
        found = query.select(["_distance"]).with_row_id(True).limit(count).to_arrow()
        scores = 1.0 - found["_distance"].to_numpy()
        is_all = len(scores) < count and (index is None or not most_probes)
        return Listed(dict(zip(found["_rowid"].to_pylist(), scores.tolist(), strict=True)), is_all)

    listed = asked(depth, index, 0 if index is None else index.probes)
    if index is None or where is None or (there := len(listed.scores)) >= min(depth, enough):
        return listed
    return asked(enough, None if NEXT_TO_NONE * there < enough else index, 0)


def _query_of(words: Sequence[str]) -> Any:
    """Words as the database is asked for them: those that come as often together, and how often for their weight.

    It goes through a word that is named twice twice, at once: a query of as many letters as a server takes was 950 MB.
    """
    from lancedb.query import BooleanQuery, MatchQuery, Occur  # after lance_indexes, as in lance_places

    together: dict[int, list[str]] = {}
    for word, count in Counter(words).items():
        together.setdefault(count, []).append(word)
    parts = [MatchQuery(" ".join(some), "words", boost=float(count)) for count, some in together.items()]
    return parts[0] if len(parts) == 1 else BooleanQuery([(Occur.SHOULD, part) for part in parts])


def matching(table: Any, words: Sequence[str], depth: int, where: str | None) -> Listed:
    """The documents of the highest BM25 among those that meet `where`, as above."""
    if not words or not depth:
        return Listed({}, True)
    query = table.search(_query_of(words), query_type="fts")
    if where is not None:
        query = query.where(where, prefilter=True)
    found = query.select(["_score"]).with_row_id(True).limit(depth).to_arrow()
    scores = dict(zip(found["_rowid"].to_pylist(), found["_score"].to_pylist(), strict=True))
    return Listed(scores, len(scores) < depth)


def taken(table: Any, ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """The rows of these ids, which ascend, with `_rowid`, in their order."""
    if not ids:
        return pa.table({name: [] for name in [*columns, "_rowid"]})
    rows = table.take_row_ids(list(ids)).select(list(columns)).with_row_id().to_arrow().combine_chunks()
    return rows if rows["_rowid"].to_pylist() == ids else rows.sort_by("_rowid")


def _read_each(table: Any, ids: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table | str]:
    """Each row as a table of one, or as why it cannot be read, which is no reason not to read the others."""
    try:
        rows = taken(table, ids, columns)
        if len(rows) == len(ids):
            yield from (rows.slice(place, 1) for place in range(len(ids)))
            return
        error = "it is listed and not there"
    except Exception as failed:  # what the database says of a damaged file is of any kind
        error = f"it cannot be read: {one_line(failed)}"
    if len(ids) == 1:
        yield error
        return
    for row in ids:
        yield from _read_each(table, [row], columns)


def scanned(table: Any, columns: Collection[str]) -> Iterator[tuple[Key, pa.Table | str]]:
    """All rows, each as a table of those of `columns` that there are, or as why it cannot be read."""
    query = table.search().select(["source", "id"]).with_row_id(True)
    listed = query.limit(max(table.count_rows(), 1)).to_arrow().sort_by("_rowid")
    rows = listed["_rowid"].to_pylist()
    keys = list(zip(listed["source"].to_pylist(), listed["id"].to_pylist(), strict=True))
    names = [name for name in table.schema.names if name in columns]
    for start in range(0, len(rows), ROWS_SCANNED_AT_ONCE):
        part = slice(start, start + ROWS_SCANNED_AT_ONCE)
        yield from zip(keys[part], _read_each(table, rows[part], names), strict=True)
