"""Labelled pairs of a query and a document: pair files and train splits of retrieval tasks, tokenised.

Test: tests/train/test_data.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2bert.data.text import Document, expand_sources, has_rows, read_rows, refuse_test_split
from m2bert.data.tokens import OnTokens, TokenStore, cache_key, read_store, tokenize_documents, write_store
from m2bert.errors import M2BertError
from m2bert.files import whole_folder
from m2bert.jsonl import read_jsonl

PAIR_FIELDS = ("query", "positive")


@dataclass(frozen=True)
class PairData:
    """Tokenised queries and documents of several data sets, and which answers which.

    pairs (n, 2) int64: query index, document index. A document's source is the data set it belongs to.
    """

    queries: TokenStore
    documents: TokenStore
    pairs: np.ndarray


class TextPairs:
    """Queries and documents as text, each document once per data set; pairs: query number, document number."""

    def __init__(self) -> None:
        self.queries: list[Document] = []
        self.documents: list[Document] = []
        self.pairs: list[tuple[int, int]] = []
        self._known: dict[tuple[str, str], int] = {}

    def add(self, dataset: str, query: str, key: str, text: str) -> None:
        if not query.strip() or not text.strip():
            return
        if (dataset, key) not in self._known:
            self._known[dataset, key] = len(self.documents)
            self.documents.append(Document(text, dataset))
        self.pairs.append((len(self.queries), self._known[dataset, key]))
        self.queries.append(Document(query, dataset))


def task_folders(path: str | Path, *, who: str = "finetune") -> list[Path]:
    """Train folders named by `path`: a `<task>/train` folder, a task, or a folder of tasks.

    Raises M2BertError for a test split, and when there is no train split.
    """
    folder = Path(path)
    refuse_test_split(folder, who=who)
    candidates = [folder, folder / "train", *sorted(folder.glob("*/train"))]
    found = [item for item in candidates if _task_file(item, "documents") and _task_file(item, "queries")]
    if not found:
        raise M2BertError(
            f"{who}: {str(folder)!r} must hold a train split (documents.jsonl[.gz] and queries.jsonl[.gz] in "
            f"TASK/train), got none; name the folder of a task or of tasks"
        )
    for item in found:
        refuse_test_split(item, who=who)
    return found


def _task_file(folder: Path, stem: str) -> Path | None:
    return next(
        (folder / f"{stem}{end}" for end in (".jsonl.gz", ".jsonl") if (folder / f"{stem}{end}").is_file()), None
    )


def _strings(row: dict[str, Any], names: Sequence[str], path: Path, who: str) -> Iterator[str]:
    for name in names:
        if not isinstance(row.get(name), str):
            raise M2BertError(f"{who}: rows of {path} need a string field {name}, got {sorted(row)}; mend the file")
        yield row[name]


def _read_task(folder: Path, into: TextPairs, who: str) -> None:
    documents, queries = _task_file(folder, "documents"), _task_file(folder, "queries")
    assert documents is not None and queries is not None
    texts: dict[str, str] = {}
    for _, row in read_jsonl(documents, who=who):
        pid, passage = _strings(row, ("pid", "passage"), documents, who)
        texts[pid] = passage
    for _, row in read_jsonl(queries, who=who):
        (query,) = _strings(row, ("query",), queries, who)
        for pid in row.get("answer_pids") or []:
            if pid not in texts:
                raise M2BertError(f"{who}: answer_pids of {queries} must be in {documents.name}, got {pid!r}")
            into.add(str(row.get("dataset") or folder.parent.name), query, pid, texts[pid])


def _read_pair_file(path: Path, into: TextPairs, who: str) -> None:
    if not has_rows(path):
        raise M2BertError(f"{who}: pairs must be .jsonl, .jsonl.gz or .parquet files, got {str(path)!r}; convert it")
    for _, row in read_rows(path, who=who):
        query, positive = _strings(row, PAIR_FIELDS, path, who)
        into.add(str(row.get("dataset") or path.name.split(".")[0]), query, positive, positive)


def read_pairs(
    pair_sources: Sequence[str | Path], task_sources: Sequence[str | Path], *, who: str = "finetune"
) -> TextPairs:
    """The texts of pair files ({"query", "positive", "dataset"}) and of tasks' train splits.

    Raises M2BertError for test splits, unreadable files, and when there is no pair at all.
    """
    return _collect(*_files(pair_sources, task_sources, who), who)


def _files(
    pair_sources: Sequence[str | Path], task_sources: Sequence[str | Path], who: str
) -> tuple[list[Path], list[Path]]:
    """The files of pairs, and the folders of train splits."""
    pair_files = expand_sources(pair_sources, who=who) if pair_sources else []
    return pair_files, [folder for source in task_sources for folder in task_folders(source, who=who)]


def _collect(pair_files: Sequence[Path], folders: Sequence[Path], who: str) -> TextPairs:
    collected = TextPairs()
    for file in pair_files:
        _read_pair_file(file, collected, who)
    for folder in folders:
        _read_task(folder, collected, who)
    if not collected.pairs:
        raise M2BertError(f"{who}: the sources must hold pairs, got none; pass files with query and positive")
    return collected


def load_pairs(
    pair_sources: Sequence[str | Path],
    task_sources: Sequence[str | Path],
    tokenizer: Any,
    cache: str | Path | None = None,
    *,
    on_progress: OnTokens | None = None,
    who: str = "finetune",
) -> PairData:
    """Tokenised pairs of pair files ({"query", "positive", "dataset"}) and of tasks' train splits.

    Raises M2BertError for test splits, unreadable files, and when there is no pair at all.
    """
    pair_files, folders = _files(pair_sources, task_sources, who)
    task_files = [file for folder in folders for stem in ("documents", "queries") if (file := _task_file(folder, stem))]
    key = cache_key([*pair_files, *task_files], tokenizer).replace("tokens-", "pairs-")
    stored = Path(cache) / key if cache is not None else None
    if stored is not None and stored.is_dir():
        return PairData(read_store(stored / "queries"), read_store(stored / "documents"), np.load(stored / "pairs.npy"))
    collected = _collect(pair_files, folders, who)
    data = PairData(
        tokenize_documents(collected.queries, tokenizer, on_progress, keep_empty=True),
        tokenize_documents(collected.documents, tokenizer, on_progress, keep_empty=True),
        np.asarray(collected.pairs, dtype=np.int64),
    )
    if stored is not None:
        with whole_folder(stored, who=who) as aside:
            write_store(data.queries, aside / "queries")
            write_store(data.documents, aside / "documents")
            np.save(aside / "pairs.npy", data.pairs)
    return data
