"""Stores and sources in a bad state: what is kept, what goes, and a sentence for what cannot be."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
from bag_of_words import BagOfWords
from tiny import story, tiny_embedder

import m2bert.files
import m2bert.search.bulk
from m2bert.errors import M2BertError
from m2bert.search.documents import read_corpus
from m2bert.search.index import SearchIndex


def ids(index: SearchIndex) -> set[str]:
    return {identity for _, identity in index.stats(documents=True).documents}


def write_rows(file: Path, *rows: dict[str, Any] | str) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_a_row_that_cannot_be_read_keeps_its_document(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    file = tmp_path / "d.jsonl"
    index.update(read_corpus(write_rows(file, {"text": "first"}, {"id": "b", "text": "river"}, {"text": "third"})))
    report = index.update(read_corpus(write_rows(file, {"text": 5}, {"id": "b", "text": None}, {"text": "third"})))
    assert [item.id for item in report.skipped] == ["1", "b"]
    assert report.removed == 0 and ids(index) == {"1", "b", "3"}


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_the_number_of_a_line_takes_no_place_of_an_id(tmp_path: Path, name: str) -> None:
    """The row without an id was called "1", and the one that is called so was left out as the second of its name."""
    rows = [{"text": "no name"}, {"id": 1, "text": "real"}, {"id": "4", "text": "four"}, "{", {"text": "no name"}]
    written = write_rows(tmp_path / "plain", *rows).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(written) if name.endswith(".gz") else written)
    corpus = read_corpus(tmp_path / name)
    assert {item.id: item.text for item in corpus.documents} == {"1": "real", "4": "four", "5": "no name"}
    assert [(item.id, item.keeps) for item in corpus.skipped] == [("line 1", "nothing"), ("line 4", "source")]
    assert "has no id, and its number is the id of another row" in corpus.skipped[0].reason


def test_a_line_that_may_be_any_document_keeps_all_but_the_emptied(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    rows = [{"id": name, "text": f"river {name}"} for name in "abc"]
    index.update(read_corpus(write_rows(tmp_path / "d.jsonl", *rows)))
    broken = read_corpus(write_rows(tmp_path / "d.jsonl", rows[0], '{"id": "b", "text": "ri', {"id": "c", "text": ""}))
    assert index.update(broken).removed == 1 and ids(index) == {"a", "b"}
    assert index.update(read_corpus(write_rows(tmp_path / "d.jsonl", rows[0]))).removed == 1
    assert ids(index) == {"a"}


def test_an_id_that_ends_in_a_slash_is_no_folder(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    rows = [{"id": f"https://ex.org/{name}", "text": f"page {name}"} for name in ("", "old", "new")]
    index.update(read_corpus(write_rows(tmp_path / "d.jsonl", *rows)))
    for start in ({"id": "https://ex.org/", "text": None}, {"id": "https://ex.org/", "text": ""}):
        index.update(read_corpus(write_rows(tmp_path / "d.jsonl", start, rows[2])))
        kept = {"https://ex.org/"} if start["text"] is None else set()
        assert ids(index) == {"https://ex.org/new"} | kept


def test_an_emptied_file_is_not_found_any_more(tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / name).write_text(f"river {name}")
    index.update(read_corpus(tmp_path / "texts"))
    (tmp_path / "texts" / "a").write_text("")
    (tmp_path / "texts" / "b").write_bytes(b"\xff")  # not read, so it keeps its old state
    report = index.update(read_corpus(tmp_path / "texts"))
    assert report.removed == 1 and ids(index) == {"b", "c"}
    assert {item.id: item.reason for item in report.skipped}["a"] == "holds no text"


def test_a_file_without_tokens_does_not_stop_a_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(m2bert.search.bulk, "CHARACTERS_BETWEEN_WRITES", 100)
    (tmp_path / "texts").mkdir()
    for number in range(6):
        (tmp_path / "texts" / f"{number}").write_text(story(9, number))
    index = SearchIndex(tmp_path / "store", tiny_embedder())
    index.update(read_corpus(tmp_path / "texts"))
    (tmp_path / "texts" / "0").write_text("\ufffd\n")
    (tmp_path / "texts" / "odd").write_text("\ufffd\n")
    (tmp_path / "texts" / "new").write_text(story(30, 9))
    report = index.update(read_corpus(tmp_path / "texts"))
    assert {item.id for item in report.skipped} == {"0", "odd"}
    assert all("holds no tokens" in item.reason for item in report.skipped)
    assert (report.added, report.updated, report.unchanged, report.removed) == (1, 0, 5, 1)
    assert report.embedded == 1 and ids(index) == {"1", "2", "3", "4", "5", "new"}
    strict = SearchIndex(tmp_path / "store", tiny_embedder(overflow="error"))
    with pytest.raises(M2BertError, match=r"document '(0|odd)' holds no tokens.*nothing was changed"):
        strict.update(read_corpus(tmp_path / "texts"))
    for file in (tmp_path / "texts").iterdir():
        file.write_text("\ufffd")
    with pytest.raises(M2BertError, match=r"at least one readable document, got none.*nothing was changed"):
        index.update(read_corpus(tmp_path / "texts"))
    assert ids(index) == {"1", "2", "3", "4", "5", "new"}


def test_a_tilde_is_the_folder_of_the_user(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    SearchIndex("~/notes", BagOfWords()).add({"a": "river"})
    assert ids(SearchIndex(tmp_path / "home" / "notes")) == {"a"}
    assert list((tmp_path / "work").iterdir()) == []
    (tmp_path / "home" / "b.txt").write_text("stone")
    assert [item.id for item in read_corpus(tmp_path / "home", exclude=["~/notes"]).documents] == ["b.txt"]


@pytest.mark.parametrize("name", ["s3:backup", "memory:", "db:x", "a b%20c", "é?#x"])
def test_a_store_may_have_any_name(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    SearchIndex(name, BagOfWords()).add({"a": "river"})
    assert ids(SearchIndex(tmp_path / name)) == {"a"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["lock", "000000"])
def test_what_cannot_be_written_is_said_and_changes_nothing(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    """A lock that may not be opened, and a staged file for which there is no room."""
    index = SearchIndex(tmp_path / "store", BagOfWords())
    index.add({"a": "river"})
    code = errno.EACCES if name == "lock" else errno.ENOSPC
    fsync, opened = os.fsync, os.open

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    def refused(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name == name:
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(m2bert.search.bulk, "CHARACTERS_BETWEEN_WRITES", 100)
    with monkeypatch.context() as patch:
        if name == "lock":
            patch.setattr(os, "open", refused)
        else:
            patch.setattr(os, "fsync", full)
        with pytest.raises(M2BertError, match=rf"^store: cannot write .*\({os.strerror(code)}\); "):
            index.add({f"s{n}": story(20, n) for n in range(9)})
    assert os.fsync is fsync and ids(index) == {"a"}
    assert [path.name for path in (tmp_path / "store" / "staging").iterdir()] == ["lock"]
    assert index.add({f"s{n}": story(20, n) for n in range(9)}).added == 9


def test_damaged_passages_are_said_in_a_sentence(tmp_path: Path) -> None:
    """Bytes that are too few or too many for any number of passages of 8 numbers, or those of a single one."""
    encoder = BagOfWords(dim=8, passage_words=2)
    SearchIndex(tmp_path / "store", encoder).add({"a": "herons in the reeds by the lake", "b": "river stone paper"})
    table = lancedb.connect(str(tmp_path / "store")).open_table("documents")
    row = table.search().where("id = 'a'").to_arrow().select(table.schema.names).to_pylist()[0]
    whole = row["passage_vectors"]
    assert len(whole) == 4 * 8 + 4 * 4 + 3 * 4  # codes, scales and lengths of pairs

    def write(blob: bytes) -> SearchIndex:
        changed = pa.Table.from_pylist([{**row, "passage_vectors": blob}], schema=table.schema)
        table.merge_insert(["source", "id"]).when_matched_update_all().execute(changed)
        return SearchIndex(tmp_path / "store", encoder)

    for blob in (whole[:-1], whole + b"x", whole[:12]):
        damaged = write(blob)
        for ask in (lambda: damaged.search("heron"), lambda: damaged.document("a")):  # noqa: B023
            with pytest.raises(M2BertError, match=r"document 'a' is damaged \(.+\); `m2bert check"):
                ask()
    assert len(write(whole).search("herons")) == 2


HOLDER = """
import sys
from pathlib import Path
from m2bert.search.stores.lance import LanceStore
from m2bert.search.stores.staging import open_staging
store = LanceStore.open(sys.argv[1])
with open_staging(store.path, store.info):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_waiting_writer_says_so_and_goes_on_when_the_other_is_killed(tmp_path: Path, caplog: Any) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    index.add({"a": "river"})
    environment = {**os.environ, "PYTHONPATH": str(Path(m2bert.files.__file__).parents[1])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"

        class Killing(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                other.send_signal(signal.SIGKILL)

        logger = logging.getLogger("m2bert.search.stores.staging")
        logger.addHandler(handler := Killing())
        try:
            index.add({"b": "stone"})
        finally:
            logger.removeHandler(handler)
    assert [record.message for record in caplog.records] == [
        f"another process is writing to {tmp_path / 'store'}; waiting for it to end"
    ]
    assert ids(index) == {"a", "b"}
