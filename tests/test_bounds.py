"""What a file may ask for: lines as they are, and a refusal that names its bound for all that is too much."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

import pytest

import m2bert.bounds
from m2bert.bounds import BOUNDS, EXPANSION, LINE, TooMuchError, lines_of, read_whole
from m2bert.errors import M2BertError
from m2bert.jsonl import read_jsonl
from m2bert.search.documents import read_corpus


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 1 << 20])
def test_lines_are_those_of_python_without_blank_ones(monkeypatch: Any, at_once: int) -> None:
    monkeypatch.setattr(m2bert.bounds, "CHUNK", at_once)
    data = b"one\n\n  \ntwo\r\n three\x0b\xe2\x80\xa8 \n\n\n\nlast"
    for text in (data, data + b"\n", b"", b"\n\n", b" ", b"x"):
        wanted = [(number, line.removesuffix(b"\n")) for number, line in enumerate(io.BytesIO(text), 1) if line.strip()]
        assert list(lines_of(io.BytesIO(text), len(text))) == wanted


def test_long_lines_and_what_expands_are_refused_by_the_name_of_the_bound(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(LINE.variable, "1")
    rows = b'{"id": "a", "text": "river"}\n{"text": "' + b"x" * (1 << 20) + b'"}\n{"id": "c", "text": "stone"}\n'
    (tmp_path / "long.jsonl").write_bytes(rows)
    corpus = read_corpus(tmp_path / "long.jsonl")
    assert [item.id for item in corpus.documents] == ["a", "c"]
    assert "over the limit of 1 MB a line (raise it with M2BERT_MAX_LINE_MB)" in corpus.skipped[0].reason
    with pytest.raises(M2BertError, match=r"^who: .*long.jsonl:2: the line is over the limit of 1 MB a line"):
        list(read_jsonl(tmp_path / "long.jsonl", who="who"))
    monkeypatch.setenv(LINE.variable, "2")
    assert len(read_corpus(tmp_path / "long.jsonl").documents) == 3
    monkeypatch.setattr(m2bert.bounds, "FREELY_EXPANDED", 1 << 20)
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb") as file:
        file.write(b'{"text": "river"}\n' + b"\n" * (8 << 20))
    for read in (lambda path: read_corpus(path), lambda path: list(read_jsonl(path, who="who"))):
        with pytest.raises(M2BertError, match=rf"expands to more than .* bytes, over the limit .*{EXPANSION.variable}"):
            read(tmp_path / "bomb.jsonl.gz")
    monkeypatch.setenv(EXPANSION.variable, "2000")
    assert len(read_corpus(tmp_path / "bomb.jsonl.gz").documents) == 1


def test_numbers_of_thousands_of_digits_are_a_row_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": ' + "9" * 5000 + ', "text": "x"}\n{"id": "b", "text": "river"}\n')
    assert [item.id for item in read_corpus(tmp_path / "d.jsonl").documents] == ["b"]
    with pytest.raises(M2BertError, match=r"d.jsonl:1: row must be one JSON object .*digits"):
        list(read_jsonl(tmp_path / "d.jsonl", who="who"))


def test_what_never_ends_is_not_read_whole(tmp_path: Path, monkeypatch: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="is not a plain file"):
            read_whole(tmp_path / name)
    monkeypatch.setenv("M2BERT_MAX_FILE_MB", "1")
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1 + (1 << 20)))
    with pytest.raises(TooMuchError, match=r"has 2 MB, over the limit of 1 MB a file read whole"):
        read_whole(tmp_path / "large")


@pytest.mark.parametrize("value", ["0", "-1", "x", "1" * 30, "1.5", "²"])
def test_a_bound_must_be_a_number(monkeypatch: Any, value: str) -> None:
    for bound in BOUNDS:
        monkeypatch.setenv(bound.variable, value)
        with pytest.raises(M2BertError, match=f"^{bound.variable} must be a whole number"):
            _ = bound.value


def test_every_bound_stands_in_the_table_of_the_docs() -> None:
    table = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")
    for bound in BOUNDS:
        assert f"`{bound.variable}`" in table and f"{bound.default:,} {bound.unit}" in table
