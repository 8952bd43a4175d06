"""LoCoV1 tasks from the original files of their sources, for users who have them (the paper's tables 10 and 11).

    SCROLLS       <task>.zip, or a folder, with train.jsonl and validation.jsonl: {"id", "pid", "input", "output"}
    QASPER        a folder with qasper-train-*.json and qasper-test-*.json: {paper: {"title", "abstract", "full_text"}}
    LongBench     a .jsonl of one task, or a folder or zip with <task>_e.jsonl or <task>.jsonl: {"input", "context"}
    legal cases   the folder of the UCI corpus, with fulltext/*.xml and citations_summ/*.xml
    StackOverflow Posts.xml of a dump (of any Stack Exchange site)

Splits are the source's own where the paper's sizes show that it used them (SCROLLS validation and QASPER test are the
test splits). Elsewhere a document belongs to the test split if the SHA-256 of its name says so, one in five: the same
whatever else the files hold, and all that answers one question stays together. A leaf: text only.
Test: tests/bench/test_original_files.py.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO

from m2bert.bounds import LINE, TooMuchError, lines_of, read_whole
from m2bert.errors import M2BertError

TEST_SHARE = 5
MOST_QUESTIONS = 2000
FEWEST_ANSWERS = 2
LONGBENCH_NAMES = {
    "multifieldqa": "multifieldqa_en",
    "2wikimqa": "2wikimqa",
    "passage_retrieval": "passage_retrieval_en",
}


@dataclass(frozen=True)
class Pair:
    """A query and one document that answers it. `document_id` names the document within its task and split."""

    split: str
    query_id: str
    query: str
    document_id: str
    document: str


def read_pairs(task: str, path: Path | str) -> Iterator[Pair]:
    """The pairs of a task in its original files. Empty queries and documents are left to the caller.

    Raises M2BertError for a task that cannot be built, and for files of another layout.
    """
    if task not in READERS:
        raise M2BertError(
            f"tasks: can build {', '.join(READERS)}; got {task!r}, whose original files are not known here"
        )
    path = Path(path)
    if not path.exists():
        raise M2BertError(f"tasks: no such file or folder: {path}; give the original files of {task}")
    try:
        yield from READERS[task](path, task)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        ElementTree.ParseError,
        NotImplementedError,
        RuntimeError,
        RecursionError,
        EOFError,
        zlib.error,
    ) as error:
        if isinstance(error, M2BertError) and not isinstance(error, TooMuchError):
            raise
        message = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise M2BertError(
            f"tasks: {path} must be the original files of {task}, got {message}; see docs/retrieval.md"
        ) from error


def split_of(name: str) -> str:
    """test for one name in five, by its SHA-256; else train."""
    return "test" if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % TEST_SHARE == 0 else "train"


def _open_all(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, open file) of a file itself, or of the wanted files in a folder or zip, by name."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and wanted(file.name):
                with file.open("rb") as opened:
                    yield file.name, opened
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if wanted(name.rpartition("/")[2]) and not name.startswith("__MACOSX"):
                    with archive.open(name) as opened:
                        yield name.rpartition("/")[2], opened
    else:
        _check_plain(path)
        with path.open("rb") as opened:
            yield path.name, opened


def _check_plain(path: Path) -> None:
    """Raise M2BertError for what may never end: a pipe, a device."""
    if path.exists() and not path.is_file():
        raise M2BertError(f"tasks: {path} must be a plain file, got something else; give the original file")


def _rows(opened: IO[bytes]) -> Iterator[dict[str, str]]:
    for number, line in lines_of(opened, _packed(opened)):
        if line is None:
            raise TooMuchError(f"line {number} of {opened.name} is {LINE.said()}")
        yield json.loads(line)


def _packed(opened: IO[bytes]) -> int:
    """Bytes of an open file on the disk, or in its archive."""
    if isinstance(opened, zipfile.ZipExtFile):
        return int(opened._orig_compress_size)  # type: ignore[attr-defined]
    return os.fstat(opened.fileno()).st_size


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _scrolls(path: Path, task: str) -> Iterator[Pair]:
    """Summary -> report, transcript, or question and transcript; SCROLLS keeps its test answers to itself."""
    splits = {"train.jsonl": "train", "validation.jsonl": "test"}
    found = set()
    for name, opened in _open_all(path, splits.__contains__):
        if name not in splits:
            raise M2BertError(f"tasks: {path} must be a zip or folder with {' and '.join(splits)}, got a file")
        found.add(name)
        for row in _rows(opened):
            yield Pair(splits[name], row["pid"], row["output"], _short_hash(row["input"]), row["input"])
    _all_found(path, set(splits), found)


def _qasper(path: Path, task: str) -> Iterator[Pair]:
    """Title or abstract -> full text, sections with their names; the dev papers are not used."""
    column = task.removeprefix("qasper_")
    found = set()
    for name, opened in _open_all(path, lambda name: bool(re.fullmatch(r"qasper-(train|test)[-\w.]*\.json", name))):
        split = "test" if "test" in name else "train"
        found.add(split)
        for identity, paper in json.load(opened).items():
            parts = []
            for section in paper["full_text"]:
                parts += [section["section_name"] or "", *section["paragraphs"]]
            yield Pair(split, identity, paper[column] or "", identity, "\n".join(part for part in parts if part))
    _all_found(path, {"train", "test"}, found)


def _all_found(path: Path, wanted: set[str], found: set[str]) -> None:
    if wanted - found:
        raise M2BertError(f"tasks: {path} must hold {' and '.join(sorted(wanted))}, got {', '.join(found) or 'none'}")


def _longbench(path: Path, task: str) -> Iterator[Pair]:
    """Question, or abstract of a paragraph -> context. LongBench-E (`_e`) is taken where both are there: the paper's
    sizes are its sizes."""
    names = [f"{LONGBENCH_NAMES[task]}_e.jsonl", f"{LONGBENCH_NAMES[task]}.jsonl"]
    there = {name for name, _ in _open_all(path, names.__contains__)}
    chosen = next((name for name in names if name in there), None)
    if chosen is None:
        raise M2BertError(f"tasks: {path} must hold or be {' or '.join(names)}, got {', '.join(there) or 'none'}")
    for _, opened in _open_all(path, chosen.__eq__):
        for row in _rows(opened):
            document = _short_hash(row["context"])
            yield Pair(split_of(document), row["_id"], row["input"], document, row["context"])


def _legal_cases(path: Path, task: str) -> Iterator[Pair]:
    """Catchphrases of the cases that cite a case, or that it cites -> its sentences.

    The files are not well-formed XML (<sentence "id=s0">), so elements are found by their tags.
    """
    folders = [next((each for each in sorted(path.rglob(name)) if each.is_dir()), None)
               for name in ("fulltext", "citations_summ")]  # fmt: skip
    if folders[0] is None or folders[1] is None:
        raise M2BertError(f"tasks: {path} must hold the folders fulltext and citations_summ of the UCI corpus")
    for file in sorted(folders[0].glob("*.xml")):
        citing = folders[1] / file.name
        phrases = _elements(citing, "citphrase") if citing.is_file() else []
        yield Pair(
            split_of(file.stem), file.stem, "\n".join(phrases), file.stem, "\n".join(_elements(file, "sentence"))
        )


def _elements(file: Path, tag: str) -> list[str]:
    data = read_whole(file)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    return [" ".join(html.unescape(each).split()) for each in _between(text, f"<{tag}", f"</{tag}>")]


def _between(text: str, opening: str, closing: str) -> Iterator[str]:
    """What lies between tags; in time that grows with the text's length, which a pattern of both tags does not."""
    place = 0
    while (place := text.find(opening, place)) >= 0:
        place += len(opening)
        if text[place : place + 1].isalnum() or text[place : place + 1] == "_":
            continue  # a longer name
        start = text.find(">", place) + 1
        place = text.find(closing, start)
        if start == 0 or place < 0:
            return
        yield text[start:place]


class _Text(HTMLParser):
    """The text of a post: code keeps its lines, blocks end theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "pre", "li", "h1", "h2", "h3", "blockquote"):
            self.parts.append("\n")


def _strip_html(body: str) -> str:
    parser = _Text()
    # Behind the last ">" nothing is a tag, but the parser would look for its end from every "<" on.
    tags, end, rest = body.rpartition(">")
    parser.feed(tags + end + rest.replace("<", "&lt;"))
    parser.close()
    return re.sub(r"\n{3,}", "\n\n", "".join(parser.parts)).strip()


def _stackoverflow(path: Path, task: str) -> Iterator[Pair]:
    """Title and body of a question -> each of its answers, for at most 2,000 questions of two answers or more.

    A dump is larger than memory: it is read twice, once to choose questions by the SHA-256 of their ids, once to
    take them and their answers. A question and its answers are in one split.
    """
    file = path / "Posts.xml" if path.is_dir() else path
    _check_plain(file)
    hashes = {
        row["Id"]: hashlib.sha256(row["Id"].encode()).digest()
        for row in _posts(file)
        if row.get("PostTypeId") == "1" and int(row.get("AnswerCount", 0)) >= FEWEST_ANSWERS
    }
    chosen = set(sorted(hashes, key=hashes.__getitem__)[:MOST_QUESTIONS])
    questions: dict[str, str] = {}
    answers: dict[str, list[tuple[str, str]]] = {}
    for row in _posts(file):
        if row["Id"] in chosen and row.get("PostTypeId") == "1":
            questions[row["Id"]] = f"{row.get('Title', '')}\n{_strip_html(row.get('Body', ''))}".strip()
        elif row.get("PostTypeId") == "2" and row.get("ParentId") in chosen:
            answers.setdefault(row["ParentId"], []).append((row["Id"], _strip_html(row.get("Body", ""))))
    for question, text in questions.items():
        for answer, body in answers.get(question, []):
            yield Pair(split_of(question), question, text, answer, body)


def _posts(file: Path) -> Iterator[dict[str, str]]:
    for _, element in ElementTree.iterparse(file, events=("end",)):
        if element.tag == "row":
            yield dict(element.attrib)
        element.clear()


READERS: dict[str, Callable[[Path, str], Iterator[Pair]]] = {
    "summ_screen_fd": _scrolls,
    "gov_report": _scrolls,
    "qmsum": _scrolls,
    "qasper_title": _qasper,
    "qasper_abstract": _qasper,
    "multifieldqa": _longbench,
    "2wikimqa": _longbench,
    "passage_retrieval": _longbench,
    "legal_case_reports": _legal_cases,
    "stackoverflow": _stackoverflow,
}
