"""Retrieval tasks in LoCoV1's columns, from pairs of original files (honest splits, one row per text) or pair files.

Equal documents are one document, equal queries one query with all their answers (the hub has a row per pair, where an
equal text under another id counts as wrong). What stands in the test split, query or document, is taken out of the
train split. Pairs with an empty side are left out. All of it is counted. A leaf: text only.
Tests: tests/bench/test_original_files.py, tests/bench/test_validation_tasks.py.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2bert.bench.original_files import Pair, read_pairs
from m2bert.data.pairs import read_pairs as read_training_pairs
from m2bert.errors import M2BertError
from m2bert.files import whole_file

SPLITS = ("train", "test")
EMPTY = "pairs without query or document"
LEAKED_DOCUMENT = "train pairs whose document is a test document"
LEAKED_QUERY = "train pairs whose query is a test query"


@dataclass(frozen=True)
class BuildReport:
    """What was written: {split: (queries, documents)}, and {reason: pairs that were left out}."""

    task: str
    sizes: dict[str, tuple[int, int]]
    dropped: dict[str, int]


@dataclass
class _Split:
    """What is known of a split while it is written: documents by hash, queries by text."""

    documents: dict[bytes, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    queries: dict[str, tuple[str, list[str]]] = field(default_factory=dict)


def build_task_files(
    task: str, original: Path | str, output: Path | str, on_progress: Callable[[int], None] | None = None
) -> BuildReport:
    """Write <output>/<task>/<split>/{documents,queries}.jsonl.gz from original files (m2bert.bench.original_files).

    The files are read twice, so that no more than queries and hashes lie in memory. `on_progress` is called with the
    number of pairs read. The same files give the same bytes. Raises M2BertError as read_pairs does, if a split is
    empty or an id repeated, and if nothing can be written.
    """
    held_out = {_hash(text) for pair in _kept(read_pairs(task, original)) if pair.split == "test"
                for text in (pair.document, pair.query)}  # fmt: skip
    splits, dropped = {name: _Split() for name in SPLITS}, Counter[str]()
    folder = Path(output) / task
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_jsonl(folder / name / "documents.jsonl.gz")) for name in SPLITS}
        for number, pair in enumerate(read_pairs(task, original), 1):
            reason = _reason(pair, held_out)
            if reason is not None:
                dropped[reason] += 1
            else:
                _add(task, pair, splits[pair.split], writers[pair.split])
            if on_progress is not None:
                on_progress(number)
        for name, split in splits.items():
            if not split.queries:
                raise M2BertError(f"tasks: {original} gives no pair for the {name} split of {task}; are files missing?")
            with _jsonl(folder / name / "queries.jsonl.gz") as write:
                for text, (query_id, answers) in split.queries.items():
                    write({"dataset": task, "qid": query_id, "query": text, "answer_pids": answers})
    sizes = {name: (len(split.queries), len(split.documents)) for name, split in splits.items()}
    return BuildReport(task, sizes, dict(dropped))


def build_validation_tasks(
    sources: Sequence[str | Path],
    output: Path | str,
    *,
    datasets: Sequence[str] = (),
    most: int = 250,
    most_characters: int = 2_000_000,
) -> dict[str, tuple[int, int]]:
    """Write <output>/<dataset>/train/ from pair files ({"query", "positive", "dataset"}): tasks to choose settings on.

    datasets: which; all without any. Of each at most `most` queries and documents, and documents of `most_characters`
    together, in the order of the queries' hashes; every answer of a query that is taken is taken too. Equal texts are
    one. The same files give the same bytes. Returns {dataset: (queries, documents)}. Raises M2BertError for files and
    data sets that are not there, and if nothing can be written.
    """
    answers: dict[str, dict[str, dict[str, None]]] = {}
    texts: dict[str, str] = {}
    data = read_training_pairs(sources, (), who="tasks")
    for asked, document in data.pairs:
        row = data.documents[document]
        texts[_name(row.text)] = row.text
        answers.setdefault(row.source, {}).setdefault(data.queries[asked].text, {})[_name(row.text)] = None
    unknown = sorted(set(datasets) - answers.keys())
    if unknown:
        raise M2BertError(f"tasks: data sets must be of {', '.join(sorted(answers))}, got {', '.join(unknown)}")
    sizes: dict[str, tuple[int, int]] = {}
    for dataset in sorted(datasets or answers):
        taken: dict[str, list[str]] = {}
        documents: dict[str, None] = {}
        characters = 0
        for query in sorted(answers[dataset], key=lambda text: (_name(text), text)):
            fresh = [key for key in answers[dataset][query] if key not in documents]
            size = sum(len(texts[key]) for key in fresh)
            fits = len(documents) + len(fresh) <= most and characters + size <= most_characters
            if len(taken) < most and fits:
                taken[query] = list(answers[dataset][query])
                documents |= dict.fromkeys(fresh)
                characters += size
        folder = Path(output) / dataset / "train"
        with _jsonl(folder / "documents.jsonl.gz") as write:
            for key in documents:
                write({"dataset": dataset, "pid": key, "passage": texts[key]})
        with _jsonl(folder / "queries.jsonl.gz") as write:
            for query, keys in taken.items():
                write({"dataset": dataset, "qid": _name(query), "query": query, "answer_pids": keys})
        sizes[dataset] = len(taken), len(documents)
    return sizes


def _name(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _kept(pairs: Iterable[Pair]) -> Iterator[Pair]:
    return (pair for pair in pairs if pair.query.strip() and pair.document.strip())


def _reason(pair: Pair, held_out: set[bytes]) -> str | None:
    """Why a pair is left out; None if it is not."""
    if not pair.query.strip() or not pair.document.strip():
        return EMPTY
    if pair.split == "train" and _hash(pair.document) in held_out:
        return LEAKED_DOCUMENT
    if pair.split == "train" and _hash(pair.query) in held_out:
        return LEAKED_QUERY
    return None


def _add(task: str, pair: Pair, split: _Split, write: Callable[[dict[str, Any]], None]) -> None:
    key = _hash(pair.document)
    if key not in split.documents:
        if pair.document_id in split.ids:
            raise M2BertError(f"tasks: {task} has two documents of the id {pair.document_id!r}; mend the files")
        split.documents[key] = pair.document_id
        split.ids.add(pair.document_id)
        write({"dataset": task, "pid": pair.document_id, "passage": pair.document})
    answers = split.queries.setdefault(pair.query, (pair.query_id, []))[1]
    if split.documents[key] not in answers:
        answers.append(split.documents[key])


def _hash(text: str) -> bytes:
    """Of the words alone: spaces and case make no other text."""
    return hashlib.sha256(" ".join(text.lower().split()).encode("utf-8", "surrogatepass")).digest()


@contextmanager
def _jsonl(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes rows to a gzip file, which appears when all are written."""
    with whole_file(path, who="tasks", parents=True) as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")

        yield write
