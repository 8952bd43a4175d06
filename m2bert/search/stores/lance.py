"""The store on disk: a folder with one LanceDB table, one row per document.

One table, because one commit of it is atomic: whoever reads sees the state before it or after it, also when the
writer is killed. Search is exact (a scan over all vectors): the scores shown are the scores. Words are found by the
database's own BM25 (k1 = 1.2, b = 0.75, English stems, no stop words), whose index is made anew after an addition: rows
that are not in it would be found too, but scored by the counts of the others.
Test: tests/search/test_index.py, tests/search/test_additions.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS
from numpy.typing import NDArray

from m2bert.errors import M2BertError
from m2bert.ranking.fusion import score_fusion
from m2bert.search.stores import Key, Record, StoredState, StoreInfo
from m2bert.search.stores.columns import read_info, table_schema, to_record
from m2bert.search.stores.staging import STAGING

TABLE = "documents"
# Readers in other processes may still use an old version of the table; a day is far longer than a search
# takes.
KEPT_VERSIONS = timedelta(days=1)
# Ranks further down add less than a hundredth of what a first place does.
FUSED_DEPTH = 1000
# An addition makes two versions of the table. Tidying copies every row, vectors included, into one file; the index of
# words alone is made of the texts, a twentieth of that or less.
VERSIONS_BETWEEN_TIDYING = 40
STATE = ("text_hash", "num_tokens", "num_windows", "num_truncated")


class LanceStore:
    """A VectorStore in the folder `path`."""

    def __init__(self, path: Path, table: Any, info: StoreInfo) -> None:
        """Use :meth:`open` or :meth:`create`."""
        self.path = path
        self.info = info
        self._table = table

    @classmethod
    def open(cls, path: str | Path) -> LanceStore:
        """Open the store at `path`, changing nothing.

        Raises M2BertError when there is none, when the folder is something else, when the store is damaged or
        was written in another format.
        """
        folder = Path(path)
        if is_unused(folder):
            raise M2BertError(
                f"store: there is no store at {str(folder)!r}; make one with `m2bert index FOLDER --store {folder}`"
            )
        if not _has_table(folder):
            raise M2BertError(
                f"store: {str(folder)!r} is not a store of m2bert and is left as it is; give another folder"
            )
        try:
            table = _connect(folder).open_table(TABLE)
            schema = table.schema
        except Exception as error:
            raise _damaged(folder, error) from error
        return cls(folder, table, read_info(schema, str(folder)))

    @classmethod
    def create(cls, path: str | Path, info: StoreInfo) -> LanceStore:
        """Make an empty store at `path`, or open the one another process has made meanwhile.

        Raises M2BertError when there is something else at `path`, which is left alone.
        """
        folder = Path(path)
        if not is_unused(folder):
            return cls.open(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _connect(folder).create_table(TABLE, schema=table_schema(info), exist_ok=True)
        except Exception as error:
            raise M2BertError(
                f"store: cannot make a store at {str(folder)!r} ({_one_line(error)}); choose a folder you may write"
            ) from error
        return cls.open(folder)

    def add(self, rows: Iterable[pa.RecordBatch], *, remove: Collection[Key] = (), replaces: bool = True) -> None:
        """See VectorStore.add. One commit, and one more for the index of words."""
        with self._reported():
            self._table.checkout_latest()
            before = self._table.version
            if not self._has_word_index():
                self._table.create_index("text", config=FTS())
            reader = pa.RecordBatchReader.from_batches(table_schema(self.info), rows)
            if replaces or remove:
                merge = self._table.merge_insert(["source", "id"])
                merge = merge.when_matched_update_all().when_not_matched_insert_all()
                if remove:
                    merge = merge.when_not_matched_by_source_delete(_condition(remove))
                merge.execute(reader)
            else:  # a merge of many rows writes them to a temporary file first, to be able to begin again
                self._table.add(reader)
            after = self._table.version + 1  # of the index
            if before // VERSIONS_BETWEEN_TIDYING == after // VERSIONS_BETWEEN_TIDYING:
                self._table.create_index("text", config=FTS(), replace=True)
            else:
                self._table.optimize(cleanup_older_than=KEPT_VERSIONS)

    def delete(self, keys: Collection[Key]) -> int:
        """See VectorStore.delete. One commit."""
        with self._reported():
            self._table.checkout_latest()
            before = self._table.count_rows()
            if keys:
                self._table.delete(_condition(keys))
            return int(before - self._table.count_rows())

    def get(self, identity: str) -> list[Record]:
        """See VectorStore.get."""
        with self._reported():
            self._table.checkout_latest()
            rows = (
                self._table.search()
                .where(f"id = {_quoted(identity)}")
                .limit(max(self._table.count_rows(), 1))
                .to_arrow()
                .to_pylist()
            )
        return sorted((to_record(row, self.info.dim) for row in rows), key=lambda record: record.key)

    def search(self, vector: NDArray[np.float32], k: int, *, words: str | None = None) -> list[tuple[float, Record]]:
        """See VectorStore.search."""
        with self._reported():
            self._table.checkout_latest()
            if words is not None:
                return self._search_fused(vector, k, words)
            rows = self._nearest(vector, table_schema(self.info).names, k)
        found = [(1.0 - row["_distance"], to_record(row, self.info.dim)) for row in rows]
        return sorted(found, key=lambda item: (-item[0], item[1].key))

    def _nearest(self, vector: NDArray[np.float32], columns: list[str], k: int) -> list[dict[str, Any]]:
        query = self._table.search(vector, vector_column_name="vector").distance_type("dot")
        rows: list[dict[str, Any]] = query.select([*columns, "_distance"]).limit(k).to_arrow().to_pylist()
        return rows

    def _search_fused(self, vector: NDArray[np.float32], k: int, words: str) -> list[tuple[float, Record]]:
        if not self._has_word_index():
            raise M2BertError(
                f"store: {str(self.path)!r} has no index of words, because it was made before there were any; "
                f"add a document to it, or index into a new folder"
            )
        depth = max(k, FUSED_DEPTH)
        matches = self._table.search(words, query_type="fts", fts_columns="text")
        near = self._nearest(vector, ["source", "id"], depth)
        matching = matches.select(["source", "id", "_score"]).limit(depth).to_arrow().to_pylist()
        rankings = [
            {(row["source"], row["id"]): 1.0 - row["_distance"] for row in near},
            {(row["source"], row["id"]): row["_score"] for row in matching},
        ]
        order = [key for key, _ in score_fusion(rankings)[:k]]
        query = self._table.search().where(_condition(order)).select(table_schema(self.info).names)
        rows = query.limit(len(order)).to_arrow().to_pylist()
        records = {record.key: record for record in (to_record(row, self.info.dim) for row in rows)}
        return [(float(records[key].vector @ vector), records[key]) for key in order]

    def _has_word_index(self) -> bool:
        return any(index.columns == ["text"] for index in self._table.list_indices())

    def states(self, keys: Collection[Key] | None = None, *, source: str | None = None) -> dict[Key, StoredState]:
        """See VectorStore.states."""
        if keys is not None and not keys:
            return {}
        with self._reported():
            self._table.checkout_latest()
            query = self._table.search().select(["source", "id", *STATE]).limit(max(self._table.count_rows(), 1))
            if keys is not None:
                sources, ids = ({_quoted(key[part]) for key in keys} for part in (0, 1))
                # Two lists, however many keys: a chain of ORs as long as they are many is more than SQL can read.
                query = query.where(f"source IN ({', '.join(sources)}) AND id IN ({', '.join(ids)})")
            elif source is not None:
                query = query.where(f"source = {_quoted(source)}")
            rows = query.to_arrow().to_pylist()
        wanted = None if keys is None else set(keys)
        states = {(row["source"], row["id"]): StoredState(**{name: row[name] for name in STATE}) for row in rows}
        return states if wanted is None else {key: state for key, state in states.items() if key in wanted}

    def count(self) -> int:
        """See VectorStore.count."""
        with self._reported():
            self._table.checkout_latest()
            return int(self._table.count_rows())

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Failures of the database as one sentence that names the store."""
        try:
            yield
        except M2BertError:
            raise
        except Exception as error:
            raise _damaged(self.path, error) from error


def _connect(folder: Path) -> Any:
    """The database in a folder; absolute, because the database takes `s3:notes` for a place on the network."""
    return lancedb.connect(str(folder.absolute()))


def _has_table(folder: Path) -> bool:
    versions = folder / f"{TABLE}.lance" / "_versions"
    return versions.is_dir() and any(entry.suffix == ".manifest" for entry in versions.iterdir())


def is_unused(folder: Path) -> bool:
    """Whether there is no folder, an empty one, or what a process left that was killed while making it."""
    if not folder.is_dir():
        return not folder.exists()
    ours = {f"{TABLE}.lance", STAGING}
    return not _has_table(folder) and all(entry.name in ours for entry in folder.iterdir())


def _condition(keys: Collection[Key]) -> str:
    """SQL that is true for exactly these documents."""
    by_source: dict[str, list[str]] = defaultdict(list)
    for source, identity in keys:
        by_source[source].append(_quoted(identity))
    lists = {source: ", ".join(ids) for source, ids in by_source.items()}
    return " OR ".join(f"(source = {_quoted(source)} AND id IN ({ids}))" for source, ids in lists.items())


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _damaged(folder: Path, error: Exception) -> M2BertError:
    return M2BertError(
        f"store: {str(folder)!r} cannot be read or written ({_one_line(error)}); "
        f"check permissions and space, restore a copy, or index into a new folder"
    )
