"""Streams of any length: memory that does not grow with them, portions, kills, and what is gone at their end."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamed
from bag_of_words import BagOfWords
from streamed import Cheap, text_of

import m2bert.search.adding
from m2bert.errors import M2BertError
from m2bert.search.documents import Document, read_corpus
from m2bert.search.index import SearchIndex
from m2bert.search.ledger import EMPTY, READ, UNREAD, Ledger
from m2bert.search.stores.lance import LanceStore
from m2bert.search.streams import stream_corpus

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SMALL = {"FIRST_CHARACTERS": 6_000, "LEAST_CHARACTERS": 1, "MOST_CHARACTERS": 6_000}
LARGER = {"FIRST_CHARACTERS": 4_000_000, "MOST_CHARACTERS": 4_000_000}


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Portions of 100 characters; the number of documents of the store after each step that others can see."""
    for name in SMALL:
        monkeypatch.setattr(m2bert.search.adding, name, 1 if name == "LEAST_CHARACTERS" else 100)
    seen: list[int] = []
    add = LanceStore.add

    def noting(self: LanceStore, *rows: Any, **options: Any) -> None:
        add(self, *rows, **options)
        seen.append(LanceStore.open(self.path).count())

    monkeypatch.setattr(LanceStore, "add", noting)
    return seen


def child(store: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_of(store, **options), capture_output=True, text=True, env=ENVIRONMENT, check=False)


def command_of(store: Path, **options: Any) -> list[str]:
    return [sys.executable, streamed.__file__, str(store), json.dumps(options)]


def test_memory_does_not_grow_with_what_is_added(tmp_path: Path) -> None:
    """250 MB of text under a limit of 150 MB more than a process has to begin with; as a list it does not fit."""
    options = {"count": 1250, "words": 5, "signs": 200_000, "megabytes": 150, "settings": LARGER}
    done = child(tmp_path / "stream", **options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["added"] == 1250
    assert SearchIndex(tmp_path / "stream").search("only1249", rank="words", where="year >= 2019")[0].id == "d1249"
    whole = child(tmp_path / "whole", **options, read_whole=True)
    assert whole.returncode != 0 and "MemoryError" in whole.stderr


@pytest.fixture(scope="module")
def limited() -> Any:
    """The script that runs a command under a limit."""
    spec = importlib.util.spec_from_file_location("measure_memory", ROOT / "scripts" / "measure_memory.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure_memory"] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_a_folder_of_twice_the_memory_is_indexed(limited: Any, tmp_path: Path) -> None:
    """300 MB under a hard limit of 150 MB for all memory of the process, where one can be set (a control group), in a
    process that keeps what is freed, as the commands do; files are put together on the way, which reads all rows."""
    (tmp_path / "docs").mkdir()
    for number in range(300):
        (tmp_path / "docs" / f"{number}.txt").write_text(text_of(number, 5, 1_000_000))
    command = command_of(tmp_path / "store", folder=str(tmp_path / "docs"), settings=LARGER, keep=True)
    try:
        with limited.memory_group(150) as group:
            done, _ = limited.watched(group, command, capture_output=True, env=ENVIRONMENT)
    except limited.CannotLimit:
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["added"] == 300 and told["grown"] < 150e6
    found = SearchIndex(tmp_path / "store").search("only299", rank="words", where="type = 'txt' AND bytes > 400000")
    assert [result.id for result in found] == ["299.txt"]


def test_a_killed_run_goes_on_and_embeds_nothing_twice(tmp_path: Path) -> None:
    """Killed three times: between the groups of a portion, whose staged ones are kept, and after some portions."""
    log = tmp_path / "log"
    settings = {**SMALL, "CHARACTERS_BETWEEN_WRITES": 2_000}
    counts = []
    for kill_after in (130, 95, 150, None):
        options = {} if kill_after is None else {"kill_after": kill_after}
        done = child(tmp_path / "store", count=500, words=30, settings=settings, log=str(log), **options)
        assert done.returncode == (0 if kill_after is None else -signal.SIGKILL), done.stderr[-2000:]
        counts.append(SearchIndex(tmp_path / "store").stats().num_documents)
    assert 0 < counts[0] < counts[1] < counts[2] < counts[3] == 500
    embedded = Counter(log.read_text().split())
    assert embedded == {str(zlib.crc32(f"{text_of(n, 30)}".encode())): 1 for n in range(500)}


def test_portions_become_visible_and_an_iterator_is_not_read_ahead(tmp_path: Path, small_portions: list[int]) -> None:
    given: list[int] = []

    def documents() -> Iterator[tuple[str, str]]:
        for number in range(10):
            given.append(number)
            assert len(given) - (small_portions or [0])[-1] <= 6
            yield f"d{number}", text_of(number, 6)

    report = SearchIndex(tmp_path, Cheap()).add(documents())
    assert report.added == 10 and small_portions == sorted(small_portions) and len(small_portions) > 2
    assert small_portions[-1] == 10 and [path.name for path in (tmp_path / "staging").iterdir()] == ["lock"]


def test_progress_tells_tokens_and_an_estimate_of_all(tmp_path: Path, small_portions: list[int]) -> None:
    told: list[tuple[int, int]] = []
    index = SearchIndex(tmp_path, BagOfWords())
    index.add([(f"d{n}", f"river stone paper {n}") for n in range(40)], progress=lambda *each: told.append(each))
    assert told[-1] == (40, 40) and [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(25 < total < 60 for _, total in told if total)
    told.clear()
    index.add(((f"e{n}", f"river {n}") for n in range(40)), progress=lambda *each: told.append(each))
    assert told[-1] == (40, 0)  # nobody knows how many will come


def test_what_an_iterator_gave_before_a_fault_stays(tmp_path: Path, small_portions: list[int]) -> None:
    index = SearchIndex(tmp_path, Cheap())
    names = [*(f"d{n}" for n in range(9)), "d1"]
    with pytest.raises(M2BertError, match=r"two documents are called 'd1'.*what came before it stays"):
        index.add((name, text_of(n, 6)) for n, name in enumerate(names))
    assert 0 < index.stats().num_documents < 9
    with pytest.raises(M2BertError, match="two documents are called 'd1'"):
        index.add([(name, "other") for name in names])  # a list is looked at first
    assert index.document("d0").text == text_of(0, 6)
    with pytest.raises(M2BertError, match="at least one document, got none"):
        index.add(iter([]))


def rows(path: Path, numbers: Any, **more: Any) -> Path:
    lines = [json.dumps({"id": f"d{n}", "text": text_of(n, 6), "year": 2000 + n, **more}) for n in numbers]
    path.write_text("\n".join(lines))
    return path


def test_a_streamed_file_gives_what_a_read_one_gives(tmp_path: Path, small_portions: list[int]) -> None:
    """Also when it changes: new, changed, gone, doubled and broken rows, over many portions."""
    path = tmp_path / "d.jsonl"
    streamed_index, read_index = (SearchIndex(tmp_path / name, Cheap()) for name in ("streamed", "read"))
    for numbers, extra in (
        (range(30), ""), ([*range(5), *range(8, 40), 3], '\n{"id": "empty", "text": " "}'),
        (range(10, 20), '\n{"id": "d21", "text": 5}\n{"id": "d22"}'), (range(10), "\n[]"), (range(10), ""),
    ):  # fmt: skip
        rows(path, numbers)
        path.write_text(path.read_text() + extra)
        one, other = streamed_index.update(stream_corpus(path)), read_index.update(read_corpus(path))
        assert {**one.to_dict(), "skipped": 0} == {**other.to_dict(), "skipped": 0}
        assert sorted(map(str, one.skipped)) == sorted(map(str, other.skipped))
        states = [index.stats(documents=True).documents for index in (streamed_index, read_index)]
        assert states[0] == states[1] and len(states[0]) >= 10
    assert len(states[0]) == 10 and streamed_index.document("d3").metadata == {"year": 2003}


def test_a_streamed_folder_does_not_read_what_has_not_changed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(m2bert.search.documents, "SETTLED_NS", 0)
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    for number in range(6):
        (tmp_path / "docs" / ("sub" if number % 2 else "") / f"{number}.md").write_text(f"# river {number}")
    index = SearchIndex(tmp_path / "store", BagOfWords())
    assert index.update(stream_corpus(tmp_path / "docs")).added == 6
    parsed: list[str] = []
    parse = m2bert.search.documents.parse
    monkeypatch.setattr(
        m2bert.search.documents, "parse", lambda data, name: (parsed.append(name), parse(data, name))[1]
    )
    monkeypatch.setattr(m2bert.search.documents, "has_reader", lambda name: False)
    (tmp_path / "docs" / "2.md").write_text("# stone")
    (tmp_path / "docs" / "4.md").unlink()
    report = index.update(stream_corpus(tmp_path / "docs"))
    assert (report.added, report.updated, report.removed, report.unchanged) == (0, 1, 1, 4) and parsed == ["2.md"]
    assert index.update(stream_corpus(tmp_path / "docs")).unchanged == 5 and parsed == ["2.md"]


def test_a_source_of_documents_is_updated_from_an_iterator(tmp_path: Path, small_portions: list[int]) -> None:
    index = SearchIndex(tmp_path, Cheap())
    index.add({"kept": "of another source"})
    index.update((Document(f"d{n}", text_of(n, 6)) for n in range(20)), source="letters")
    report = index.update((Document(f"d{n}", text_of(n, 6)) for n in range(0, 30, 3)), source="letters")
    assert (report.added, report.removed, report.unchanged) == (3, 13, 7)
    assert index.stats().num_documents == 11 and index.document("kept").text == "of another source"


def test_a_ledger_keeps_the_highest_kind() -> None:
    with Ledger() as ledger:
        assert [ledger.note("a", READ), ledger.note("a", READ), ledger.note("b", UNREAD)] == [False, True, False]
        assert not ledger.note("b", READ) and not ledger.note("c", EMPTY) and ledger.note("a", EMPTY)
        ledger.lower(["b"], EMPTY)
        assert ledger.kinds(["a", "b", "c", "d"]) == [READ, EMPTY, EMPTY, None]
