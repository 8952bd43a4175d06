"""The indexes of a PostgreSQL store that are made when it is large: of vectors, and of metadata for `<` and `>=`.

PostgreSQL keeps them itself from then on. Those of words, and of metadata for `=`, are there from the beginning.
Test: tests/search/test_postgres.py.
"""

from __future__ import annotations

import hashlib
from typing import Any

from m2bert.search.stores import IndexSize
from m2bert.search.stores.fields import MOST_FIELDS
from m2bert.search.stores.postgres_tables import MOST_INDEXED_DIMENSIONS
from m2bert.search.stores.postgres_where import ordered

# As in LanceDB's store; from where on pgvector's index is quicker than its scan was not measured.
INDEXED_FROM = 20_000
VECTOR = "documents_vector"


def make_indexes(at: Any, schema: str, dim: int, *, everything: bool) -> None:
    """Make those that are missing, in a transaction that has its turn to write.

    everything: look for values of another type under names that have an index already.
    """
    at.execute("SET LOCAL maintenance_work_mem = '256MB'")
    there = _there(at, schema)
    if dim <= MOST_INDEXED_DIMENSIONS and VECTOR not in there:
        at.execute(f"CREATE INDEX {VECTOR} ON {schema}.documents USING hnsw (vector halfvec_ip_ops)")
    at.execute(f"SELECT name FROM {schema}.fields ORDER BY name LIMIT %s", [MOST_FIELDS])
    names = [row["name"] for row in at.fetchall()]
    open_ = [name for name in names if everything or not there & {_called(kind, name) for kind in ("number", "string")}]
    if not open_:
        return
    at.execute(
        f"SELECT DISTINCT name, jsonb_typeof(facts -> name) AS kind "
        f"FROM {schema}.documents, unnest(%s::text[]) AS name "
        f"WHERE jsonb_typeof(facts -> name) IN ('number', 'string')",
        [open_],
    )
    missing = [row for row in at.fetchall() if _called(row["kind"], row["name"]) not in there]
    for row in missing:
        place = ordered(row["kind"], row["name"])
        at.execute(f"CREATE INDEX {_called(row['kind'], row['name'])} ON {schema}.documents (({place}))")
    if missing:  # without statistics of the new expressions nobody knows what the indexes are worth
        at.execute(f"ANALYZE {schema}.documents")


def index_sizes(at: Any, schema: str, count: int) -> tuple[IndexSize, ...]:
    """The indexes of a store of `count` documents."""
    there = _there(at, schema)
    at.execute(f"SELECT name FROM {schema}.fields ORDER BY name LIMIT %s", [MOST_FIELDS])
    found = [IndexSize("words", "GIN", count, 0), IndexSize("metadata", "GIN", count, 0)]
    found += [IndexSize("vector", "HNSW", count, 0)] * (VECTOR in there)
    for row in at.fetchall():
        for kind in ("number", "string"):
            found += [IndexSize(row["name"], "BTree", count, 0)] * (_called(kind, row["name"]) in there)
    return tuple(found)


def _there(at: Any, schema: str) -> set[str]:
    at.execute("SELECT indexname FROM pg_indexes WHERE schemaname = %s", [schema])
    return {row["indexname"] for row in at.fetchall()}


def _called(kind: str, name: str) -> str:
    """The name of an index, of which PostgreSQL keeps 63 bytes."""
    return f"facts_{kind}_{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"
