"""The tables of a PostgreSQL store, and what they hold of a document that PostgreSQL could not keep as it is.

Test: tests/search/test_postgres.py, tests/search/test_stores.py.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence

from m2bert.search.stores import Key

FORMAT_VERSION = 1
# pgvector's limits: dimensions of a halfvec, and of one that an index may be of.
MOST_DIMENSIONS, MOST_INDEXED_DIMENSIONS = 16_000, 4_000
# A longer stem is known by its beginning and a digest of all of it: an index of PostgreSQL has no room for it.
LONGEST_WORD = 200
# There is no checksum of ours: PostgreSQL has its own, of every page.
COLUMNS = (
    "key", "source", "id", "text_hash", "text", "num_tokens", "num_windows", "num_truncated", "vector", "passages",
    "passage_vectors", "sections", "metadata", "facts", "words", "length",
)  # fmt: skip

TABLES = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE {schema}.store (
    format int NOT NULL, model text NOT NULL, fingerprint text NOT NULL, dim int NOT NULL,
    num_documents bigint NOT NULL, num_words bigint NOT NULL
);
CREATE TABLE {schema}.documents (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key uuid NOT NULL UNIQUE,
    source text NOT NULL, id text NOT NULL, text_hash text NOT NULL, text text NOT NULL,
    num_tokens bigint NOT NULL, num_windows bigint NOT NULL, num_truncated bigint NOT NULL,
    vector halfvec({dim}) NOT NULL,
    passages int[] NOT NULL, passage_vectors bytea NOT NULL,
    sections text, metadata text NOT NULL, facts jsonb NOT NULL,
    words jsonb NOT NULL, length int NOT NULL
);
ALTER TABLE {schema}.documents ALTER COLUMN vector SET STORAGE MAIN, ALTER COLUMN passage_vectors SET STORAGE EXTERNAL;
CREATE INDEX ON {schema}.documents USING hash (source);
CREATE INDEX ON {schema}.documents USING hash (id);
CREATE INDEX ON {schema}.documents USING gin (words);
CREATE INDEX ON {schema}.documents USING gin (facts jsonb_path_ops);
CREATE TABLE {schema}.words (word text PRIMARY KEY, documents bigint NOT NULL);
CREATE TABLE {schema}.fields (name text PRIMARY KEY);
"""


def key_of(key: Key) -> uuid.UUID:
    """What a document is found by: source and id, which may be longer than an index has room for."""
    source, identity = (part.encode("utf-8", "surrogatepass") for part in key)
    digest = hashlib.blake2b(source + b"\xff" + identity, digest_size=16).digest()
    return uuid.UUID(bytes=digest)


def as_text(text: str) -> str:
    """A text as PostgreSQL can keep it, of the same length: it has no character zero."""
    return text.replace("\0", "\ufffd")


def stem_of(word: str) -> str:
    """A stem as the tables have it."""
    if len(word) <= LONGEST_WORD:
        return word
    return word[: LONGEST_WORD - 32] + hashlib.blake2b(word.encode(), digest_size=16).hexdigest()


def spans_of(flat: Sequence[int]) -> list[dict[str, int]]:
    """Starts and ends of passages, from the column."""
    return [{"start": start, "end": end} for start, end in zip(flat[::2], flat[1::2], strict=True)]
