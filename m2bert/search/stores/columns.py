"""Embedded documents as Arrow columns: the layout of a store's table and of its staged files.

A staged row is the embedding of a text, finished and rounded as the table keeps it; source, id, the text itself, which
whoever adds it holds in memory, and its words join it on its way into the table.
Test: tests/search/test_store_formats.py, tests/search/test_additions.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m2bert.errors import M2BertError
from m2bert.ranking.passages import QuantisedPassages, best_pairs
from m2bert.ranking.words import words_as_text
from m2bert.search.documents import Document
from m2bert.search.metadata import metadata_as_text, metadata_of_text
from m2bert.search.sections import sections_as_text, sections_of_text
from m2bert.search.stores import Record, StoreInfo
from m2bert.search.stores.checksums import CHECKSUM, check_rows, checksums, damaged

if TYPE_CHECKING:
    from m2bert.encoders.protocol import EncodedDocument

FORMAT_VERSION = 3
PREFIX = "m2bert."
JOINED = ("source", "id", "text", "words", "sections", "metadata")
# What the whole is scored by, and what passages are.
SCORED = ("vector", "passage_vectors")
PASSAGE = pa.struct([pa.field("start", pa.int32(), False), pa.field("end", pa.int32(), False)])


def table_schema(info: StoreInfo) -> pa.Schema:
    """Columns of a store; `info` travels in the schema's metadata together with the format version."""
    fields = [
        pa.field("source", pa.string(), False),
        pa.field("id", pa.string(), False),
        pa.field("text_hash", pa.string(), False),
        pa.field("text", pa.large_string(), False),
        # The stems of the text, as m2bert.ranking.words has them, with spaces between: what the index of words is of.
        pa.field("words", pa.large_string(), False),
        pa.field("num_tokens", pa.int64(), False),
        pa.field("num_windows", pa.int64(), False),
        pa.field("num_truncated", pa.int64(), False),
        pa.field("vector", pa.list_(pa.float32(), info.dim), False),
        pa.field("passages", pa.list_(PASSAGE), False),
        # Of two passages or more, rounded, as one blob (m2bert.ranking.passages.QuantisedPassages.to_bytes).
        pa.field("passage_vectors", pa.large_binary(), False),
        # Of what was made of the text (m2bert.search.stores.checksums); older stores lack it, as they lack sections.
        pa.field(CHECKSUM, pa.int64()),
        # Pages or headings (m2bert.search.sections.sections_as_text). Stores of before they were kept lack the column
        # until something is added to them.
        pa.field("sections", pa.large_string()),
        # As m2bert.search.metadata.metadata_as_text has it; as for sections, older stores lack the column.
        pa.field("metadata", pa.large_string()),
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
            f"{FORMAT_VERSION}; make it anew with `m2bert index SOURCE --store NEW_FOLDER`, or use the version that "
            f"wrote it"
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
        vectors = np.asarray([passage.vector for passage in one.passages], dtype=np.float32)
        if one.vector.shape != (info.dim,) or (len(vectors) and vectors.shape[1:] != (info.dim,)):
            raise M2BertError(
                f"store: document {names[known]!r} must have vectors of dimension {info.dim}, "
                f"got {one.vector.shape} and passages {vectors.shape}; embed it with the store's model"
            )
        blobs.append(QuantisedPassages.of(vectors).to_bytes() if len(vectors) > 1 else b"")
    spans = [[{"start": passage.start, "end": passage.end} for passage in one.passages] for one in made.values()]
    vectors = np.asarray([one.vector for one in made.values()], dtype="<f4")
    columns = {
        "text_hash": pa.array(list(made), pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), info.dim),
        "passages": pa.array(spans, pa.list_(PASSAGE)),
        "passage_vectors": pa.array(blobs, pa.large_binary()),
    }
    columns[CHECKSUM] = pa.array(checksums(columns, info.dim), pa.int64())
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
    for name in ("source", "id", "text"):
        columns[name] = pa.array([getattr(document, name) for document in documents], schema.field(name).type)
    columns["words"] = _texts_of([words_as_text(document.text) for document in documents])
    sections = [sections_as_text(document.sections) for document in documents]
    columns["sections"] = pa.array(sections, schema.field("sections").type)
    metadata = [metadata_as_text(document.metadata, document.id) for document in documents]
    columns["metadata"] = pa.array(metadata, schema.field("metadata").type)
    return pa.RecordBatch.from_arrays([columns[field.name] for field in schema], schema=schema)


def _texts_of(written: Sequence[bytearray]) -> pa.LargeStringArray:
    """UTF-8 as a column, which for a single long text is made of its bytes where they lie."""
    data = written[0] if len(written) == 1 else b"".join(written)
    ends = np.cumsum([0, *map(len, written)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(written), pa.py_buffer(ends), pa.py_buffer(data))


def to_passages(blob: bytes, name: str, dim: int) -> QuantisedPassages | None:
    """The passages of a document, which `name` names; None of fewer than two. Raises StoreError where damaged."""
    try:
        return QuantisedPassages.from_bytes(blob, dim) if blob else None
    except M2BertError as error:
        raise damaged(name, str(error)) from error


def to_records(rows: pa.Table, dim: int) -> list[Record]:
    """Records from rows of the table. Raises StoreError naming one that is not what was written."""
    check_rows(rows, dim)
    return [to_record(row, dim) for row in rows.to_pylist()]


def to_record(row: dict[str, Any], dim: int) -> Record:
    """A record from a row of the table. Raises StoreError when its passages are damaged."""
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
        passages=to_passages(row["passage_vectors"], row["id"], dim),
        sections=sections_of_text(row.get("sections")),
        metadata=metadata_of_text(row.get("metadata")),
    )


def dense_scores(rows: pa.Table, queries: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines (rows, queries) of the whole, and of the best pair of passages, of rows with the columns SCORED.

    queries (queries, dim) float32 of unit norm. Without the column of passages both are the whole's. Raises M2BertError
    where passages are not as they are written.
    """
    dim = queries.shape[1]
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
    whole = vectors.astype(np.float64) @ queries.T.astype(np.float64)
    best = whole.copy()
    blobs = rows["passage_vectors"].to_pylist() if "passage_vectors" in rows.schema.names else []
    found = {row: QuantisedPassages.from_bytes(blob, dim) for row, blob in enumerate(blobs) if blob}
    if found:
        parts = list(found.values())
        codes, scales, norms = (
            np.concatenate([getattr(each, name) for each in parts]) for name in ("codes", "scales", "pair_norms")
        )
        products = (codes.astype(np.float32) @ queries.T) * scales[:, None]
        best[list(found)] = best_pairs(products, norms, [len(each.scales) for each in parts])
    return whole, best
