"""Connections to PostgreSQL, and a document as the row that travels by one.

Test: tests/search/test_postgres.py.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from m2bert.errors import M2BertError, StoreError, missing_package
from m2bert.search.metadata import metadata_of_text
from m2bert.search.places import Address
from m2bert.search.stores.postgres_tables import as_text, key_of, stem_of

try:
    import psycopg
    from pgvector import HalfVector as HalfVector
    from pgvector.psycopg import register_vector
    from psycopg.rows import dict_row as dict_row
    from psycopg.types.json import Jsonb as Jsonb
except ImportError as error:
    raise missing_package("store", f"the package {error.name} for PostgreSQL", "postgres") from error


class Connections:
    """Those of one store, each for one user at a time; closed with the object."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[Any] = []
        weakref.finalize(self, _close_all, self._idle)

    @contextmanager
    def one(self) -> Iterator[Any]:
        """A connection that nobody else has meanwhile; one that the server has closed since is passed over."""
        connection = None
        while connection is None and self._idle:
            connection = self._idle.pop()
            try:
                connection.execute("")
            except psycopg.OperationalError:
                connection.close()
                connection = None
        connection = connection or _connect(self._address, vectors=True)
        try:
            yield connection
        finally:
            if not connection.closed:
                self._idle.append(connection)


def facts_of(metadata: str | None) -> dict[str, Any]:
    """Metadata as the column `facts` has them."""
    found = metadata_of_text(metadata)
    return {name: as_text(value) if isinstance(value, str) else value for name, value in found.items()}


def to_row(row: dict[str, Any]) -> list[Any]:
    """A row of m2bert.search.stores.columns.table_schema in the order of COLUMNS."""
    for name in ("source", "id"):
        if "\0" in row[name]:
            raise M2BertError(
                f"store: PostgreSQL must have a {name} without the character zero, got {row[name]!r:.80}; rename it"
            )
    stems = row["words"].split()
    return [
        key_of((row["source"], row["id"])), row["source"], row["id"], row["text_hash"], as_text(row["text"]),
        row["num_tokens"], row["num_windows"], row["num_truncated"], HalfVector(np.asarray(row["vector"])),
        [place for passage in row["passages"] for place in (passage["start"], passage["end"])],
        row["passage_vectors"], None if row["sections"] is None else as_text(row["sections"]), row["metadata"] or "",
        Jsonb(facts_of(row["metadata"])), Jsonb(Counter(map(stem_of, stems))), len(stems),
    ]  # fmt: skip


def _connect(address: Address, *, vectors: bool) -> Any:
    """Statements are planned for their values (no prepared ones), since what an index is worth depends on them."""
    connection = psycopg.connect(
        address.conninfo, autocommit=True, prepare_threshold=None, application_name="m2bert", connect_timeout=10
    )
    if vectors:
        register_vector(connection)
    return connection


@contextmanager
def connected(address: Address) -> Iterator[Any]:
    """A connection to look around by, which need not know vectors."""
    connection = _connect(address, vectors=False)
    try:
        yield connection
    finally:
        connection.close()


def make_extension(connection: Any, address: Address) -> None:
    """Make vectors known to a database. Raises M2BertError where it has no pgvector, or one that is too old."""
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.Error as error:
        raise M2BertError(
            f"store: {address.name!r} must have the extension pgvector ({_one_line(error)}); install it on the server "
            f"and let an owner of the database run CREATE EXTENSION vector"
        ) from error
    version = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()[0]
    if tuple(int(part) for part in version.split(".")[:2]) < (0, 8):
        raise M2BertError(
            f"store: {address.name!r} must have pgvector 0.8 or newer, got {version}; install it on the server and run "
            f"ALTER EXTENSION vector UPDATE"
        )


def note_fields(at: Any, table: str, names: Collection[str]) -> None:
    """Remember names that documents' metadata have."""
    if names:
        at.execute(f"INSERT INTO {table} SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", [sorted(names)])


def _close_all(connections: list[Any]) -> None:
    for connection in connections:
        connection.close()


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Failures of the database as one sentence that names the store."""
    try:
        yield
    except (psycopg.Error, UnicodeError) as error:
        raise StoreError(
            f"store: {name!r} cannot be read or written ({_one_line(error)}); check that the server runs, that the "
            f"database is there, and what the user may do in it"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
