"""Tokenised documents in flat arrays, made once and kept on disk.

Test: tests/train/test_data.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from m2bert.data.text import Document, read_documents, split_sources
from m2bert.errors import M2BertError
from m2bert.files import whole_folder
from m2bert.model.tokenization import encode_ids

logger = logging.getLogger(__name__)
CHUNK_DOCUMENTS = 64


@dataclass(frozen=True)
class TokenStore:
    """Documents as token ids without [CLS] and [SEP], whole, one after another.

    tokens  (total,) uint16 or int32     offsets (n + 1,) int64: document i is tokens[offsets[i]:offsets[i + 1]]
    source_ids (n,) int32 into `sources`, the names of the collections.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    source_ids: np.ndarray
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, (n,) int64."""
        return np.diff(self.offsets)

    def document(self, index: int) -> np.ndarray:
        """Token ids of document `index`, a view."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


OnTokens = Callable[[int, int], None]


def tokenize_documents(
    documents: Iterable[Document], tokenizer: Any, on_progress: OnTokens | None = None, *, keep_empty: bool = False
) -> TokenStore:
    """Tokenise whole documents (never truncated); `on_progress(documents, tokens)` is called as it goes.

    Documents without a token are left out unless `keep_empty`.
    """
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    names: dict[str, int] = {}
    source_ids: list[int] = []
    iterator: Iterator[Document] = iter(documents)
    total = 0
    while chunk := list(islice(iterator, CHUNK_DOCUMENTS)):
        for document, ids in zip(chunk, encode_ids(tokenizer, [d.text for d in chunk]), strict=True):
            if ids or keep_empty:
                parts.append(np.asarray(ids, dtype=dtype))
                lengths.append(len(ids))
                source_ids.append(names.setdefault(document.source, len(names)))
                total += len(ids)
        if on_progress is not None:
            on_progress(len(lengths), total)
    tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return TokenStore(tokens, offsets, np.asarray(source_ids, dtype=np.int32), tuple(names))


def load_tokens(
    sources: Sequence[str | Path],
    tokenizer: Any,
    cache: str | Path | None = None,
    *,
    on_progress: OnTokens | None = None,
    who: str = "data",
) -> TokenStore:
    """Tokenised documents of `sources`, from `cache` (a folder) when the same files were tokenised there before.

    Raises M2BertError when the sources hold no text.
    """
    files, hubs = split_sources(sources, who=who)
    folder = Path(cache) / cache_key(files, tokenizer, hubs) if cache is not None else None
    if folder is not None and folder.is_dir():
        logger.info("tokens read from %s", folder)
        return read_store(folder)
    store = tokenize_documents(read_documents(sources, who=who), tokenizer, on_progress)
    if len(store) == 0:
        raise M2BertError(
            f"{who}: the sources hold no text, got {len(files) + len(hubs)} of them; pass files with documents"
        )
    if folder is not None:
        with whole_folder(folder, who=who) as aside:
            write_store(store, aside)
    return store


def cache_key(files: Sequence[Path], tokenizer: Any, hubs: Sequence[object] = ()) -> str:
    """Name of a cache folder: changes with the tokenizer, the files' names, sizes and times, and names on the hub."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for file in files:
        facts = file.stat()
        digest.update(f"{file.resolve()}:{facts.st_size}:{facts.st_mtime_ns}\n".encode())
    for hub in hubs:
        digest.update(f"{hub}\n".encode())
    return f"tokens-{digest.hexdigest()[:16]}"


def write_store(store: TokenStore, folder: Path) -> None:
    """Write a TokenStore's arrays into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokens", "offsets", "source_ids"):
        np.save(folder / f"{name}.npy", getattr(store, name))
    (folder / "index.json").write_text(json.dumps({"sources": store.sources}), encoding="utf-8")


def read_store(folder: Path) -> TokenStore:
    """Open a TokenStore written by :func:`write_store`; its arrays stay on disk."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "offsets", "source_ids")}
    sources = json.loads((folder / "index.json").read_text(encoding="utf-8"))["sources"]
    return TokenStore(sources=tuple(sources), **arrays)
