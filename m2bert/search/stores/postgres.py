"""The store in PostgreSQL with pgvector: a schema of a database, one row of `documents` per document.

A change is one transaction, so whoever reads sees the state before it or after it. Writers take turns at the row of
`store`. Search goes in two steps, as in m2bert.search.stores.lance: the first documents by their whole (a scan, in
large stores pgvector's HNSW) and by their words are listed, and scores of the most promising are computed exactly,
passages included. Vectors are kept as 16-bit numbers, passages by a byte a number.

Words are scored by BM25 with the constants of m2bert.ranking.bm25, from how often each stem is in a document (`words`,
jsonb with a GIN index: a tsvector counts to 256 and ends at a megabyte) and in how many documents (`words`, the table),
which every transaction keeps right; so scores are those of LanceDB to rounding.
Test: tests/search/test_stores.py, tests/search/test_postgres.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m2bert.errors import M2BertError
from m2bert.ranking.bm25 import K1, B, word_scale
from m2bert.ranking.parts import Mixture
from m2bert.search.metadata import metadata_of_text
from m2bert.search.places import Address
from m2bert.search.stores import Found, Key, Query, Record, StoredState, StoreInfo, StoreSizes
from m2bert.search.stores.candidates import Listed, depths
from m2bert.search.stores.columns import to_record
from m2bert.search.stores.postgres_connections import (
    Connections,
    HalfVector,
    Jsonb,
    connected,
    dict_row,
    errors_of,
    facts_of,
    make_extension,
    note_fields,
    to_row,
)
from m2bert.search.stores.postgres_indexes import INDEXED_FROM, index_sizes, make_indexes
from m2bert.search.stores.postgres_tables import (
    COLUMNS,
    FORMAT_VERSION,
    MOST_DIMENSIONS,
    TABLES,
    as_text,
    key_of,
    spans_of,
    stem_of,
)
from m2bert.search.stores.postgres_where import Sql, to_sql
from m2bert.search.stores.ranked import CANDIDATES, SCORED_EXACTLY, WORDS_LISTED, best_of

MOST_LOOKED_AT = 20_000  # documents that have the rarest words of a query, whose words are then counted
MOST_LISTED = 1000  # at once, by pgvector
KEYS_AT_ONCE = 5_000
STATE = "source, id, text_hash, num_tokens, num_windows, num_truncated, metadata"
KEPT = f"{STATE}, text, vector, passages, passage_vectors, sections"
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresStore:
    """A VectorStore in a schema of a database. Any number of threads may use it at once, each by a connection."""

    def __init__(self, address: Address, path: Path, info: StoreInfo) -> None:
        """Use :meth:`open_if_made` or :meth:`create`. path: folder of this machine for what is on its way."""
        self.path, self.info, self.name = path, info, address.name
        self._address = address
        self._connections = Connections(address)

    @classmethod
    def open_if_made(cls, address: Address, path: Path) -> PostgresStore | None:
        """The store at an address; None where there is none.

        Raises M2BertError where the database cannot be reached, or the schema is something else's or of another format.
        """
        with errors_of(address.name), connected(address) as connection:
            query = "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s"
            there = {name for (name,) in connection.execute(query, [address.schema])}
            if not there:
                return None
            if not {"store", "documents", "words", "fields"} <= there:
                raise M2BertError(
                    f"store: the schema {address.schema!r} of {address.name!r} is not a store of m2bert and is left as "
                    f"it is; name another behind a #"
                )
            query = f"SELECT format, model, fingerprint, dim FROM {address.schema}.store"
            version, *values = connection.execute(query).fetchone()
        if version != FORMAT_VERSION:
            raise M2BertError(
                f"store: {address.name!r} is of format {version}, this version of m2bert reads and writes format "
                f"{FORMAT_VERSION}; index into a new schema, named behind a #, or use the version that wrote it"
            )
        return cls(address, path, StoreInfo(*values))

    @classmethod
    def create(cls, address: Address, path: Path, info: StoreInfo) -> PostgresStore:
        """Make an empty store, or open the one another process has made meanwhile. Raises M2BertError as above."""
        if info.dim > MOST_DIMENSIONS:
            raise M2BertError(
                f"store: PostgreSQL keeps vectors of at most {MOST_DIMENSIONS:,} dimensions, got {info.dim:,}; use a "
                f"folder, or --truncate-dim"
            )
        with errors_of(address.name), connected(address) as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"m2bert {address.schema}"])
            make_extension(connection, address)
            query = "SELECT to_regnamespace(%s) IS NULL"
            if connection.execute(query, [address.schema]).fetchone()[0]:
                connection.execute(TABLES.format(schema=address.schema, dim=info.dim))
                query = f"INSERT INTO {address.schema}.store VALUES (%s, %s, %s, %s, 0, 0)"
                connection.execute(query, [FORMAT_VERSION, info.model, info.fingerprint, info.dim])
        made = cls.open_if_made(address, path)
        if made is None:
            raise M2BertError(
                f"store: the schema {address.schema!r} of {address.name!r} is there and empty; drop it, or name one "
                f"behind a #"
            )
        return made

    def add(
        self,
        rows: Iterable[pa.RecordBatch],
        *,
        remove: Collection[Key] = (),
        replaces: bool = True,
        fields: Collection[str] = (),
    ) -> None:
        """See VectorStore.add. One transaction."""
        columns = ", ".join(COLUMNS)
        with self._transaction() as at:
            self._wait_for_turn(at)
            at.execute(
                f"CREATE TEMP TABLE incoming ON COMMIT DROP AS SELECT {columns} FROM {self._of('documents')} LIMIT 0"
            )
            names: set[str] = set()
            with at.copy(f"COPY incoming ({columns}) FROM STDIN") as copy:
                for batch in rows:
                    for row in batch.to_pylist():
                        copy.write_row(to_row(row))
                        names |= metadata_of_text(row["metadata"]).keys()
            gone = "key = ANY(%s)" + (" OR key IN (SELECT key FROM incoming)" if replaces else "")
            if replaces or remove:
                self._forget(at, gone, [[key_of(key) for key in remove]])
            at.execute(f"INSERT INTO {self._of('documents')} ({columns}) SELECT {columns} FROM incoming")
            at.execute(
                f"INSERT INTO {self._of('words')} AS w "
                f"SELECT word, count(*) FROM incoming, jsonb_object_keys(words) AS word GROUP BY word "
                f"ON CONFLICT (word) DO UPDATE SET documents = w.documents + excluded.documents"
            )
            at.execute(
                f"UPDATE {self._of('store')} SET num_documents = num_documents + n, num_words = num_words + total "
                f"FROM (SELECT count(*) AS n, coalesce(sum(length), 0) AS total FROM incoming) AS came"
            )
            note_fields(at, self._of("fields"), names)

    def describe(self, metadata: Mapping[Key, str]) -> None:
        """See VectorStore.describe."""
        with self._transaction() as at:
            self._wait_for_turn(at)
            for key, text in metadata.items():
                query = f"UPDATE {self._of('documents')} SET metadata = %s, facts = %s WHERE key = %s"
                facts = facts_of(text)
                at.execute(query, [text, Jsonb(facts), key_of(key)])
                note_fields(at, self._of("fields"), facts)

    def delete(self, keys: Collection[Key]) -> int:
        """See VectorStore.delete. One transaction."""
        with self._transaction() as at:
            self._wait_for_turn(at)
            return self._forget(at, "key = ANY(%s)", [[key_of(key) for key in keys]])

    def refresh(self, *, everything: bool = False) -> None:
        """See VectorStore.refresh: a large store gets indexes that it has not; PostgreSQL keeps them itself."""
        if self.count() >= INDEXED_FROM:
            with self._transaction() as at:
                self._wait_for_turn(at)
                make_indexes(at, self._address.schema, self.info.dim, everything=everything)
        if everything:
            with self._transaction() as at:
                self._wait_for_turn(at)
                at.execute(f"DELETE FROM {self._of('words')} WHERE documents <= 0")
            with errors_of(self.name), self._connections.one() as connection:
                connection.execute(f"VACUUM ANALYZE {self._of('documents')}")

    def get(self, identity: str) -> list[Record]:
        """See VectorStore.get."""
        with self._transaction(SNAPSHOT) as at:
            at.execute(f"SELECT {KEPT} FROM {self._of('documents')} WHERE id = %s", [as_text(identity)])
            records = [self._record(row) for row in at.fetchall()]
        return sorted(records, key=lambda record: record.key)

    def search(self, query: Query, k: int, mixture: Mixture) -> list[Found]:
        """See VectorStore.search."""
        asked = query.words if mixture.words > 0 else ()
        with self._transaction(SNAPSHOT) as at:
            where = self._where(at, query)
            count, weights = self._weights(at, asked)
            scale = word_scale(len(query.words), count)
            k, (listed, scored) = min(k, count), depths(count, CANDIDATES, SCORED_EXACTLY)
            near = self._near(at, query.vector, max(k, min(listed, MOST_LISTED)), where)
            words = self._matching(at, weights, max(k, WORDS_LISTED), where)
            return best_of(
                query.vector, k, mixture, (near, words), scale,
                lambda rows, columns: self._taken(at, rows, columns),
                lambda rows: self._scores(at, weights, len(rows), ("number = ANY(%s)", [list(rows)])),
                lambda rows: self._records(at, rows),
                scored,
            )  # fmt: skip

    def word_scores(self, key: Key, words: Sequence[str]) -> dict[str, float]:
        """See VectorStore.word_scores."""
        with self._transaction(SNAPSHOT) as at:
            found = {}
            for word in dict.fromkeys(words):
                count, weights = self._weights(at, [word])
                scores = self._scores(at, weights, 1, ("key = %s", [key_of(key)]))
                if scores:
                    found[word] = sum(scores.values()) * words.count(word) * word_scale(len(words), count)
            return found

    def states(self, keys: Collection[Key] | None = None, *, source: str | None = None) -> dict[Key, StoredState]:
        """See VectorStore.states."""
        if keys is not None:
            test: Sql = ("key = ANY(%s)", [[key_of(key) for key in keys]])
        else:
            test = ("true", []) if source is None else ("source = %s", [as_text(source)])
        with self._transaction(SNAPSHOT) as at:
            at.execute(f"SELECT {STATE} FROM {self._of('documents')} WHERE {test[0]}", test[1])
            return {(row.pop("source"), row.pop("id")): StoredState(**row) for row in at.fetchall()}

    def ids(self, source: str) -> Iterator[Sequence[str]]:
        """See VectorStore.ids."""
        with self._transaction(SNAPSHOT) as at:
            at.execute(f"SELECT id FROM {self._of('documents')} WHERE source = %s", [as_text(source)])
            while rows := at.fetchmany(KEYS_AT_ONCE):
                yield [row["id"] for row in rows]

    def count(self) -> int:
        """See VectorStore.count."""
        with self._transaction(SNAPSHOT) as at:
            return int(at.execute(f"SELECT num_documents AS n FROM {self._of('store')}").fetchone()["n"])

    def sizes(self) -> StoreSizes:
        """See VectorStore.sizes; the bytes are those of its tables and their indexes."""
        with self._transaction(SNAPSHOT) as at:
            query = "SELECT sum(pg_total_relation_size(name)) AS n FROM unnest(%s::regclass[]) AS name"
            at.execute(query, [[self._of(table) for table in ("store", "documents", "words", "fields")]])
            size = int(at.fetchone()["n"])
            at.execute(f"SELECT name FROM {self._of('fields')} ORDER BY name")
            names = tuple(row["name"] for row in at.fetchall())
            at.execute(f"SELECT num_documents AS n FROM {self._of('store')}")
            indexes = index_sizes(at, self._address.schema, int(at.fetchone()["n"]))
        return StoreSizes(size, indexes, names)

    def _near(self, at: Any, vector: NDArray[np.float32] | None, depth: int, where: Sql) -> Listed:
        """The documents of highest inner product, by the index where there is one."""
        if vector is None:
            return Listed({}, True)
        at.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        at.execute(f"SET LOCAL hnsw.ef_search = {min(depth, MOST_LISTED)}")
        query = (
            f"SELECT number, -(vector <#> %s) AS score FROM {self._of('documents')} WHERE {where[0]} "
            f"ORDER BY vector <#> %s LIMIT %s"
        )
        asked = HalfVector(vector)
        values = [asked, *where[1], asked, depth]
        found = at.execute(query, values).fetchall() if depth <= MOST_LISTED else []
        if len(found) < depth:  # an index may stop before it has found all that meet a condition
            at.execute("SET LOCAL enable_indexscan = off")
            found = at.execute(query, values).fetchall()
            at.execute("SET LOCAL enable_indexscan = on")
        return Listed({row["number"]: row["score"] for row in found}, len(found) < depth)

    def _weights(self, at: Any, words: Sequence[str]) -> tuple[int, dict[str, tuple[float, int]]]:
        """How many documents there are; and of each word the most it can give, and how many have it, rarest first."""
        at.execute(f"SELECT num_documents, num_words FROM {self._of('store')}")
        count = int(at.fetchone()["num_documents"])
        repeats = Counter(map(stem_of, words))
        at.execute(
            f"SELECT word, documents FROM {self._of('words')} WHERE word = ANY(%s) AND documents > 0 "
            f"ORDER BY documents, word",
            [list(repeats)],
        )
        weights = {}
        for row in at.fetchall():
            word, holding = row["word"], row["documents"]
            idf = math.log(1 + (count - holding + 0.5) / (holding + 0.5))
            weights[word] = (idf * (K1 + 1) * repeats[word], holding)
        return count, weights

    def _matching(self, at: Any, weights: Mapping[str, tuple[float, int]], depth: int, where: Sql) -> Listed:
        """The documents of the highest BM25, of those that have the rarest words; what others may have is the bound."""
        if not weights:
            return Listed({}, True)
        looked_for: list[str] = []
        total = 0
        for word, (_, holding) in weights.items():
            total += holding
            if looked_for and total > MOST_LOOKED_AT:
                break
            looked_for.append(word)
        rest = sum(weight for word, (weight, _) in weights.items() if word not in looked_for)
        test = f"documents.words ?| %s AND {where[0]}"
        scores = self._scores(at, weights, depth, (test, [looked_for, *where[1]]))
        return Listed(scores, len(scores) < depth and not rest, rest)

    def _scores(self, at: Any, weights: Mapping[str, tuple[float, int]], depth: int, test: Sql) -> dict[int, float]:
        """The highest BM25 of documents that meet a test, by row; without those that have none of the words."""
        if not weights or not depth:
            return {}
        query = f"""
            SELECT number, score FROM (
                SELECT number, (
                    SELECT sum(asked.weight * n / (n + {K1} * ({1 - B} + {B} * length / mean)))
                    FROM unnest(%s::text[], %s::float8[]) AS asked(word, weight),
                    LATERAL (SELECT (held.words ->> asked.word)::float8 AS n) AS counted
                ) AS score
                FROM {self._of("documents")},
                LATERAL (SELECT words || '{{}}'::jsonb AS words OFFSET 0) AS held,
                (SELECT greatest(num_words::float8 / greatest(num_documents, 1), 1e-9) AS mean
                 FROM {self._of("store")}) AS means
                WHERE {test[0]}
            ) AS scored WHERE score > 0 ORDER BY score DESC, number LIMIT %s"""
        values = [list(weights), [weight for weight, _ in weights.values()], *test[1], depth]
        return {row["number"]: row["score"] for row in at.execute(query, values).fetchall()}

    def _taken(self, at: Any, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        query = f"SELECT {', '.join(columns)} FROM {self._of('documents')} WHERE number = ANY(%s) ORDER BY number"
        found = at.execute(query, [list(rows)]).fetchall()
        taken: dict[str, Any] = {name: [row[name] for row in found] for name in columns if name != "vector"}
        if "vector" in columns:
            numbers = np.concatenate([row["vector"].to_numpy() for row in found]).astype(np.float32)
            taken["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(numbers), self.info.dim)
        return pa.table(taken)

    def _records(self, at: Any, rows: Sequence[int]) -> dict[int, Record]:
        at.execute(f"SELECT number, {KEPT} FROM {self._of('documents')} WHERE number = ANY(%s)", [list(rows)])
        return {row["number"]: self._record(row) for row in at.fetchall()}

    def _record(self, row: dict[str, Any]) -> Record:
        own = {"vector": row["vector"].to_numpy().astype(np.float32), "passages": spans_of(row["passages"])}
        return to_record({**row, **own}, self.info.dim)

    def _where(self, at: Any, query: Query) -> Sql:
        """SQL that is true for the documents that a query may find."""
        tests: list[Sql] = [] if query.source is None else [("source = %s", [as_text(query.source)])]
        if query.where is not None:
            known = [row["name"] for row in at.execute(f"SELECT name FROM {self._of('fields')}").fetchall()]
            tests.append(to_sql(query.where, known))
        return " AND ".join(test for test, _ in tests) or "true", [value for _, values in tests for value in values]

    def _forget(self, at: Any, test: str, values: Sequence[Any]) -> int:
        """Delete documents, and take them out of the counts; returns how many there were."""
        at.execute(
            f"WITH gone AS (DELETE FROM {self._of('documents')} WHERE {test} RETURNING words, length), "
            f"held AS (SELECT word, count(*) AS n FROM gone, jsonb_object_keys(words) AS word GROUP BY word), "
            f"lowered AS (UPDATE {self._of('words')} AS w SET documents = w.documents - held.n "
            f"FROM held WHERE w.word = held.word) "
            f"UPDATE {self._of('store')} SET num_documents = num_documents - n, num_words = num_words - total "
            f"FROM (SELECT count(*) AS n, coalesce(sum(length), 0) AS total FROM gone) AS went RETURNING n",
            values,
        )
        return int(at.fetchone()["n"])

    def _wait_for_turn(self, at: Any) -> None:
        """Writers take turns, because all of them change the counts."""
        at.execute(f"SELECT 1 FROM {self._of('store')} FOR UPDATE")

    def _of(self, table: str) -> str:
        return f"{self._address.schema}.{table}"

    @contextmanager
    def _transaction(self, kind: str | None = None) -> Iterator[Any]:
        """A cursor in one transaction, whose failures are one sentence that names the store."""
        with (
            errors_of(self.name),
            self._connections.one() as connection,
            connection.transaction(),
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            if kind is not None:
                cursor.execute(kind)
            yield cursor
