"""JSON lines: rows with their places, and an error that names the line for everything else."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from m2bert.errors import M2BertError
from m2bert.jsonl import is_jsonl, read_jsonl


def test_rows_come_with_their_lines(tmp_path: Path) -> None:
    text = '{"a": 1}\n\n{"b": "x\u2028y"}\n'
    plain, packed = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.gz"
    plain.write_text(text, encoding="utf-8")
    packed.write_bytes(gzip.compress(text.encode("utf-8")))
    for path in (plain, packed):
        assert is_jsonl(path)
        assert list(read_jsonl(path, who="x")) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"b": "x\u2028y"})]
    assert not is_jsonl(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a"', "a.jsonl:2: row must be one JSON object"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: row must be a JSON object, got list"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: row must be one JSON object"),
        ("a.jsonl", b'{"a": "\xff"}\n', "a.jsonl:1: text must be UTF-8"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', "a.jsonl:1: text must be Unicode"),
        ("a.jsonl.gz", b"not gzip", "is not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-12], "is not a complete gzip file"),
    ],
)
def test_what_is_no_row_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(M2BertError, match=message) as raised:
        list(read_jsonl(path, who="reader"))
    assert str(raised.value).startswith("reader: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(M2BertError, match=r"cannot read .*nothing\.jsonl"):
        list(read_jsonl(tmp_path / "nothing.jsonl", who="reader"))
