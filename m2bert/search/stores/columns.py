"""Records as Arrow columns: the layout of a store's table and of its staged files.

Test: tests/search/test_index.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from m2bert.errors import M2BertError
from m2bert.search.stores import Record, StoreInfo

FORMAT_VERSION = 2
PREFIX = "m2bert."
BATCH_BYTES = 32 << 20


def table_schema(info: StoreInfo) -> pa.Schema:
    """Columns of a store; `info` travels in the schema's metadata together with the format version."""
    passage = pa.struct([pa.field("start", pa.int64(), False), pa.field("end", pa.int64(), False)])
    fields = [
        pa.field("source", pa.string(), False),
        pa.field("id", pa.string(), False),
        pa.field("text_hash", pa.string(), False),
        pa.field("text", pa.large_string(), False),
        pa.field("num_tokens", pa.int64(), False),
        pa.field("num_windows", pa.int64(), False),
        pa.field("num_truncated", pa.int64(), False),
        pa.field("vector", pa.list_(pa.float32(), info.dim), False),
        pa.field("passages", pa.list_(passage), False),
        # All vectors of a document's passages as one blob, (passages, dim) little-endian float32, compressed: of its
        # lexical features a passage has only those of its own words.
        pa.field("passage_vectors", pa.large_binary(), False),
    ]
    values = {"format": str(FORMAT_VERSION), "model": info.model, "fingerprint": info.fingerprint}
    values["dim"] = str(info.dim)
    return pa.schema(fields, metadata={PREFIX + name: value for name, value in values.items()})


def read_info(schema: pa.Schema, where: str) -> StoreInfo:
    """The binding of the store at `where`. Raises M2BertError when it is not ours or of another format."""
    found = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    version = found.get(PREFIX + "format")
    if version is None:
        raise M2BertError(f"store: {where!r} holds a table that m2bert did not write; choose another folder")
    if version != str(FORMAT_VERSION):
        raise M2BertError(
            f"store: {where!r} is of store format {version}, this version of m2bert reads and writes format "
            f"{FORMAT_VERSION}; use the version that wrote it, or index into a new folder"
        )
    return StoreInfo(found[PREFIX + "model"], found[PREFIX + "fingerprint"], int(found[PREFIX + "dim"]))


def to_batches(records: Iterable[Record], schema: pa.Schema, dim: int) -> Iterator[pa.RecordBatch]:
    """The records in batches of bounded size. Raises M2BertError for a vector of another dimension."""
    pending: list[dict[str, Any]] = []
    size = 0
    for record in records:
        if record.vector.shape != (dim,) or record.passage_vectors.shape != (len(record.spans), dim):
            raise M2BertError(
                f"store: document {record.id!r} must have vectors of dimension {dim}, "
                f"got {record.vector.shape} and passages {record.passage_vectors.shape}; "
                f"embed it with the store's model"
            )
        pending.append(_to_row(record))
        size += len(record.text) + record.passage_vectors.nbytes + record.vector.nbytes
        if size >= BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(pending, schema)
            pending, size = [], 0
    if pending:
        yield pa.RecordBatch.from_pylist(pending, schema)


def _to_row(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in ("source", "id", "text_hash", "text")}
    row |= {name: getattr(record, name) for name in ("num_tokens", "num_windows", "num_truncated")}
    row["vector"] = record.vector.astype("<f4", copy=False)
    row["passages"] = [{"start": int(start), "end": int(end)} for start, end in record.spans]
    row["passage_vectors"] = zlib.compress(record.passage_vectors.astype("<f4", copy=False).tobytes(), level=1)
    return row


def to_record(row: dict[str, Any], dim: int) -> Record:
    """A record from a row of the table."""
    spans = [(passage["start"], passage["end"]) for passage in row["passages"]]
    return Record(
        source=row["source"],
        id=row["id"],
        text_hash=row["text_hash"],
        text=row["text"],
        num_tokens=row["num_tokens"],
        num_windows=row["num_windows"],
        num_truncated=row["num_truncated"],
        vector=np.asarray(row["vector"], dtype=np.float32),
        spans=np.asarray(spans, dtype=np.int64).reshape(-1, 2),
        passage_vectors=np.frombuffer(zlib.decompress(row["passage_vectors"]), dtype="<f4").reshape(-1, dim),
    )
