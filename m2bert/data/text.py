"""Documents from files (JSONL plain or gzip, Parquet, plain text, folders and globs) and from the hub.

Tests: tests/train/test_data.py, tests/train/test_hub.py.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2bert.data.hub import HubSource, is_hub, iter_rows, parse_hub
from m2bert.errors import M2BertError
from m2bert.jsonl import is_jsonl, read_jsonl

TEXT_SUFFIXES = (".txt", ".md", ".rst")
TEXT_FIELDS = ("text", "passage")
SOURCE_FIELDS = ("source", "dataset")
PARQUET_ROWS = 64  # rows in memory at once: a row may be a book


@dataclass(frozen=True)
class Document:
    """One text and the name of the source it belongs to."""

    text: str
    source: str


def expand_sources(sources: Sequence[str | Path], *, who: str = "data") -> list[Path]:
    """Files named by `sources` (files, folders searched recursively, globs), each once, in a stable order.

    Query files of retrieval tasks (queries.jsonl.gz) are left out of folders: they hold no documents.
    Raises M2BertError for a source that names nothing readable, and for files of a test split.
    """
    if not sources:
        raise M2BertError(f"{who}: needs at least one source of text, got none; pass files, folders or globs")
    found: dict[Path, None] = {}
    for source in sources:
        files = _files_of(Path(source))
        if not files:
            raise M2BertError(
                f"{who}: {str(source)!r} names no readable file; pass .jsonl, .jsonl.gz, .parquet, .txt, .md or .rst "
                f"files, folders of them or globs"
            )
        for file in files:
            refuse_test_split(file, who=who)
            found[file] = None
    return list(found)


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        # A folder of retrieval tasks holds both splits; only what may be trained on is taken from it.
        return sorted(
            file
            for file in path.rglob("*")
            if file.is_file()
            and (has_rows(file) or file.suffix in TEXT_SUFFIXES)
            and not file.name.startswith("queries.")
            and "test" not in file.relative_to(path).parts[:-1]
        )
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())


def refuse_test_split(path: str | Path, *, who: str) -> None:
    """Raise M2BertError when `path` lies in the test split of a retrieval task: `.../<task>/test/...`.

    Only a folder called `test` that holds (or is beside) the files of a task counts, so that an ordinary
    folder of that name higher up does not.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    is_task_file = path.name.startswith(("documents.", "queries."))
    if folder.name == "test" and (is_task_file or _holds_task(folder)):
        raise M2BertError(
            f"{who}: test splits are for evaluation only, got {str(path)!r}; train on the task's train split"
        )


def _holds_task(folder: Path) -> bool:
    return any(folder.glob("documents.jsonl*")) or any(folder.glob("queries.jsonl*"))


def has_rows(path: Path) -> bool:
    """Whether a file holds rows with named fields: JSON lines or Parquet."""
    return is_jsonl(path) or path.suffix == ".parquet"


def read_rows(path: Path, *, who: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:number", row) of JSON lines or Parquet. Raises M2BertError for a file that cannot be read."""
    if is_jsonl(path):
        yield from read_jsonl(path, who=who)
        return
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise M2BertError(f"{who}: {path} is not a whole Parquet file ({error}); copy it again") from error


def iter_documents(path: Path, *, who: str = "data") -> Iterator[Document]:
    """Documents of one file: rows with a `text` or `passage` field, or the whole of a plain text file.

    Rows of pairs (`query`, `positive`) give the positive. A source written `collection/item` counts as its
    collection. Empty texts are skipped. Raises M2BertError for rows without a text.
    """
    if not has_rows(path):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise M2BertError(f"{who}: {path} must be UTF-8 text ({error}); convert or leave out the file") from error
        if text.strip():
            yield Document(text, path.stem)
        return
    yield from _documents_of_rows(read_rows(path, who=who), path.name, str(path), who)


def _documents_of_rows(
    rows: Iterator[tuple[str, dict[str, Any]]], default: str, place: str, who: str
) -> Iterator[Document]:
    for _, row in rows:
        texts = [row[name] for name in (*TEXT_FIELDS, "positive") if isinstance(row.get(name), str)]
        if not texts:
            raise M2BertError(
                f"{who}: rows of {place} need a string field called text or passage, got {sorted(row)}; rename it"
            )
        source = next((str(row[name]) for name in SOURCE_FIELDS if row.get(name)), default).split("/")[0]
        if texts[0].strip():
            yield Document(texts[0], source)


def split_sources(sources: Sequence[str | Path], *, who: str = "data") -> tuple[list[Path], list[HubSource]]:
    """Files, and data sets of the hub, that `sources` name. Raises M2BertError as :func:`expand_sources` does."""
    hubs = [parse_hub(str(source), who=who) for source in sources if is_hub(source)]
    local = [source for source in sources if not is_hub(source)]
    return expand_sources(local, who=who) if local or not hubs else [], hubs


def read_documents(sources: Sequence[str | Path], *, who: str = "data") -> Iterator[Document]:
    """All documents of `sources` in a stable order, each distinct text once."""
    seen: set[int] = set()
    files, hubs = split_sources(sources, who=who)
    streams = [iter_documents(path, who=who) for path in files]
    for hub in hubs:
        name = hub.name.rstrip("/").rpartition("/")[2]
        streams.append(_documents_of_rows(iter_rows(hub, who=who), name, hub.name, who))
    for document in itertools.chain.from_iterable(streams):
        key = hash(document.text)
        if key not in seen:
            seen.add(key)
            yield document
