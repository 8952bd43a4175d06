"""The indexes of a LanceDB store: of words, always; of vectors and of metadata, where a scan would take longer.

They only say where to look: scores are computed from the rows. An index of vectors is checked when it is made, on a
sample of queries, and looked into as deep as it takes to keep its promise; one that somebody else made, whose scores
and recall nobody knows, is passed over until `refresh` replaces it.
Test: tests/search/test_store_indexes.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert._lazy import postponed
from m2bert.search.stores import IndexSize
from m2bert.search.stores.fields import known_fields
from m2bert.search.stores.lance_memory import keep_in_bounds  # before LanceDB is loaded

with postponed("lance_namespace_urllib3_client"):  # a third of importing LanceDB, for a service that is not used
    from lancedb.index import FTS, BTree, IvfRq

VECTOR_INDEX, WORDS_INDEX = "m2bert_vector", "words_idx"
# Stems between spaces, taken as they are.
WORDS_OPTIONS: dict[str, Any] = {
    "base_tokenizer": "whitespace", "lower_case": False, "stem": False, "remove_stop_words": False,
    "ascii_folding": False, "max_token_length": None, "with_position": False,
}  # fmt: skip
# A scan of fewer vectors, words or values is as quick (docs/scaling.md has the times), and their index is made anew at
# every change in no time.
INDEXED_FROM = 20_000
# Fewer rows than that are large too where their files take so much: making the index of words takes a second for every
# 15 MB of text.
LARGE_BYTES = 32 << 20
# Rows that an index of words may lack, and their share: they are found, but what their words are worth is counted from
# the others.
WORDS_BEHIND, WORDS_BEHIND_SHARE = 2_000, 0.1
# Shares of a store that may lie behind its indexes: when a change ends, and while more is being added. Such rows are
# scanned.
BEHIND, BEHIND_WHILE_ADDING = 0.05, 0.25
# Bits of a number in the index of vectors: cosines of one bit are off by 0.04, which hides who is promising; of four
# by 0.005.
INDEX_BITS = 4
# Of the first TEN of a scan, what share the first `depth` of the index must hold, in the mean over QUERIES queries.
PROMISED, TEN, QUERIES, NOISE = 0.98, 10, 32, 1.0
LEAST_PROBES = 20
ROWS_AT_ONCE = 20_000
_PROBES, _RECALL, _ROWS = "m2bert.probes", "m2bert.recall", "m2bert.rows"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VectorIndex:
    """An index of vectors that was checked: partitions to look into, the recall that was found, rows it was made of."""

    probes: int
    recall: float
    rows: int


def vector_index(table: Any) -> VectorIndex | None:
    """The index of vectors that searches may use; None where there is none, or another than ours."""
    names = [index.name for index in table.list_indices() if index.columns == ["vector"]]
    known = {key.decode(): value.decode() for key, value in (table.schema.field("vector").metadata or {}).items()}
    if names != [VECTOR_INDEX] or _PROBES not in known:
        return None
    return VectorIndex(int(known[_PROBES]), float(known[_RECALL]), int(known[_ROWS]))


def index_sizes(table: Any) -> tuple[IndexSize, ...]:
    """The indexes of a table."""
    checked, found = vector_index(table), []
    for index in sorted(table.list_indices(), key=lambda index: index.columns):
        stats, column = table.index_stats(index.name), ", ".join(index.columns)
        is_vector = column == "vector"
        found.append(
            IndexSize(
                column, index.index_type, stats.num_indexed_rows, stats.num_unindexed_rows,
                checked.recall if checked is not None and is_vector else None, not is_vector or checked is not None,
            )
        )  # fmt: skip
    return tuple(found)


def lacks_words(table: Any, allowed: int | None) -> bool:
    """Whether the index of words is to be made anew: always, but for a large table whose index lacks at most `allowed`
    rows; None allows none."""
    names = [index.name for index in table.list_indices() if index.columns == ["words"]]
    if not names or allowed is None:
        return True
    is_large = table.count_rows() >= INDEXED_FROM or table.stats()["total_bytes"] >= LARGE_BYTES
    return not is_large or table.index_stats(names[0]).num_unindexed_rows > allowed


def words_behind(table: Any) -> int:
    """Rows that the index of words of a table may lack when a change ends."""
    return min(WORDS_BEHIND, int(WORDS_BEHIND_SHARE * table.count_rows()))


def index_words(table: Any, allowed: int | None = None) -> bool:
    """Make the index of words anew, but for a large store where it lacks at most `allowed` rows; whether it was."""
    if not lacks_words(table, allowed):
        return False
    keep_in_bounds(table)
    table.create_index("words", config=FTS(**WORDS_OPTIONS), replace=True, name=WORDS_INDEX)
    return True


def lacks_vectors(table: Any, share: float) -> bool:
    """Whether more than a `share` of the rows are not in a checked index of vectors."""
    rows = table.count_rows()
    if rows < INDEXED_FROM or vector_index(table) is None:
        return True
    return bool(table.index_stats(VECTOR_INDEX).num_unindexed_rows > share * rows)


def index_vectors(table: Any, depth: int, share: float = 0.0) -> None:
    """Make the index of vectors anew where it pays and more than a `share` of the rows are not in a checked one.

    depth: rows that searches list by it.
    """
    if not lacks_vectors(table, share):
        return
    rows = table.count_rows()
    for name in [index.name for index in table.list_indices() if index.columns == ["vector"]]:
        table.drop_index(name)
    if rows < INDEXED_FROM:
        return
    config = IvfRq(distance_type="dot", num_bits=INDEX_BITS)
    table.create_index("vector", config=config, replace=True, name=VECTOR_INDEX)
    check_vectors(table, rows, depth)


def index_fields(table: Any) -> None:
    """Indexes of ids, sources, and columns of metadata of a large store that has none, or ones that are far behind."""
    rows = table.count_rows()
    if rows < INDEXED_FROM:
        return
    there = {index.columns[0]: index.name for index in table.list_indices() if len(index.columns) == 1}
    for column in ("id", "source", *known_fields(table.schema.names)):
        name = there.get(column)
        if name is None or table.index_stats(name).num_unindexed_rows > BEHIND * rows:
            table.create_index(column, config=BTree(), replace=True)


def check_vectors(table: Any, rows: int, depth: int) -> None:
    """Look for how many partitions keep the promise; without any, the index goes again, and searches scan."""
    queries = _sample(table, rows)
    exact = _first_of_scan(table, queries)
    probes, recall = LEAST_PROBES, 0.0
    while probes <= max(rows // 100, LEAST_PROBES):
        recall = float(
            np.mean([_found(table, query, probes, depth, best) for query, best in zip(queries, exact, strict=True)])
        )
        if recall >= PROMISED:
            values = {_PROBES: str(probes), _RECALL: f"{recall:.4f}", _ROWS: str(rows)}
            table.update_field_metadata({"path": "vector", "metadata": values})
            return
        probes *= 2
    logger.warning("an index of vectors finds only %.3f of what a scan finds, and is not used", recall)
    table.drop_index(VECTOR_INDEX)


def _sample(table: Any, rows: int) -> NDArray[np.float32]:
    """Queries (QUERIES, dim) of unit norm: vectors of rows, each with as much noise as it is long."""
    draw = np.random.default_rng(0)
    taken = sorted(draw.choice(rows, QUERIES, replace=False).tolist())
    vectors = table.take_offsets(taken).select(["vector"]).to_arrow()["vector"].combine_chunks()
    queries = vectors.flatten().to_numpy().reshape(QUERIES, -1)
    noise = draw.standard_normal(queries.shape).astype(np.float32) / np.sqrt(queries.shape[1])
    queries = queries + NOISE * noise
    result: NDArray[np.float32] = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return result


def _first_of_scan(table: Any, queries: NDArray[np.float32]) -> list[set[int]]:
    """The row ids of the TEN highest inner products of each query, by looking at all rows."""
    best = np.zeros((len(queries), 0), np.float32)
    ids = np.zeros((len(queries), 0), np.uint64)
    scan = table.search().select(["vector"]).with_row_id(True).limit(table.count_rows())
    for batch in scan.to_batches(ROWS_AT_ONCE):
        vectors = batch["vector"].flatten().to_numpy().reshape(batch.num_rows, -1)
        best = np.concatenate([best, queries @ vectors.T], axis=1)
        rows = np.broadcast_to(batch["_rowid"].to_numpy(), (len(queries), batch.num_rows))
        ids = np.concatenate([ids, rows], axis=1)
        kept = np.argsort(-best, axis=1)[:, :TEN]
        best, ids = np.take_along_axis(best, kept, 1), np.take_along_axis(ids, kept, 1)
    return [set(row.tolist()) for row in ids]


def _found(table: Any, query: NDArray[np.float32], probes: int, depth: int, best: set[int]) -> float:
    search = table.search(query, vector_column_name="vector").distance_type("dot").nprobes(probes)
    found = search.select(["_distance"]).with_row_id(True).limit(depth).to_arrow()
    return len(best & set(found["_rowid"].to_pylist())) / len(best)
