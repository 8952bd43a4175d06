"""The store on disk: a folder with one LanceDB table, one row per document.

One table, because one commit of it is atomic: whoever reads sees the state before it or after it, also when the
writer is killed. Search goes in two steps: the first documents by their whole (a scan, in large stores an index) and by
their words are listed, and of the most promising of both lists scores are computed exactly, passages included. Words
are scored by the database's own BM25 over a column of stems (m2bert.ranking.words), with the constants of
m2bert.ranking.bm25; its index is made anew after every change, because rows that are not in it are scored by the counts
of the others.
Test: tests/search/test_index.py, tests/search/test_additions.py, tests/search/test_ranking.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m2bert._lazy import postponed
from m2bert.errors import M2BertError, StoreError
from m2bert.ranking.bm25 import word_scale
from m2bert.ranking.parts import PASSAGES, WHOLE, WORDS, Mixture
from m2bert.search.stores import Found, Key, Query, Record, StoredState, StoreInfo
from m2bert.search.stores.candidates import Listed, most_promising, undecided
from m2bert.search.stores.columns import SCORED, dense_scores, read_info, table_schema, to_records
from m2bert.search.stores.staging import STAGING

with postponed("lance_namespace_urllib3_client"):  # a third of importing LanceDB, for a service that is not used
    import lancedb
    from lancedb.index import FTS, IvfRq
    from lancedb.query import MatchQuery

TABLE = "documents"
# Readers in other processes may still use an old version of the table; an hour is far longer than a search takes, and
# so is a minute, where an hour's versions would be many.
KEPT_VERSIONS, KEPT_OF_MANY, MANY_VERSIONS = timedelta(hours=1), timedelta(minutes=1), 80
# Documents listed by the whole and by the words; and how many of them, the most promising by what the lists say, have
# their exact scores computed (docs/retrieval.md has the time and the recall).
CANDIDATES, WORDS_LISTED, SCORED_EXACTLY = 400, 3000, 150
# A scan of so many vectors takes longer than an index of them, which then has this many rows behind it at most.
INDEXED_FROM, UNINDEXED_SHARE = 20_000, 0.25
# Partitions of the index that are looked into, and bits of a number there: cosines of one bit are off by 0.04, which
# hides who is promising; of four by 0.005.
PROBES, INDEX_BITS = 20, 4
# An addition makes two versions of the table. Tidying copies every row, vectors included, into one file; the index of
# words alone is made of the texts, a twentieth of that or less.
VERSIONS_BETWEEN_TIDYING = 40
# A connection keeps the index of words of every version it has seen open, in memory and as files; a new one costs some
# milliseconds.
VERSIONS_OF_A_CONNECTION = 16
ROWS_SCANNED_AT_ONCE = 64
KEY = ("source", "id")
STATE = ("text_hash", "num_tokens", "num_windows", "num_truncated")


class LanceStore:
    """A VectorStore in the folder `path`. Any number of threads may read at once."""

    def __init__(self, path: Path, database: Any, table: Any, info: StoreInfo) -> None:
        """Use :meth:`open` or :meth:`create`."""
        self.path = path
        self.info = info
        self._database = database
        self._connected_at: int = table.version
        self._idle = [table]

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
            database = _connect(folder)
            table = database.open_table(TABLE)
            schema = table.schema
        except Exception as error:
            raise _damaged(folder, error) from error
        return cls(folder, database, table, read_info(schema, str(folder)))

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
        with self._latest() as table:
            before = table.version
            if not any(index.columns == ["words"] for index in table.list_indices()):
                _index_words(table)  # before the first rows, so that no reader sees rows without it
            if missing := [field for field in table_schema(self.info) if field.name not in table.schema.names]:
                table.add_columns(missing)  # which a store that an earlier version made lacks
            reader = pa.RecordBatchReader.from_batches(table_schema(self.info), rows)
            if replaces or remove:
                merge = table.merge_insert(["source", "id"])
                merge = merge.when_matched_update_all().when_not_matched_insert_all()
                if remove:
                    merge = merge.when_not_matched_by_source_delete(_condition(remove))
                merge.execute(reader)
            else:  # a merge of many rows writes them to a temporary file first, to be able to begin again
                table.add(reader)
            self._tidy(table, before)
            _index_words(table)
            _index_vectors(table)

    def _tidy(self, table: Any, before: int) -> None:
        """Every so many versions, of which the index of words will be one: small files together, old versions away."""
        if before // VERSIONS_BETWEEN_TIDYING == (table.version + 1) // VERSIONS_BETWEEN_TIDYING:
            return
        versions = sum(1 for _ in (self.path / f"{TABLE}.lance" / "_versions").iterdir())
        kept = min(KEPT_VERSIONS, KEPT_OF_MANY) if versions > MANY_VERSIONS else KEPT_VERSIONS
        table.optimize(cleanup_older_than=kept)

    def delete(self, keys: Collection[Key]) -> int:
        """See VectorStore.delete. One commit, and one more for the index of words if something was deleted."""
        with self._latest() as table:
            before, version = table.count_rows(), table.version
            if keys:
                table.delete(_condition(keys))
            deleted = int(before - table.count_rows())
            if deleted:
                self._tidy(table, version)
                _index_words(table)
            return deleted

    def get(self, identity: str) -> list[Record]:
        """See VectorStore.get."""
        with self._latest() as table:
            query = table.search().where(f"id = {_quoted(identity)}").limit(max(table.count_rows(), 1))
            return sorted(to_records(query.to_arrow(), self.info.dim), key=lambda record: record.key)

    def search(self, query: Query, k: int, mixture: Mixture) -> list[Found]:
        """See VectorStore.search."""
        with self._latest() as table:
            asked = query.words if mixture.words > 0 else ()
            where = _within(query.source)
            with ThreadPoolExecutor(1) as pool:
                listing = pool.submit(_matching, table, asked, max(k, WORDS_LISTED), where)
                near = _near(table, query.vector, max(k, CANDIDATES), where)
                words = listing.result()
                scale = word_scale(len(query.words), table.count_rows())
            weights = mixture.whole + mixture.passages, mixture.words * scale
            ids = most_promising(near, words, weights, max(k, SCORED_EXACTLY))
            if not ids:
                return []
            there = [name for name in table_schema(self.info).names if name in table.schema.names]
            scored = [] if query.vector is None else [name for name in SCORED if name in there]
            rows = _taken(table, ids, ["source", "id", *scored])
            scores: dict[str, NDArray[np.float64]] = {WORDS: np.zeros(len(ids))}
            if query.vector is not None:
                scores[WHOLE], scores[PASSAGES] = dense_scores(rows, query.vector, self.info.dim)
            rest = undecided(ids, mixture.combined(scores), words, weights[1], k)
            bm25 = {**words.scores, **_matching(table, asked, len(rest), _among(rest)).scores}
            scores[WORDS] = np.array([bm25.get(row, 0.0) for row in ids], dtype=np.float64) * scale
            added, total = mixture.weighted(scores), mixture.combined(scores)
            keys = list(zip(rows["source"].to_pylist(), rows["id"].to_pylist(), strict=True))
            order = sorted(range(len(keys)), key=lambda i: (-total[i], keys[i]))[:k]
            found = _taken(table, sorted(ids[i] for i in order), [name for name in there if name != "words"])
            records = dict(zip(found["_rowid"].to_pylist(), to_records(found, self.info.dim), strict=True))
        return [Found({part: float(values[i]) for part, values in added.items()}, records[ids[i]]) for i in order]

    def word_scores(self, key: Key, words: Sequence[str]) -> dict[str, float]:
        """See VectorStore.word_scores."""
        with self._latest() as table:
            query = table.search().where(_condition([key])).select(["id"]).with_row_id(True).limit(1)
            ids = query.to_arrow().column("_rowid").to_pylist()
            scale = word_scale(len(words), table.count_rows())
            found = {word: _matching(table, [word], len(ids), _among(ids)).scores.values() for word in words}
            return {word: sum(value) * words.count(word) * scale for word, value in found.items() if value}

    def states(self, keys: Collection[Key] | None = None, *, source: str | None = None) -> dict[Key, StoredState]:
        """See VectorStore.states."""
        if keys is not None and not keys:
            return {}
        with self._latest() as table:
            query = table.search().select(["source", "id", *STATE]).limit(max(table.count_rows(), 1))
            if keys is not None:
                sources, ids = ({_quoted(key[part]) for key in keys} for part in (0, 1))
                # Two lists, however many keys: a chain of ORs as long as they are many is more than SQL can read.
                query = query.where(f"source IN ({', '.join(sources)}) AND id IN ({', '.join(ids)})")
            elif source is not None:
                query = query.where(_within(source))
            rows = query.to_arrow().to_pylist()
        wanted = None if keys is None else set(keys)
        states = {(row["source"], row["id"]): StoredState(**{name: row[name] for name in STATE}) for row in rows}
        return states if wanted is None else {key: state for key, state in states.items() if key in wanted}

    def scan(self) -> Iterator[tuple[Key, pa.Table | str]]:
        """All rows, each as a table of one, or as why it cannot be read. For m2bert.search.check."""
        with self._latest() as table:
            query = table.search().select([*KEY]).with_row_id(True)
            listed = query.limit(max(table.count_rows(), 1)).to_arrow().sort_by("_rowid")
            rows, keys = (
                listed["_rowid"].to_pylist(),
                list(zip(*(listed[name].to_pylist() for name in KEY), strict=True)),
            )
            names = [name for name in table_schema(self.info).names if name in table.schema.names]
            for start in range(0, len(rows), ROWS_SCANNED_AT_ONCE):
                part = slice(start, start + ROWS_SCANNED_AT_ONCE)
                yield from zip(keys[part], _read_each(table, rows[part], names), strict=True)

    def reindex(self) -> None:
        """Make the index of words anew."""
        with self._latest() as table:
            _index_words(table)

    def count(self) -> int:
        """See VectorStore.count."""
        with self._latest() as table:
            return int(table.count_rows())

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
                self._database, idle = _connect(self.path), []
                table = self._database.open_table(TABLE)
                self._connected_at, self._idle = table.version, idle
            yield table
            idle.append(table)
        except M2BertError:
            raise
        except Exception as error:
            raise _damaged(self.path, error) from error


def _index_vectors(table: Any) -> None:
    """Make the index of vectors anew where too many rows are not in it: candidates alone come from it."""
    rows = table.count_rows()
    if rows < INDEXED_FROM:
        return
    names = [index.name for index in table.list_indices() if index.columns == ["vector"]]
    missing = table.index_stats(names[0]).num_unindexed_rows if names else rows
    if missing > UNINDEXED_SHARE * rows:
        table.create_index("vector", config=IvfRq(distance_type="dot", num_bits=INDEX_BITS), replace=True)


def _index_words(table: Any) -> None:
    """Make the index of words anew: stems between spaces, taken as they are."""
    plain = FTS(
        base_tokenizer="whitespace", lower_case=False, stem=False, remove_stop_words=False, ascii_folding=False,
        max_token_length=None,
    )  # fmt: skip
    table.create_index("words", config=plain, replace=True)


def _near(table: Any, vector: NDArray[np.float32] | None, depth: int, where: str | None) -> Listed:
    """The documents of highest inner product, by the vector index where there is one, whose scores are rough.

    where: the SQL condition that they meet, None for any.
    """
    if vector is None:
        return Listed({}, True)
    query = table.search(vector, vector_column_name="vector").distance_type("dot").nprobes(PROBES)
    if depth > CANDIDATES:  # the partitions looked into may hold fewer
        query = query.bypass_vector_index()
    if where is not None:
        query = query.where(where, prefilter=True)
    found = query.select(["_distance"]).with_row_id(True).limit(depth).to_arrow()
    scores = 1.0 - found["_distance"].to_numpy()
    return Listed(dict(zip(found["_rowid"].to_pylist(), scores.tolist(), strict=True)), len(scores) < depth)


def _matching(table: Any, words: Sequence[str], depth: int, where: str | None) -> Listed:
    """The documents of the highest BM25 among those that meet `where`, as above."""
    if not words or not depth:
        return Listed({}, True)
    query = table.search(MatchQuery(" ".join(words), "words"), query_type="fts")
    if where is not None:
        query = query.where(where, prefilter=True)
    found = query.select(["_score"]).with_row_id(True).limit(depth).to_arrow()
    scores = dict(zip(found["_rowid"].to_pylist(), found["_score"].to_pylist(), strict=True))
    return Listed(scores, len(scores) < depth)


def _taken(table: Any, ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """The rows of these ids, which ascend, with `_rowid`, in their order."""
    if not ids:
        return pa.table({name: [] for name in [*columns, "_rowid"]})
    rows = table.take_row_ids(list(ids)).select(list(columns)).with_row_id().to_arrow().combine_chunks()
    return rows if rows["_rowid"].to_pylist() == ids else rows.sort_by("_rowid")


def _read_each(table: Any, ids: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table | str]:
    """Each row as a table of one, or as why it cannot be read, which is no reason not to read the others."""
    try:
        taken = _taken(table, ids, columns)
        if len(taken) == len(ids):
            yield from (taken.slice(place, 1) for place in range(len(ids)))
            return
        error = "it is listed and not there"
    except Exception as failed:  # what the database says of a damaged file is of any kind
        error = f"it cannot be read: {_one_line(failed)}"
    if len(ids) == 1:
        yield error
        return
    for row in ids:
        yield from _read_each(table, [row], columns)


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


def _within(source: str | None) -> str | None:
    """SQL that is true for the documents of a source; None, for all, without one."""
    return None if source is None else f"source = {_quoted(source)}"


def _among(ids: Collection[int]) -> str:
    """SQL that is true for these row ids."""
    return f"_rowid IN ({', '.join(map(str, ids))})"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _damaged(folder: Path, error: Exception) -> StoreError:
    return StoreError(
        f"store: {str(folder)!r} cannot be read or written ({_one_line(error)}); "
        f"check permissions and space, restore a copy, or index into a new folder"
    )
