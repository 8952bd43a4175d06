"""Embedded documents as Arrow columns: the layout of a store's table and of its staged files.

A staged row is the embedding of a text, finished and compressed as the table keeps it; source, id and the text itself,
which whoever adds it holds in memory, join it on its way into the table.
Test: tests/search/test_index.py, tests/search/test_additions.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from m2bert.errors import M2BertError
from m2bert.search.documents import Document
from m2bert.search.stores import Record, StoreInfo

if TYPE_CHECKING:
    from m2bert.encoders.protocol import EncodedDocument

FORMAT_VERSION = 2
PREFIX = "m2bert."
JOINED = ("source", "id", "text")
PASSAGE = pa.struct([pa.field("start", pa.int64(), False), pa.field("end", pa.int64(), False)])


def table_schema(info: StoreInfo) -> pa.Schema:
    """Columns of a store; `info` travels in the schema's metadata together with the format version."""
    fields = [
        pa.field("source", pa.string(), False),
        pa.field("id", pa.string(), False),
        pa.field("text_hash", pa.string(), False),
        pa.field("text", pa.large_string(), False),
        pa.field("num_tokens", pa.int64(), False),
        pa.field("num_windows", pa.int64(), False),
        pa.field("num_truncated", pa.int64(), False),
        pa.field("vector", pa.list_(pa.float32(), info.dim), False),
        pa.field("passages", pa.list_(PASSAGE), False),
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


def staged_schema(info: StoreInfo) -> pa.Schema:
    """Columns of staged files: those of the table but for what joins a text's embedding later."""
    whole = table_schema(info)
    return pa.schema([field for field in whole if field.name not in JOINED], metadata=whole.metadata)


def to_batch(made: Mapping[str, EncodedDocument], info: StoreInfo, names: Mapping[str, str]) -> pa.RecordBatch:
    """Embeddings, given by the hash of their text, as a batch of staged rows.

    `names` maps a hash to the document to blame. Raises M2BertError for a vector of another dimension.
    """
    blobs = []
    for known, one in made.items():
        vectors = np.asarray([passage.vector for passage in one.passages], dtype="<f4")
        if one.vector.shape != (info.dim,) or (len(vectors) and vectors.shape[1:] != (info.dim,)):
            raise M2BertError(
                f"store: document {names[known]!r} must have vectors of dimension {info.dim}, "
                f"got {one.vector.shape} and passages {vectors.shape}; embed it with the store's model"
            )
        blobs.append(zlib.compress(vectors.tobytes(), level=1))
    spans = [[{"start": passage.start, "end": passage.end} for passage in one.passages] for one in made.values()]
    vectors = np.asarray([one.vector for one in made.values()], dtype="<f4")
    columns = {
        "text_hash": pa.array(list(made), pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), info.dim),
        "passages": pa.array(spans, pa.list_(PASSAGE)),
        "passage_vectors": pa.array(blobs, pa.large_binary()),
    }
    for name in ("num_tokens", "num_windows", "num_truncated"):
        columns[name] = pa.array([getattr(one, name) for one in made.values()], pa.int64())
    schema = staged_schema(info)
    return pa.RecordBatch.from_arrays([columns[field.name] for field in schema], schema=schema)


def to_table_rows(
    batch: pa.RecordBatch, rows: Sequence[int], documents: Sequence[Document], info: StoreInfo
) -> pa.RecordBatch:
    """The embeddings in `rows` of a staged batch as rows of the table, under the names of `documents`."""
    taken = batch.take(pa.array(rows, pa.int64()))
    columns = {name: taken.column(name) for name in taken.schema.names}
    schema = table_schema(info)
    for name in JOINED:
        columns[name] = pa.array([getattr(document, name) for document in documents], schema.field(name).type)
    return pa.RecordBatch.from_arrays([columns[field.name] for field in schema], schema=schema)


def to_record(row: dict[str, Any], dim: int) -> Record:
    """A record from a row of the table. Raises M2BertError when the vectors of its passages are damaged."""
    spans = [(passage["start"], passage["end"]) for passage in row["passages"]]
    try:
        passage_vectors = np.frombuffer(zlib.decompress(row["passage_vectors"]), dtype="<f4").reshape(-1, dim)
    except (zlib.error, ValueError) as error:
        raise M2BertError(
            f"store: the passages of document {row['id']!r} are damaged ({error}); "
            f"restore a copy of the store, or index into a new folder"
        ) from error
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
        passage_vectors=passage_vectors,
    )
