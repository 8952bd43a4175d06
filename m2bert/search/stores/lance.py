"""The store on disk: a folder with one LanceDB table, one row per document.

One table, because one commit of it is atomic: whoever reads sees the state before it or after it, also when the
writer is killed. Search goes in two steps: the first documents by their whole (a scan, in large stores an index) and by
their words are listed, and of the most promising of both lists scores are computed exactly, passages included. Words
are scored by the database's own BM25 over a column of stems (m2bert.ranking.words), with the constants of
m2bert.ranking.bm25; its index is made anew after every change of a small store, and before too many rows are not in it
of a large one (m2bert.search.stores.lance_indexes), because those are scored by the counts of the others.
Test: tests/search/test_index.py, tests/search/test_additions.py, tests/search/test_ranking.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from m2bert.errors import M2BertError
from m2bert.ranking.bm25 import word_scale
from m2bert.ranking.parts import Mixture
from m2bert.search.metadata import metadata_of_text
from m2bert.search.stores import Found, Key, Query, Record, StoredState, StoreInfo, StoreSizes
from m2bert.search.stores.candidates import depths
from m2bert.search.stores.columns import read_info, table_schema, to_records
from m2bert.search.stores.fields import (
    field_columns,
    fields_of,
    known_fields,
    known_names,
    quoted,
    sql_of_keys,
    sql_of_query,
    sql_of_rows,
)
from m2bert.search.stores.lance_indexes import (
    BEHIND,
    BEHIND_WHILE_ADDING,
    VectorIndex,
    index_fields,
    index_sizes,
    index_vectors,
    index_words,
    vector_index,
    words_behind,
)
from m2bert.search.stores.lance_memory import fits_together, keep_in_bounds
from m2bert.search.stores.lance_places import (
    TABLE,
    bytes_at,
    connect,
    damaged,
    has_table,
    is_unused,
    largest_part_at,
    one_line,
)
from m2bert.search.stores.lance_reading import matching, near, scanned, taken
from m2bert.search.stores.lance_writing import completed, widen
from m2bert.search.stores.ranked import CANDIDATES, SCORED_EXACTLY, WORDS_LISTED, best_of

# Readers in other processes may still use an old version of the table; an hour is far longer than a search takes, and
# so is a minute, where an hour's versions would be many.
KEPT_VERSIONS, KEPT_OF_MANY, MANY_VERSIONS = timedelta(hours=1), timedelta(minutes=1), 80
# Where files take so many times what the latest version needs, only the version before the change is kept as well, and
# a reader of an older one begins again with the latest. Of small stores alone, because tidying takes rows into memory.
CROWDED, CROWDED_BYTES = 2.0, 32 << 20
# Files of so many bytes are read as quickly as larger ones: putting them together, which copies all rows, and takes
# indexes into memory to change the numbers of their rows, waits so many times longer, unless old versions and indexes
# take so many times what the latest version needs.
LARGE_FILE, WAITING, WASTEFUL = 4 << 20, 10, 3.0
READING_TRIES = 20
# An addition makes two versions of the table. Tidying copies every row, vectors included, into one file; the index of
# words alone is made of the texts, a twentieth of that or less.
VERSIONS_BETWEEN_TIDYING = 40
# A connection keeps the index of words of every version it has seen open, in memory and as files; a new one costs some
# milliseconds.
VERSIONS_OF_A_CONNECTION = 16
STATE = ("text_hash", "num_tokens", "num_windows", "num_truncated")
KEYS_AT_ONCE = 5_000
Made = TypeVar("Made")


class LanceStore:
    """A VectorStore in the folder `path`. Any number of threads may read at once."""

    def __init__(self, path: Path, database: Any, table: Any, info: StoreInfo, name: str | None = None) -> None:
        """Use :meth:`open` or :meth:`create`. name: for messages; of object storage, whose folder is `path` here."""
        self.path, self.info = path, info
        self.name = name or str(path)
        self._is_remote, self._place = name is not None, name or path
        self._database = database
        self._connected_at: int = table.version
        self._tidied_until: int = table.version - 2  # whoever wrote last may have made an index or two after tidying
        self._idle = [table]
        self._indexes: tuple[int, VectorIndex | None] = (-1, None)
        self._words_of = -1  # the version that an index of words was made in, of all rows

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
        if not has_table(folder):
            raise M2BertError(
                f"store: {str(folder)!r} is not a store of m2bert and is left as it is; give another folder"
            )
        return cls._of_database(lambda: connect(folder), folder, str(folder))

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
            connect(folder).create_table(TABLE, schema=table_schema(info), exist_ok=True)
        except Exception as error:
            raise M2BertError(
                f"store: cannot make a store at {str(folder)!r} ({one_line(error)}); choose a folder you may write"
            ) from error
        return cls.open(folder)

    @classmethod
    def open_remote(cls, url: str, path: Path) -> LanceStore | None:
        """The store in object storage at `url`; None where there is none. path: folder of this machine for what is on
        its way. Raises M2BertError where it cannot be reached, is something else, or of another format."""
        try:
            if TABLE not in connect(url).list_tables().tables:
                return None
        except Exception as error:
            raise damaged(url, error) from error
        return cls._of_database(lambda: connect(url), path, url, remote=True)

    @classmethod
    def create_remote(cls, url: str, path: Path, info: StoreInfo) -> LanceStore:
        """Make an empty store in object storage, or open the one that is there. Raises M2BertError as open_remote."""
        try:
            connect(url).create_table(TABLE, schema=table_schema(info), exist_ok=True)
        except Exception as error:
            raise damaged(url, error) from error
        return cls._of_database(lambda: connect(url), path, url, remote=True)

    @classmethod
    def _of_database(cls, connected: Callable[[], Any], path: Path, name: str, *, remote: bool = False) -> LanceStore:
        try:
            database = connected()
            table = database.open_table(TABLE)
            schema = table.schema
        except Exception as error:
            raise damaged(name, error) from error
        return cls(path, database, table, read_info(schema, name), name if remote else None)

    def add(
        self,
        rows: Iterable[pa.RecordBatch],
        *,
        remove: Collection[Key] = (),
        replaces: bool = True,
        fields: Collection[str] = (),
    ) -> None:
        """See VectorStore.add. One commit, and one more for the index of words."""
        with self._latest() as table:
            if not any(index.columns == ["words"] for index in table.list_indices()):
                index_words(table)  # before the first rows, so that no reader sees rows without it
            widen(table, self.info, fields)
            reader = completed(rows, table.schema)
            if replaces or remove:
                merge = table.merge_insert(["source", "id"])
                merge = merge.when_matched_update_all().when_not_matched_insert_all()
                if remove:
                    merge = merge.when_not_matched_by_source_delete(sql_of_keys(remove))
                merge.execute(reader)
            else:  # a merge of many rows writes them to a temporary file first, to be able to begin again
                table.add(reader)
            self._tidy(table, replaced=replaces or bool(remove))
            self._index_words(table, int(BEHIND_WHILE_ADDING * table.count_rows()))
            index_vectors(table, CANDIDATES, BEHIND_WHILE_ADDING)

    def describe(self, metadata: Mapping[Key, str]) -> None:
        """See VectorStore.describe. Other columns, vectors among them, are not written again."""
        with self._latest() as table:
            widen(table, self.info, fields_of(map(metadata_of_text, metadata.values())))
            names, keys = known_fields(table.schema.names), list(metadata)
            columns = {name: pa.array([key[part] for key in keys]) for part, name in enumerate(("source", "id"))}
            columns["metadata"] = pa.array(list(metadata.values()), pa.large_string())
            columns |= field_columns(columns["metadata"], names)
            table.merge_insert(["source", "id"]).when_matched_update_all().execute(pa.table(columns))
            self._tidy(table)
            self._index_words(table, int(BEHIND_WHILE_ADDING * table.count_rows()))

    def refresh(self, *, everything: bool = False) -> None:
        """See VectorStore.refresh."""
        with self._latest() as table:
            if everything:
                keep_in_bounds(table)
                table.optimize(cleanup_older_than=KEPT_VERSIONS)
            if everything or table.version != self._words_of:
                self._index_words(table, None if everything else words_behind(table))
            index_vectors(table, CANDIDATES, 0.0 if everything else BEHIND)
            index_fields(table)

    def _index_words(self, table: Any, allowed: int | None) -> None:
        if index_words(table, allowed):
            self._words_of = table.version

    def _tidy(self, table: Any, *, replaced: bool = True) -> None:
        """Every so many versions, of which the index of words will be one, or where old versions take more than the
        latest: small files together, old versions away."""
        before, self._tidied_until = self._tidied_until, table.version + 1
        stats = table.stats()
        size = stats["total_bytes"]
        crowded = replaced and not self._is_remote and size < CROWDED_BYTES and bytes_at(self.path) > CROWDED * size
        is_large = size >= LARGE_FILE * max(stats["fragment_stats"]["num_fragments"], 1)
        between = VERSIONS_BETWEEN_TIDYING * (WAITING if is_large and not self._is_wasteful(size) else 1)
        if not crowded and before // between == self._tidied_until // between:
            return
        versions = table.list_versions()
        kept = min(KEPT_VERSIONS, KEPT_OF_MANY) if len(versions) > MANY_VERSIONS else KEPT_VERSIONS
        if crowded and len(versions) > 1:
            # Counted back from when it is looked at, a moment later.
            kept = min(kept, versions[-1]["timestamp"] - versions[-2]["timestamp"] + timedelta(seconds=0.03))
        keep_in_bounds(table)
        if fits_together(table, largest_part_at(self._place)):  # or else the next time
            table.optimize(cleanup_older_than=kept)

    def _is_wasteful(self, size: int) -> bool:
        """Whether old versions and indexes take so much that tidying pays though files are large."""
        return self._is_remote or bytes_at(self.path) > WASTEFUL * size

    def delete(self, keys: Collection[Key]) -> int:
        """See VectorStore.delete. One commit, and one more for the index of words if something was deleted."""
        with self._latest() as table:
            before = table.count_rows()
            if keys:
                table.delete(sql_of_keys(keys))
            if deleted := int(before - table.count_rows()):
                self._tidy(table)
                self._index_words(table, int(BEHIND_WHILE_ADDING * table.count_rows()))
            return deleted

    def get(self, identity: str) -> list[Record]:
        """See VectorStore.get."""

        def rows(table: Any) -> pa.Table:
            return table.search().where(f"id = {quoted(identity)}").limit(max(table.count_rows(), 1)).to_arrow()

        return sorted(to_records(self._read(rows), self.info.dim), key=lambda record: record.key)

    def search(self, query: Query, k: int, mixture: Mixture) -> list[Found]:
        """See VectorStore.search."""
        return self._read(lambda table: self._search(table, query, k, mixture))

    def _search(self, table: Any, query: Query, k: int, mixture: Mixture) -> list[Found]:
        asked = query.words if mixture.words > 0 else ()
        where, index, count = sql_of_query(query, table.schema.names), self._vector_index(table), table.count_rows()
        k = min(k, count)  # of this version: another may have fewer
        listed, scored_exactly = depths(count, CANDIDATES, SCORED_EXACTLY)
        if k > listed:
            index = None  # the partitions that are looked into may hold fewer
        with ThreadPoolExecutor(1) as pool:
            listing = pool.submit(matching, table, asked, max(k, WORDS_LISTED), where)
            nearest = near(table, query.vector, max(k, listed), where, index, max(k, CANDIDATES))
            words = listing.result()
            scale = word_scale(len(query.words), count)
        return best_of(
            query.vector, k, mixture, (nearest, words), scale,
            lambda rows, columns: taken(table, rows, columns),
            lambda rows: matching(table, asked, len(rows), sql_of_rows(rows)).scores,
            lambda rows: self._records(table, rows),
            scored_exactly,
        )  # fmt: skip

    def _records(self, table: Any, rows: Sequence[int]) -> dict[int, Record]:
        """Rows, which ascend, as a whole."""
        there = set(table.schema.names)
        names = [name for name in table_schema(self.info).names if name in there and name != "words"]
        found = taken(table, rows, names)
        return dict(zip(found["_rowid"].to_pylist(), to_records(found, self.info.dim), strict=True))

    def word_scores(self, key: Key, words: Sequence[str]) -> dict[str, float]:
        """See VectorStore.word_scores."""

        def scores(table: Any) -> dict[str, float]:
            query = table.search().where(sql_of_keys([key])).select(["id"]).with_row_id(True).limit(1)
            ids = query.to_arrow().column("_rowid").to_pylist()
            scale = word_scale(len(words), table.count_rows())
            found = {word: matching(table, [word], len(ids), sql_of_rows(ids)).scores.values() for word in words}
            return {word: sum(value) * words.count(word) * scale for word, value in found.items() if value}

        return self._read(scores)

    def states(self, keys: Collection[Key] | None = None, *, source: str | None = None) -> dict[Key, StoredState]:
        """See VectorStore.states."""
        if keys is not None and not keys:
            return {}

        def read(table: Any) -> list[dict[str, Any]]:
            kept = [*STATE, *(["metadata"] if "metadata" in table.schema.names else [])]
            query = table.search().select(["source", "id", *kept]).limit(max(table.count_rows(), 1))
            if keys is not None:
                sources, ids = ({quoted(key[part]) for key in keys} for part in (0, 1))
                # Two lists, however many keys: a chain of ORs as long as they are many is more than SQL can read.
                query = query.where(f"source IN ({', '.join(sources)}) AND id IN ({', '.join(ids)})")
            elif source is not None:
                query = query.where(f"source = {quoted(source)}")
            rows: list[dict[str, Any]] = query.to_arrow().to_pylist()
            return rows

        rows = self._read(read)
        wanted = None if keys is None else set(keys)
        states = {
            (row["source"], row["id"]): StoredState(
                **{name: row[name] for name in STATE}, metadata=row.get("metadata") or ""
            )
            for row in rows
        }
        return states if wanted is None else {key: state for key, state in states.items() if key in wanted}

    def ids(self, source: str) -> Iterator[Sequence[str]]:
        """See VectorStore.ids."""
        with self._latest() as table:
            query = table.search().select(["id"]).where(f"source = {quoted(source)}").limit(max(table.count_rows(), 1))
            for batch in query.to_batches(KEYS_AT_ONCE):
                yield batch["id"].to_pylist()

    def scan(self) -> Iterator[tuple[Key, pa.Table | str]]:
        """All rows, each as a table of one, or as why it cannot be read. For m2bert.search.check."""
        with self._latest() as table:
            yield from scanned(table, table_schema(self.info).names)

    def count(self) -> int:
        """See VectorStore.count."""
        return self._read(lambda table: int(table.count_rows()))

    def sizes(self) -> StoreSizes:
        """See VectorStore.sizes."""
        indexes, names = self._read(lambda table: (index_sizes(table), known_names(table.schema.names)))
        return StoreSizes(bytes_at(self._place), indexes, tuple(names))

    def _vector_index(self, table: Any) -> VectorIndex | None:
        """The index of vectors of a version of the table, looked for once."""
        if self._indexes[0] != table.version:
            self._indexes = (table.version, vector_index(table))
        return self._indexes[1]

    def _read(self, work: Callable[[Any], Made]) -> Made:
        """What `work` makes of the latest version, or of a later one where a writer has tidied that away meanwhile."""
        for left in reversed(range(READING_TRIES)):
            with self._latest() as table:
                version = table.version
                try:
                    return work(table)
                except Exception:
                    table.checkout_latest()
                    if not left or table.version == version:
                        raise
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _latest(self) -> Iterator[Any]:
        """The table at its latest version, its failures as one sentence that names the store.

        Nobody else has the same handle meanwhile, since a look of another thread at the latest version would move it.
        """
        try:
            idle = self._idle
            try:
                table = idle.pop()
            except IndexError:
                table = self._database.open_table(TABLE)
            table.checkout_latest()
            if abs(table.version - self._connected_at) >= VERSIONS_OF_A_CONNECTION:
                self._database, idle = connect(self._place), []
                table = self._database.open_table(TABLE)
                self._connected_at, self._idle = table.version, idle
            yield table
            idle.append(table)
        except M2BertError:
            raise
        except Exception as error:
            raise damaged(self.name, error) from error
