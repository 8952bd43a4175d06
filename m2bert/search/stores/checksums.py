"""What tells that a stored document is no longer what was written: a hash of its text, and a checksum of the rest.

The database trusts the disk: a flipped bit of a vector, or of a passage, would be another score without a word.
Test: tests/search/test_checksums.py.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from m2bert.errors import StoreError

CHECKSUM = "checksum"
COVERED = ("text_hash", "vector", "passages", "passage_vectors")
"""The columns whose damage the checksum of a row tells."""


def text_hash(text: str, sections: str = "") -> str:
    """SHA-256, in hex, of a text and, where it has some, of its sections (m2bert.search.sections.sections_as_text)."""
    whole = f"{text}\0{sections}" if sections else text
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


def checksums(columns: Mapping[str, pa.Array], dim: int) -> Iterator[int]:
    """CRC-32 of each row's COVERED columns, as they lie on the disk; vectors have `dim` numbers."""
    hashes, vectors, spans, blobs = (columns[name] for name in COVERED)
    numbers = vectors.flatten().to_numpy().reshape(-1, dim).astype("<f4")
    flat = spans.flatten()
    places = np.stack([flat.field(name).to_numpy() for name in ("start", "end")], axis=1).astype("<i4")
    ends = np.cumsum([0, *(len(each) for each in spans)])
    for row, (known, blob) in enumerate(zip(hashes.to_pylist(), blobs, strict=True)):
        total = zlib.crc32(known.encode("utf-8", "surrogatepass"))
        total = zlib.crc32(numbers[row].tobytes(), total)
        total = zlib.crc32(places[ends[row] : ends[row + 1]].tobytes(), total)
        yield zlib.crc32(blob.as_buffer(), total)


def damages(rows: pa.Table, dim: int) -> list[str]:
    """What is wrong with each of `rows`, empty for nothing: with the columns COVERED, and with the text if it is there.

    Rows of before checksums were kept have none, and only their texts are looked at.
    """
    found = [""] * len(rows)
    if not found:
        return found
    if CHECKSUM in rows.schema.names:
        kept = rows[CHECKSUM].to_pylist()
        made = checksums({name: rows[name].combine_chunks() for name in COVERED}, dim)
        pairs = zip(kept, made, strict=True)
        found = ["" if old in (None, new) else "its embedding is not what was written" for old, new in pairs]
    if "text" in rows.schema.names:
        texts, hashes = rows["text"].to_pylist(), rows["text_hash"].to_pylist()
        sections = rows["sections"].to_pylist() if "sections" in rows.schema.names else [None] * len(rows)
        for row, (text, section, known) in enumerate(zip(texts, sections, hashes, strict=True)):
            if text_hash(text, section or "") != known:
                found[row] = "its text is not what was written"
    return found


def check_rows(rows: pa.Table, dim: int) -> None:
    """Raise StoreError naming the first of `rows`, which have the column `id`, that is damaged."""
    for row, what in enumerate(damages(rows, dim)):
        if what:
            raise damaged(rows["id"][row].as_py(), what)


def damaged(identity: str, what: str) -> StoreError:
    """What is raised for a document that is not what was written."""
    return StoreError(
        f"store: document {identity!r} is damaged ({what}); `m2bert check STORE` says what else is, and how to mend it"
    )
