"""The standard library's help: every public module, without side effects, and the questions asked about it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from m2bert.demo import stdlib_help, stdlib_help_worker
from m2bert.demo.stdlib_help import read_stdlib_help, stdlib_source
from m2bert.errors import M2BertError

QUESTIONS = Path(__file__).resolve().parents[2] / "examples" / "stdlib_questions.jsonl"


def questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def library() -> tuple[dict[str, str], dict[str, str]]:
    before = set(sys.modules)
    calls: list[tuple[int, int]] = []
    documents, skipped = read_stdlib_help(progress=lambda done, total: calls.append((done, total)))
    assert set(sys.modules) - before <= {"_posixsubprocess"}, "nothing is imported into this process"
    assert calls[-1][1] - 1 == calls[-1][0] and [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert {document.source for document in documents} == {stdlib_source()}
    return {document.id: document.text for document in documents}, {item.id: item.reason for item in skipped}


def test_library_has_the_public_modules_and_their_submodules(library: Any) -> None:
    texts, skipped = library
    names = "argparse os.path concurrent.futures xml.etree.ElementTree email.message urllib.parse importlib.util"
    names += " logging.handlers multiprocessing.pool unittest.mock json re sys builtins collections.abc"
    assert set(names.split()) <= set(texts)
    public = {name for name in sys.stdlib_module_names if not name.startswith("_")}
    left_out = {"antigravity", "this", "idlelib", "turtledemo", "test", "posixpath"}
    assert public - left_out <= set(texts) | set(skipped)
    assert not left_out & set(texts)
    for name in [*texts, *skipped]:
        assert not any(part.startswith("_") or part in ("test", "tests") for part in name.split("."))
    assert all(re.match(r"\w+: \S", reason) or reason.endswith("Error: ") for reason in skipped.values())


def test_texts_are_long_documents_of_plain_text(library: Any) -> None:
    texts, _ = library
    assert len(texts) > 300
    assert "add_argument(" in texts["argparse"] and "parse_args" in texts["argparse"]
    assert "Randomized" not in texts["json"] and "Serialize" in texts["json"]
    assert all(text.startswith("Python Library Documentation: ") for text in texts.values())
    assert not any("automatically generated from" in text for text in texts.values())
    assert "MODULE REFERENCE\n    https://docs.python.org/" in texts["argparse"]
    assert not any("\b" in text for text in texts.values()), "bold by overstriking is not plain text"
    assert not any(re.search(r" at 0x[0-9a-f]{6}", text) for text in texts.values())
    assert sum(len(text) for text in texts.values()) > 2_000_000


def test_a_second_run_reads_the_same_text(library: Any) -> None:
    texts, _ = library
    again = {document.id: document.text for document in read_stdlib_help(after="signal")[0]}
    assert next(iter(again)) == "site" and "signal" not in again
    # These show the environment, search paths and caches: what would differ first.
    for name in ("site", "sys", "sysconfig", "tempfile", "wsgiref.handlers"):
        assert again[name] == texts[name]


def test_a_quick_look_reads_the_first_modules_alone(library: Any) -> None:
    texts, _ = library
    first = {document.id: document.text for document in read_stdlib_help(limit=12)[0]}
    assert list(first) == list(texts)[: len(first)] and 9 <= len(first) <= 12 and first["argparse"] == texts["argparse"]
    with pytest.raises(M2BertError, match="limit must be at least 1, got 0"):
        read_stdlib_help(limit=0)


def test_questions_are_thirty_and_answerable_here(library: Any) -> None:
    texts, _ = library
    rows = questions()
    assert len(rows) == 30 and len({row["question"] for row in rows}) == 30
    for row in rows:
        assert row["question"].endswith("?") and any(name in texts for name in row["modules"])
    first_modules = [row["modules"][0] for row in rows]
    assert len(set(first_modules)) == 30, "each question asks for another module"


def names_a_module(question: str, module: str) -> bool:
    """Whether a part of the module's name is a word of the question, or, if long enough, anywhere in it."""
    words = re.findall(r"[a-z0-9]+", question.lower())
    parts = re.split(r"[._]", module.lower())
    return any(part in words or (len(part) > 3 and part in question.lower()) for part in parts)


def test_questions_do_not_quote_module_names() -> None:
    assert names_a_module("How do I use argparse?", "argparse")
    assert names_a_module("How do I make subprocesses?", "subprocess")
    assert names_a_module("What is the re in it?", "re")
    assert names_a_module("Where are futures?", "concurrent.futures")
    for row in questions():
        for module in row["modules"]:
            assert not names_a_module(row["question"], module), (row["question"], module)


def test_inherited_members_described_elsewhere_are_left_out() -> None:
    text = "\n".join(
        [
            "    class Base(builtins.object)",
            "     |  one",
            "    class Child(Base, _hidden.Core)",
            "     |  two",
            "     |  ----------------------------------------------------------------------",
            "     |  Methods inherited from Base:",
            "     |  ",
            "     |  one",
            "     |  ----------------------------------------------------------------------",
            "     |  Methods inherited from _hidden.Core:",
            "     |  kept",
            "     |  ----------------------------------------------------------------------",
            "     |  Data descriptors inherited from Base:",
            "     |  three",
            "FUNCTIONS",
        ]
    )
    assert stdlib_help_worker.without_repeats(text).split("\n") == [
        "    class Base(builtins.object)",
        "     |  one",
        "    class Child(Base, _hidden.Core)",
        "     |  two",
        "     |  ---",
        "     |  Methods inherited from _hidden.Core:",
        "     |  kept",
        "FUNCTIONS",
    ]


WORKER = """
import json, os, sys, time
names = ["good", "hangs", "dies", "last"]
begin = names.index(sys.argv[2]) + 1 if sys.argv[2] else 0
for name in names[begin:]:
    print(json.dumps({"begin": name, "done": 0, "total": 4}), flush=True)
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        os._exit(3)
    print(json.dumps({"name": name, "text": "help"}), flush=True)
"""


def test_modules_that_hang_or_crash_are_skipped(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(stdlib_help, "WORKER", tmp_path / "worker.py")
    documents, skipped = read_stdlib_help(timeout=1.5)
    assert [document.id for document in documents] == ["good", "last"]
    assert {item.id: item.reason for item in skipped} == {
        "hangs": "took longer than 1.5 s",
        "dies": "its import ended the process",
    }


def test_a_python_without_modules_is_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "worker.py").write_text("")
    monkeypatch.setattr(stdlib_help, "WORKER", tmp_path / "worker.py")
    with pytest.raises(M2BertError, match=r"no module of .* could be read"):
        read_stdlib_help()
