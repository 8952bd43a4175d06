"""Documents from files: JSONL (plain or gzip), plain text, folders and globs.

May import m2bert.errors and m2bert.jsonl. Test: tests/test_data.py.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2bert.errors import M2BertError
from m2bert.jsonl import is_jsonl, read_jsonl

TEXT_SUFFIXES = (".txt", ".md", ".rst")
TEXT_FIELDS = ("text", "passage")
SOURCE_FIELDS = ("source", "dataset")


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
                f"{who}: {str(source)!r} names no readable file; pass .jsonl, .jsonl.gz, .txt, .md or .rst files, "
                f"folders of them or globs"
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
            and (is_jsonl(file) or file.suffix in TEXT_SUFFIXES)
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


def iter_documents(path: Path, *, who: str = "data") -> Iterator[Document]:
    """Documents of one file: rows with a `text` or `passage` field, or the whole of a plain text file.

    Rows of pairs (`query`, `positive`) give the positive. A source written `collection/item` counts as its
    collection. Empty texts are skipped. Raises M2BertError for rows without a text.
    """
    if not is_jsonl(path):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise M2BertError(f"{who}: {path} must be UTF-8 text ({error}); convert or leave out the file") from error
        if text.strip():
            yield Document(text, path.stem)
        return
    for _, row in read_jsonl(path, who=who):
        texts = [row[name] for name in (*TEXT_FIELDS, "positive") if isinstance(row.get(name), str)]
        if not texts:
            raise M2BertError(
                f"{who}: rows of {path} need a string field called text or passage, got {sorted(row)}; rename the field"
            )
        source = next((str(row[name]) for name in SOURCE_FIELDS if row.get(name)), path.name).split("/")[0]
        if texts[0].strip():
            yield Document(texts[0], source)


def read_documents(sources: Sequence[str | Path], *, who: str = "data") -> Iterator[Document]:
    """All documents of `sources` in a stable order, each distinct text once."""
    seen: set[int] = set()
    for path in expand_sources(sources, who=who):
        for document in iter_documents(path, who=who):
            key = hash(document.text)
            if key not in seen:
                seen.add(key)
                yield document
