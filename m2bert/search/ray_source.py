"""A source as a data set of Ray, and its rows as documents: Parquet, JSON lines, or a folder of plain text.

Test: tests/search/test_many_machines.py.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from m2bert.errors import M2BertError
from m2bert.search.documents import ID_COLUMNS, JSONL_SUFFIXES, TEXT_COLUMNS, Document, Skipped, shows_something
from m2bert.search.formats import FormatError, has_reader
from m2bert.search.formats.plain import decode
from m2bert.search.given import checked_documents
from m2bert.search.metadata import metadata_of_row

PARQUET = ".parquet"


def read_source(ray: Any, source: str) -> tuple[Any, str]:
    """The rows of a source, which are read when they are asked for, and its name.

    Rows have the columns of a Parquet file, or `path` and `line` of JSON lines, or `path` and `bytes` of other files.
    Raises M2BertError where there is nothing.
    """
    is_remote = "://" in source
    place = source if is_remote else str(Path(source).expanduser().resolve())
    if not is_remote and not Path(place).exists():
        raise M2BertError(f"embed: there is no folder or file {source!r}; check the path")
    suffix = _suffix_of(place, is_remote)
    data = ray.data
    if suffix == PARQUET:
        return data.read_parquet(place), place
    if suffix in JSONL_SUFFIXES:
        return data.read_text(place, include_paths=True), place
    return data.read_binary_files(place, include_paths=True), place


def documents_of_batch(batch: pa.Table, source: str) -> tuple[list[Document], list[Skipped]]:
    """The documents of a batch of rows, and what had to be left out. Raises M2BertError for rows without a name."""
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for row in batch.to_pylist():
        found = _file(row, source) if "bytes" in row else _row(row, source)
        if isinstance(found, Document) and not shows_something(found.text):
            found = Skipped(found.id, "holds no text", "nothing")
        (documents if isinstance(found, Document) else skipped).append(found)  # type: ignore[arg-type]
    return list(checked_documents(documents, source)), skipped


def _row(row: dict[str, Any], source: str) -> Document | Skipped:
    if set(row) == {"path", "text"}:  # a line
        import json

        try:
            row = json.loads(row["text"])
        except ValueError as error:
            return Skipped("a line", f"not a JSON object: {error}", "source")
        if not isinstance(row, dict):
            return Skipped("a line", f"must be a JSON object, got a {type(row).__name__}", "source")
    identity = next((row[name] for name in ID_COLUMNS if row.get(name) is not None), None)
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise M2BertError(
            f"embed: every row of {source!r} must have a string or a whole number under "
            f"{' or '.join(map(repr, ID_COLUMNS))}, got {identity!r}; name the rows, nothing is shown"
        )
    text = next((row[name] for name in TEXT_COLUMNS if name in row), None)
    if not isinstance(text, str):
        return Skipped(str(identity), f"must have a string under {' or '.join(map(repr, TEXT_COLUMNS))}")
    return Document(str(identity), text, source, (), metadata_of_row(row, {*ID_COLUMNS, *TEXT_COLUMNS}))


def _file(row: dict[str, Any], source: str) -> Document | Skipped:
    path = str(row["path"])
    root = source.partition("://")[2] or source
    name = str(PurePosixPath(path).relative_to(root)) if path.startswith(root.rstrip("/") + "/") else path
    if has_reader(path):
        return Skipped(name, "is no plain text; use `m2bert index` for it")
    try:
        return Document(name, decode(row["bytes"]), source)
    except (FormatError, ValueError) as error:
        return Skipped(name, getattr(error, "reason", None) or str(error))


def _suffix_of(place: str, is_remote: bool) -> str:
    """What kind of files lie there; of a folder, that of the first of them."""
    names = [place]
    if not is_remote and Path(place).is_dir():
        names = [path.name for path in sorted(Path(place).rglob("*")) if path.is_file() and path.name[0] != "."]
        if not names:
            raise M2BertError(f"embed: {place!r} must hold at least one file, got none")
    elif is_remote:
        import pyarrow.fs

        files, path = pyarrow.fs.FileSystem.from_uri(place)
        listed = files.get_file_info(pyarrow.fs.FileSelector(path, recursive=True, allow_not_found=True))
        names = sorted(each.path for each in listed if each.is_file) or [place]
    kinds = {next((end for end in (PARQUET, *JSONL_SUFFIXES) if name.endswith(end)), "") for name in names}
    if len(kinds) > 1:
        raise M2BertError(
            f"embed: all files of {place!r} must be of one kind, Parquet, JSON lines or plain text, got several; give "
            f"each a folder of its own"
        )
    return kinds.pop()
