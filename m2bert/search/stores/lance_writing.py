"""Rows on their way into a LanceDB table: the columns that it lacks, and what it keeps of their metadata.

Tests: tests/search/test_stores.py, tests/search/test_where.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pyarrow as pa

from m2bert.search.stores import StoreInfo
from m2bert.search.stores.columns import table_schema
from m2bert.search.stores.fields import field_columns, known_fields, missing_fields
from m2bert.search.stores.lance_memory import note_rows

WIDENED_AT_ONCE = 20  # processes, each of which wins one try at least


def widen(table: Any, info: StoreInfo, fields: Collection[str]) -> None:
    """Give the table the columns that it lacks, without a value in them; another process may do so at the same time."""
    for tries_left in reversed(range(WIDENED_AT_ONCE)):
        there = table.schema.names
        missing = [field for field in table_schema(info) if field.name not in there] + missing_fields(fields, there)
        if not missing:
            return
        try:
            table.add_columns(missing)
        except RuntimeError as error:
            if not tries_left or "conflict" not in str(error):
                raise
            table.checkout_latest()


def completed(rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatchReader:
    """Rows with what the table keeps of their metadata in columns of their own."""
    fields = known_fields(schema.names)

    def complete(batch: pa.RecordBatch) -> pa.RecordBatch:
        note_rows(batch)
        columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | field_columns(batch["metadata"], fields)
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, map(complete, rows))
