"""LoCoV1 tasks from small files in the layouts of their sources: pairs, splits, leaks, and what is no such file."""

from __future__ import annotations

import json
import sys
import time
import zipfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest
from tiny import tiny_model_folder

import m2bert.cli
from m2bert.bench.original_files import READERS, read_pairs, split_of
from m2bert.bench.task_building import EMPTY, LEAKED_DOCUMENT, LEAKED_QUERY, build_task_files
from m2bert.bench.tasks import LOCO_TASKS, find_tasks, load_task
from m2bert.errors import M2BertError


def lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def scrolls(folder: Path) -> Path:
    """Two pairs to train, two to test, and answers that are kept secret."""
    train = [{"id": f"m{n}", "pid": f"m{n}_0", "input": f"question {n}\n\nmeeting {n}", "output": f"summary {n}"}
             for n in range(2)]  # fmt: skip
    test = [
        {**row, "pid": row["pid"] + "v", "input": row["input"] + " v", "output": row["output"] + " v"} for row in train
    ]
    secret = [{"id": "s", "pid": "s_0", "input": "secret", "output": None}]
    with zipfile.ZipFile(folder / "qmsum.zip", "w") as archive:
        for name, rows in (("train", train), ("validation", test), ("test", secret)):
            archive.writestr(f"qmsum/{name}.jsonl", lines(rows))
    return folder / "qmsum.zip"


def qasper(folder: Path) -> Path:
    for split in ("train", "dev", "test"):
        sections = [
            {"section_name": None, "paragraphs": ["First."]},
            {"section_name": "Method", "paragraphs": ["A.", split]},
        ]
        paper = {"title": f"Title {split}", "abstract": f"Abstract {split}", "full_text": sections}
        papers = {f"{split}1": paper, f"{split}2": {**paper, "full_text": []}}
        (folder / f"qasper-{split}-v0.3.json").write_text(json.dumps(papers))
    return folder


def longbench(folder: Path) -> Path:
    rows = [{"_id": f"i{n}", "input": f"ask {n}", "context": f"context {n}", "answers": ["x"]} for n in range(60)]
    (folder / "2wikimqa_e.jsonl").write_text(lines(rows))
    (folder / "2wikimqa.jsonl").write_text(lines(rows[:3]))
    return folder


def legal(folder: Path) -> Path:
    for name in ("fulltext", "citations_summ"):
        (folder / "corpus" / name).mkdir(parents=True)
    for number in range(40):
        text = (
            f'<case><sentence "id=s0">Costs &amp; café {number}.</sentence>\n<sentence "id=s1">End\n.</sentence></case>'
        )
        (folder / "corpus/fulltext" / f"06_{number}.xml").write_bytes(text.encode("cp1252"))
        if number:
            text = f'<citphrases><citphrase "id=cp0">appeal {number}</citphrase></citphrases>'
            (folder / "corpus/citations_summ" / f"06_{number}.xml").write_text(text)
    return folder


def stack(folder: Path) -> Path:
    rows = ['<?xml version="1.0" encoding="utf-8"?>', "<posts>"]
    for n in range(1, 41):
        rows.append(
            f'<row Id="{n}" PostTypeId="1" AnswerCount="{n % 3}" Title="How {n}?" Body="&lt;p&gt;Why {n}&lt;/p&gt;" />'
        )
        for each in range(n % 3):
            body = f"&lt;p&gt;So {n}.{each}&lt;/p&gt;&#xA;&lt;pre&gt;&lt;code&gt;a &amp;lt; b&lt;/code&gt;&lt;/pre&gt;"
            rows.append(f'<row Id="{100 * n + each}" PostTypeId="2" ParentId="{n}" Body="{body}" />')
    (folder / "Posts.xml").write_text("\n".join([*rows, "</posts>"]))
    return folder / "Posts.xml"


def by_split(task: str, path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"train": [], "test": []}
    for pair in read_pairs(task, path):
        found[pair.split].append(pair)
    return found


def test_scrolls_takes_validation_as_test_and_leaves_secrets(tmp_path: Path) -> None:
    found = by_split("qmsum", scrolls(tmp_path))
    assert [(pair.query, pair.document) for pair in found["train"]] == [
        ("summary 0", "question 0\n\nmeeting 0"),
        ("summary 1", "question 1\n\nmeeting 1"),
    ]
    assert [pair.query for pair in found["test"]] == ["summary 0 v", "summary 1 v"]


def test_qasper_asks_with_title_or_abstract_for_the_full_text(tmp_path: Path) -> None:
    for task, query in (("qasper_title", "Title"), ("qasper_abstract", "Abstract")):
        found = by_split(task, qasper(tmp_path))
        for split in ("train", "test"):
            first, second = found[split]
            assert (first.query, first.document) == (f"{query} {split}", f"First.\nMethod\nA.\n{split}")
            assert second.document == ""


def test_splits_of_our_own_depend_on_the_document_alone(tmp_path: Path) -> None:
    found = by_split("2wikimqa", longbench(tmp_path))
    assert len(found["train"]) + len(found["test"]) == 60 and 5 <= len(found["test"]) <= 20
    before = {pair.document: pair.split for pairs in found.values() for pair in pairs}
    (tmp_path / "2wikimqa_e.jsonl").unlink()
    less = [pair for pairs in by_split("2wikimqa", tmp_path / "2wikimqa.jsonl").values() for pair in pairs]
    assert len(less) == 3 and all(before[pair.document] == pair.split for pair in less)


def test_legal_cases_are_read_although_they_are_no_xml(tmp_path: Path) -> None:
    pairs = {pair.query_id: pair for pair in read_pairs("legal_case_reports", legal(tmp_path))}
    assert len(pairs) == 40 and pairs["06_0"].query == ""
    assert (pairs["06_7"].query, pairs["06_7"].document) == ("appeal 7", "Costs & café 7.\nEnd .")
    assert {pair.split for pair in pairs.values()} == {"train", "test"}
    assert all(pair.split == split_of(name) for name, pair in pairs.items())


def test_stack_exchange_keeps_a_question_and_its_answers_together(tmp_path: Path) -> None:
    found = by_split("stackoverflow", stack(tmp_path))
    pairs = found["train"] + found["test"]
    assert {pair.query_id for pair in pairs} == {str(n) for n in range(1, 41) if n % 3 == 2}
    assert len(pairs) == 2 * len({pair.query_id for pair in pairs})
    assert not {pair.query_id for pair in found["train"]} & {pair.query_id for pair in found["test"]}
    first = next(pair for pair in pairs if pair.document_id == "201")
    assert (first.query, first.document) == ("How 2?\nWhy 2", "So 2.1\n\na < b")


def test_built_tasks_load_and_say_what_they_left_out(tmp_path: Path) -> None:
    """Train repeats a test document in other case and a test query; one query has two answers."""
    original = tmp_path / "scrolls"
    original.mkdir()
    rows = [("a", "doc a"), ("b", "doc b"), ("b", "doc c"), ("c", "DOC  T"), ("Ask t", "doc d"), ("", "doc e")]
    for name, pairs in (("train", rows), ("validation", [("ask t", "doc t"), ("ask u", "doc t")])):
        made = [{"pid": f"{name}{n}", "input": text, "output": query} for n, (query, text) in enumerate(pairs)]
        (original / f"{name}.jsonl").write_text(lines(made))
    seen: list[int] = []
    report = build_task_files("gov_report", original, tmp_path / "out", seen.append)
    assert report.sizes == {"train": (2, 3), "test": (2, 1)}
    assert report.dropped == {LEAKED_DOCUMENT: 1, LEAKED_QUERY: 1, EMPTY: 1} and seen == list(range(1, 9))
    train = load_task("gov_report", find_tasks(tmp_path / "out", "train")["gov_report"], "train")
    assert sorted(len(each) for each in train.qrels.values()) == [1, 2]
    files = sorted((tmp_path / "out").rglob("*.gz"))
    assert len(files) == 4 and not list((tmp_path / "out").rglob("*.partial"))
    before = [file.read_bytes() for file in files]
    build_task_files("gov_report", original, tmp_path / "out")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("task", sorted(READERS))
def test_every_layout_builds(task: str, tmp_path: Path) -> None:
    if task in ("multifieldqa", "passage_retrieval"):
        longbench(tmp_path)
        path = (tmp_path / "2wikimqa_e.jsonl").rename(tmp_path / f"{task}_en_e.jsonl")
    else:
        made = {"stackoverflow": stack, "2wikimqa": longbench, "legal_case_reports": legal}
        path = made.get(task, qasper if task.startswith("qasper") else scrolls)(tmp_path)
    report = build_task_files(task, path, tmp_path / "out")
    assert task in LOCO_TASKS and min(min(size) for size in report.sizes.values()) >= 1
    for split, size in report.sizes.items():
        loaded = load_task(task, find_tasks(tmp_path / "out", split)[task], split)
        assert (len(loaded.queries), len(loaded.corpus)) == size


@pytest.mark.parametrize("piece", ["<sentence ", "<sentence>a", "</sentence", "&lt;", "<"])
def test_tags_that_are_not_closed_take_time_in_proportion(piece: str, tmp_path: Path) -> None:
    """A megabyte of them took hours: from every one the rest was looked through for the end."""
    text, begin = piece * (1_000_000 // len(piece)), time.process_time()
    (legal(tmp_path) / "corpus/fulltext/06_1.xml").write_text(f"<case>{text}")
    assert sum(map(len, by_split("legal_case_reports", tmp_path).values())) == 40
    question = f'<row Id="1" PostTypeId="1" AnswerCount="2" Body={quoteattr(text)}/>'
    (tmp_path / "Posts.xml").write_text(f'<posts>{question}<row Id="2" PostTypeId="2" ParentId="1" Body="so"/></posts>')
    assert sum(map(len, by_split("stackoverflow", tmp_path / "Posts.xml").values())) == 1
    assert time.process_time() - begin < 5


def test_files_of_another_layout_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    (tmp_path / "x.zip").write_text("no zip")
    (tmp_path / "x.xml").write_text("<posts><row")
    for task, name, message in [
        ("courtlistener_HTML", "x.jsonl", "can build .*; got 'courtlistener_HTML'"),
        ("qmsum", "none", "no such file or folder"),
        ("qmsum", "x.jsonl", "must be a zip or folder with train.jsonl and validation.jsonl"),
        ("qmsum", ".", "must hold train.jsonl and validation.jsonl, got none"),
        ("qmsum", "x.zip", "must be the original files of qmsum"),
        ("qasper_title", ".", "must hold test and train, got none"),
        ("2wikimqa", "x.jsonl", "must hold or be 2wikimqa_e.jsonl or 2wikimqa.jsonl"),
        ("legal_case_reports", ".", "folders fulltext and citations_summ"),
        ("stackoverflow", "x.xml", "must be the original files of stackoverflow"),
    ]:
        with pytest.raises(M2BertError, match=message):
            list(read_pairs(task, tmp_path / name))


def test_the_command_shows_sizes_beside_the_paper_s(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    model = tiny_model_folder(tmp_path / "tiny")
    options = ["--output", str(tmp_path / "out"), "--tokenizer", str(model)]
    monkeypatch.setattr(sys, "argv", ["m2bert", "tasks", "build", "qmsum", str(scrolls(tmp_path)), *options])
    with pytest.raises(SystemExit) as ended:
        m2bert.cli.main()
    out = capsys.readouterr().out
    assert not ended.value.code
    assert "qmsum, train: 2 queries, 2 documents (the paper: 1257 and 1257)" in out
    assert "qmsum, test: 2 queries, 2 documents (the paper: 272 and 272)" in out
    rows = [line.split() for line in out.splitlines() if line.split()[:2] == ["qmsum", "documents"]]
    assert [row[2:7] for row in rows if row[2] == "characters"] == [
        ["characters", "2", "21", "21", "21"], ["characters", "2", "23", "23", "23"],
    ]  # fmt: skip
