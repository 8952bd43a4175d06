"""A folder keeps its mirror: files that have not changed are not read again, and whatever changes them is seen."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from bag_of_words import BagOfWords

import m2bert.search.documents
import m2bert.search.formats
from m2bert.search.documents import Document, read_corpus
from m2bert.search.index import SearchIndex
from m2bert.search.report import IndexReport

FILES = {"a.txt": "river stone", "b.md": "# Head\n\nlight paper", "sub/c.html": "<p>engine"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.setattr(m2bert.search.documents, "SETTLED_NS", 0)
    for name, text in FILES.items():
        write(tmp_path / "docs" / name, text)
    return tmp_path / "docs"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def mirror(folder: Path, index: SearchIndex) -> tuple[list[str], IndexReport]:
    """Bring the index up to date; the files that were read for it, and the report."""
    corpus = read_corpus(folder, stamps=index.stamps(folder))
    return [document.id for document in corpus.documents], index.update(corpus)


def counts(report: IndexReport) -> tuple[int, int, int, int]:
    return report.added, report.updated, report.unchanged, report.removed


def test_only_what_changed_is_read_again(folder: Path, tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    assert index.stamps(folder) == {}
    read, report = mirror(folder, index)
    assert read == ["a.txt", "b.md", "sub/c.html"] and counts(report) == (3, 0, 0, 0)
    tokens = report.num_tokens
    read, report = mirror(folder, SearchIndex(tmp_path / "store", BagOfWords()))
    assert read == [] and counts(report) == (0, 0, 3, 0) and report.num_tokens == tokens > 3
    write(folder / "a.txt", "river steel")  # as long as before
    write(folder / "d.txt", "window")
    (folder / "b.md").unlink()
    read, report = mirror(folder, index)
    assert read == ["a.txt", "d.txt"] and counts(report) == (1, 1, 1, 1)
    assert index.document("a.txt").text == "river steel" and index.search("engine")[0].id == "sub/c.html"
    assert mirror(folder, index)[0] == []


def test_a_file_put_back_with_its_old_time_and_size_is_read(folder: Path, tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    mirror(folder, index)
    before = (folder / "a.txt").stat()
    write(folder / "a.txt", "River Stone")
    os.utime(folder / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / "a.txt").stat().st_mtime_ns == before.st_mtime_ns
    assert mirror(folder, index)[0] == ["a.txt"] and index.document("a.txt").text == "River Stone"


def test_a_file_written_just_now_is_read_again(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    monkeypatch.setattr(m2bert.search.documents, "SETTLED_NS", 10**12)
    for _ in range(2):
        assert len(mirror(folder, index)[0]) == 3


def test_files_are_read_again_for_a_document_the_store_lost_or_has_otherwise(folder: Path, tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    mirror(folder, index)
    source = str(folder.resolve())
    index.delete(["a.txt"], source=source)
    index.add([Document("b.md", "other words", source)])
    read, report = mirror(folder, index)
    assert read == ["a.txt", "b.md"] and counts(report) == (1, 1, 1, 0)
    assert index.document("b.md").text == FILES["b.md"]


def test_a_document_that_goes_while_the_folder_is_read_is_told(folder: Path, tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    mirror(folder, index)
    corpus = read_corpus(folder, stamps=index.stamps(folder))
    assert corpus.documents == [] and corpus.unchanged == ["a.txt", "b.md", "sub/c.html"]
    index.delete(["a.txt"], source=corpus.source)
    report = index.update(corpus)
    assert counts(report) == (0, 0, 2, 0)
    assert [(item.id, "index the folder again" in item.reason) for item in report.skipped] == [("a.txt", True)]
    assert mirror(folder, index)[0] == ["a.txt"]


def test_other_treatment_of_long_texts_and_new_readers_read_again(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    write(folder / "long.txt", " ".join(f"word{number}" for number in range(30)))
    windowed, truncating = BagOfWords(max_tokens=8), BagOfWords(max_tokens=8, limit=8)
    truncating.overflow = "truncate"
    mirror(folder, SearchIndex(tmp_path / "store", windowed))
    assert mirror(folder, SearchIndex(tmp_path / "store", truncating))[0] == ["long.txt"]
    monkeypatch.setattr(m2bert.search.documents, "READERS_VERSION", 1000)
    assert len(mirror(folder, SearchIndex(tmp_path / "store", truncating))[0]) == 4


def test_a_damaged_or_missing_memory_costs_reading_alone(folder: Path, tmp_path: Path, caplog: Any) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    mirror(folder, index)
    (memory,) = (tmp_path / "store" / "mirror").iterdir()
    for damage in (b"{" * 5000, memory.read_bytes()[:100] + b"x" * 8000):
        memory.write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            read, report = mirror(folder, index)
        assert len(read) == 3 and counts(report) == (0, 0, 3, 0)
        assert "read again" in caplog.text
        caplog.clear()
    memory.unlink()
    assert len(mirror(folder, index)[0]) == 3 and mirror(folder, index)[0] == []


def test_a_file_that_cannot_be_read_any_more_keeps_its_document(folder: Path, tmp_path: Path) -> None:
    index = SearchIndex(tmp_path / "store", BagOfWords())
    mirror(folder, index)
    (folder / "a.txt").write_bytes(b"\0")
    report = mirror(folder, index)[1]
    assert counts(report) == (0, 0, 2, 0) and [item.id for item in report.skipped] == ["a.txt"]
    assert index.document("a.txt").text == "river stone"
    (folder / "a.txt").write_bytes(b"")
    assert counts(mirror(folder, index)[1]) == (0, 0, 2, 1)
