"""Retrieval tasks: the LoCoV1 table, and loading a task from files in LoCoV1's columns.

A leaf: ids and text only, no model, no numbers.
Test: tests/bench/test_tasks.py.

Columns, one JSON object per line, UTF-8, plain or gzip (as in the hub's LoCoV1-Documents and LoCoV1-Queries):

    documents   {"dataset": str, "pid": str, "passage": str or null}
    queries     {"dataset": str, "qid": str, "query": str, "answer_pids": [str, ...]}

Where they lie below the data folder, the first that exists:

    <data>/<task>/<split>/{documents,queries}.jsonl[.gz]      one folder per task and split
    <data>/{documents,queries}/<task>_<split>.jsonl[.gz]      as the files are named on the hub
    <data>/{documents,queries}.jsonl[.gz]                     all tasks in two files, by `dataset`; test split
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2bert.errors import M2BertError
from m2bert.jsonl import read_jsonl

SPLITS = ("train", "test")
SUFFIXES = (".jsonl.gz", ".jsonl")


@dataclass(frozen=True)
class TaskInfo:
    """One of the twelve LoCoV1 tasks as the paper describes it (arXiv 2402.07440, tables 10 and 11).

    Sizes are (queries, documents). Lengths are means in characters: the paper's table says tokens, but its
    code counts `len(text)`. The hub carries the test splits only.
    """

    name: str
    title: str
    source: str
    domain: str
    query: str
    document: str
    train_size: tuple[int, int]
    test_size: tuple[int, int]
    mean_query_chars: int
    mean_document_chars: int


_TABLE = (
    TaskInfo("summ_screen_fd", "SummScreenFD", "SCROLLS", "screenwriting", "episode recap", "TV transcript",
             (3673, 3673), (338, 338), 590, 30792),
    TaskInfo("gov_report", "Gov. Report", "SCROLLS", "government", "report summary", "report",
             (17457, 17457), (972, 972), 3871, 55280),
    TaskInfo("qmsum", "QMSUM", "SCROLLS", "corporate management", "query-focused meeting summary",
             "question and transcript", (1257, 1257), (272, 272), 430, 58129),
    TaskInfo("qasper_title", "QASPER Title", "QASPER", "science", "paper title", "full text",
             (888, 888), (416, 416), 71, 22315),
    TaskInfo("qasper_abstract", "QASPER Abstract", "QASPER", "science", "abstract", "full text",
             (888, 888), (416, 416), 931, 22315),
    TaskInfo("multifieldqa", "MultiFieldQA", "LongBench", "general", "question", "article",
             (120, 120), (30, 30), 62, 29465),
    TaskInfo("2wikimqa", "2WikimQA", "LongBench", "general", "two-hop question",
             "concatenated Wikipedia passages", (240, 240), (60, 60), 69, 37867),
    TaskInfo("passage_retrieval", "Passage Retrieval", "LongBench", "general", "paragraph abstract",
             "concatenated paragraphs", (240, 240), (60, 60), 840, 35814),
    TaskInfo("courtlistener_Plain_Text", "CourtListener Plain Text", "CourtListener", "law", "quoted holding",
             "case text", (10000, 10000), (2000, 2000), 146, 48190),
    TaskInfo("courtlistener_HTML", "CourtListener HTML", "CourtListener", "law", "quoted holding",
             "case text with its HTML", (10000, 10000), (2000, 2000), 146, 57028),
    TaskInfo("legal_case_reports", "Australian Legal Case Report", "UCI Legal Case Reports", "law",
             "citation catch-phrases", "case sentences", (3094, 3094), (770, 770), 14986, 47536),
    TaskInfo("stackoverflow", "StackOverflow", "StackOverflow", "programming", "question", "answers",
             (1599, 18005), (400, 7741), 758, 4544),
)  # fmt: skip
LOCO_TASKS: Mapping[str, TaskInfo] = {info.name: info for info in _TABLE}


@dataclass(frozen=True)
class RetrievalTask:
    """Documents, queries, and which answers which.

    corpus: doc_id -> text; queries: query_id -> text; qrels: query_id -> {doc_id: relevance}, never empty.
    Documents whose passage is null or blank are left out, and with them queries that nothing else answers;
    both are counted.
    """

    name: str
    split: str
    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    num_dropped_documents: int = 0
    num_dropped_queries: int = 0

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 over ids, texts and qrels; the order of rows does not matter."""
        digest = hashlib.sha256()
        for part in (self.corpus, self.queries, self.qrels):
            for key in sorted(part):
                value = part[key]
                row = [key, value if isinstance(value, str) else sorted(value.items())]
                digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            digest.update(b"\x00")
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TaskFiles:
    """Where one task lies. shared: the files hold other tasks too, and rows are chosen by `dataset`."""

    documents: Path
    queries: Path
    shared: bool = False


def _existing(stem: Path) -> Path | None:
    """The file `stem` plus one of SUFFIXES, or None."""
    found = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def _task_names(data_dir: Path, split: str) -> Iterator[str]:
    """Names for which the first or second layout has something."""
    for folder in data_dir.iterdir():
        if (folder / split).is_dir():
            yield folder.name
    for suffix in SUFFIXES:
        ending = f"_{split}{suffix}"
        for path in (data_dir / "documents").glob(f"*{ending}"):
            yield path.name[: -len(ending)]


def find_tasks(data_dir: Path | str, split: str = "test") -> dict[str, TaskFiles]:
    """The tasks of a data folder, by name in alphabetical order.

    Raises M2BertError if the folder does not exist, the split is neither train nor test, a task has only one
    of its two files, or no task is found.
    """
    data_dir = Path(data_dir)
    if split not in SPLITS:
        raise M2BertError(f"tasks: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not data_dir.is_dir():
        raise M2BertError(f"tasks: no such data folder: {data_dir}; give the folder that holds the tasks")
    tasks: dict[str, TaskFiles] = {}
    for name in sorted(set(_task_names(data_dir, split))):
        pair = [_existing(data_dir / name / split / part) for part in ("documents", "queries")]
        if pair == [None, None]:
            pair = [_existing(data_dir / part / f"{name}_{split}") for part in ("documents", "queries")]
        if pair[0] is not None and pair[1] is not None:
            tasks[name] = TaskFiles(pair[0], pair[1])
        elif pair != [None, None]:
            raise M2BertError(f"tasks: {name} ({split}) must have documents and queries, got {pair[0] or pair[1]} only")
    documents, queries = _existing(data_dir / "documents"), _existing(data_dir / "queries")
    if not tasks and split == "test" and documents is not None and queries is not None:
        names = {_text_column(row, "dataset", where) for where, row in read_jsonl(queries, who="tasks")}
        tasks = {name: TaskFiles(documents, queries, shared=True) for name in sorted(names)}
    if not tasks:
        raise M2BertError(
            f"tasks: no task with a {split} split in {data_dir}; "
            f"expected <task>/{split}/documents.jsonl.gz and queries.jsonl.gz below it"
        )
    return tasks


def choose_tasks(names: Iterable[str], data_dir: Path | str, split: str = "test") -> dict[str, TaskFiles]:
    """The named tasks of a data folder in the order given; the single name `all` means every task found.

    Raises M2BertError for an unknown name (listing the known ones), a repeated name, or no name at all.
    """
    found = find_tasks(data_dir, split)
    wanted = list(names)
    if wanted == ["all"]:
        return found
    if not wanted:
        raise M2BertError(f"tasks: name at least one task, or all; {data_dir} has {', '.join(found)}")
    for name in wanted:
        if name not in found:
            kind = "LoCoV1 task" if name in LOCO_TASKS else "unknown task"
            raise M2BertError(f"tasks: {kind} {name!r}: not in {data_dir} ({split}), which has {', '.join(found)}")
        if wanted.count(name) > 1:
            raise M2BertError(f"tasks: every task may be named once, got {name!r} {wanted.count(name)} times")
    return {name: found[name] for name in wanted}


def _text_column(row: Mapping[str, Any], column: str, where: str, *, null: bool = False) -> str:
    """The text of a column; with `null`, a null becomes the empty text."""
    if column not in row:
        raise M2BertError(f"tasks: {where}: no column {column!r}; the row has {', '.join(row) or 'none'}")
    value = row[column]
    if value is None and null:
        return ""
    if not isinstance(value, str):
        raise M2BertError(f"tasks: {where}: column {column!r} must be text, got {type(value).__name__}")
    return value


def _read_documents(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[dict[str, str], set[str]]:
    """(doc_id -> text, ids of the documents dropped because they have no text)."""
    corpus: dict[str, str] = {}
    dropped: set[str] = set()
    for where, row in rows:
        doc_id, text = _text_column(row, "pid", where), _text_column(row, "passage", where, null=True)
        if doc_id in corpus or doc_id in dropped:
            raise M2BertError(f"tasks: {where}: every pid must be unique, got {doc_id!r} again; remove a row")
        if text.strip():
            corpus[doc_id] = text
        else:
            dropped.add(doc_id)
    return corpus, dropped


def _answers(row: Mapping[str, Any], where: str) -> list[str]:
    """The answer_pids of a query row: a list of at least one id."""
    answers = row.get("answer_pids")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise M2BertError(f"tasks: {where}: answer_pids must be a list of document ids, got {answers!r:.60}")
    if not answers:
        raise M2BertError(f"tasks: {where}: query {row['qid']!r} has no relevant document; remove the query")
    return answers


def build_task(
    name: str,
    split: str,
    documents: Iterable[tuple[str, Mapping[str, Any]]],
    queries: Iterable[tuple[str, Mapping[str, Any]]],
) -> RetrievalTask:
    """Make a task from rows in LoCoV1's columns, each with the words that say where it came from.

    Raises M2BertError naming the row for a missing column, a repeated id, an empty query, a query without
    relevant documents or with an answer that is not a document; and for an empty corpus or no queries.
    """
    corpus, dropped = _read_documents(documents)
    if not corpus:
        raise M2BertError(f"tasks: {name} ({split}): no document has text (dropped {len(dropped)})")
    texts: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    num_dropped = 0
    for where, row in queries:
        query_id, text = _text_column(row, "qid", where), _text_column(row, "query", where, null=True)
        if query_id in texts:
            raise M2BertError(f"tasks: {where}: every qid must be unique, got {query_id!r} again; remove a row")
        answers = _answers(row, where)
        unknown = next((answer for answer in answers if answer not in corpus and answer not in dropped), None)
        if unknown is not None:
            raise M2BertError(f"tasks: {where}: answer {unknown!r:.80} of query {query_id!r:.80} is no document")
        relevant = {answer: 1 for answer in answers if answer in corpus}
        if not relevant:
            num_dropped += 1
        elif not text.strip():
            raise M2BertError(f"tasks: {where}: query {query_id!r} is empty; give it text or remove it")
        else:
            texts[query_id], qrels[query_id] = text, relevant
    if not texts:
        raise M2BertError(f"tasks: {name} ({split}): no query is left (dropped {num_dropped})")
    return RetrievalTask(name, split, corpus, texts, qrels, len(dropped), num_dropped)


def load_task(name: str, files: TaskFiles, split: str = "test") -> RetrievalTask:
    """Read one task found by :func:`find_tasks`.

    Raises M2BertError as :func:`build_task` does, and for files that are not readable UTF-8 JSON lines.
    """

    def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        for where, row in read_jsonl(path, who="tasks"):
            if not files.shared or _text_column(row, "dataset", where) == name:
                yield where, row

    return build_task(name, split, rows(files.documents), rows(files.queries))
