"""Reading folders and JSON lines: text character for character, and a reason for everything left out."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from m2bert.errors import M2BertError
from m2bert.search.documents import read_corpus


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_folder_is_read_recursively_in_a_stable_order(tmp_path: Path) -> None:
    files = {"b.txt": b"two", "a/deep/c.md": "drei ü".encode(), "a.py": b"x = 1\r\n", ".hidden": b"no"}
    files |= {".git/config": b"no", "a/.cache/x": b"no", "z": b"\xef\xbb\xbfmarked"}
    corpus = read_corpus(write(tmp_path, files))
    assert [(document.id, document.text) for document in corpus.documents] == [
        ("a.py", "x = 1\r\n"),
        ("b.txt", "two"),
        ("z", "marked"),
        ("a/deep/c.md", "drei ü"),
    ]
    assert corpus.source == str(tmp_path.resolve()) and corpus.skipped == []
    assert {document.source for document in corpus.documents} == {corpus.source}


def test_everything_unreadable_is_reported(tmp_path: Path) -> None:
    files = {
        "good.txt": b"text",
        "image.png": b"\x89PNG\0\0",
        "odd.txt": b"caf\xe9 \x81",
        "empty": b"",
        "blank": b" \n",
    }
    write(tmp_path, files | {"unseen": b"\x01\x7f\xe2\x80\x8b\n"})
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "good.txt")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "parent").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"na\xffme")).write_bytes(b"text")
    corpus = read_corpus(tmp_path)
    assert [document.id for document in corpus.documents] == ["good.txt", "link"]
    assert {item.id: item.reason for item in corpus.skipped} == {
        "image.png": "binary: byte 0x00 at position 4",
        "odd.txt": "neither UTF-8 nor Windows-1252 text: byte 0x81 at position 5",
        "empty": "holds no text",
        "blank": "holds no text",
        "unseen": "holds no text",
        "loop": "cannot be read: Too many levels of symbolic links",
        "parent": "a link to a folder, which is not followed; index that folder by itself",
        "gone": "cannot be read: No such file or directory",
        "pipe": "not a regular file",
        "na\\udcffme": "its name is not UTF-8",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root: root may read everything")
def test_forbidden_files_and_folders_are_reported(tmp_path: Path) -> None:
    write(tmp_path, {"open.txt": b"text", "secret.txt": b"text", "vault/x.txt": b"text"})
    (tmp_path / "secret.txt").chmod(0)
    (tmp_path / "vault").chmod(0)
    try:
        corpus = read_corpus(tmp_path)
    finally:
        (tmp_path / "vault").chmod(0o755)
    assert [document.id for document in corpus.documents] == ["open.txt"]
    assert {item.id: item.reason for item in corpus.skipped} == {
        "secret.txt": "cannot be read: Permission denied",
        "vault/": "cannot be read: Permission denied",
    }


def test_excluded_paths_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"text", "store/data.bin": b"\0", "b.txt": b"text"})
    corpus = read_corpus(tmp_path, exclude=[tmp_path / "store", tmp_path / "b.txt"])
    assert [document.id for document in corpus.documents] == ["a.txt"] and corpus.skipped == []


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_json_lines_in_both_column_sets(tmp_path: Path, name: str) -> None:
    rows: list[Any] = [
        {"id": "first", "text": "one\nline"},
        {"text": "two"},
        {"pid": "loco-3", "passage": "three", "dataset": "x"},
        {"id": 4, "text": "vier ü"},
    ]
    data = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    corpus = read_corpus(tmp_path / name)
    assert {document.id: document.text for document in corpus.documents} == {
        "first": "one\nline",
        "3": "two",
        "loco-3": "three",
        "4": "vier ü",
    }
    assert corpus.source == str((tmp_path / name).resolve())


def test_broken_lines_are_reported_with_their_number(tmp_path: Path) -> None:
    lines = [
        b'{"id": "a", "text": "good"}',
        b'{"id": "b", "text": ',
        b'["text"]',
        b'{"id": "c"}',
        b'{"id": "d", "text": 5}',
        b'{"id": "a", "text": "again"}',
        b'{"id": "e", "text": "  "}',
        b'{"id": "f", "text": "caf\xe9"}',
        b'{"id": [1], "text": "x"}',
        b'{"id": "", "text": "x"}',
        b"[" * 100_000,
        b'{"id": "g", "text": "half \\ud83d"}',
        b'{"id": "\\ud83d", "text": "x"}',
        b'{"id": "  ", "text": "x"}',
    ]
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(lines))
    corpus = read_corpus(tmp_path / "d.jsonl")
    assert [(document.id, document.text) for document in corpus.documents] == [("a", "good")]
    assert [item.id for item in corpus.skipped] == [
        *("line 2", "line 3", "c", "d"),
        *("a", "e", "line 8", "line 9", "line 10", "line 11"),
        *("g", "line 13", "line 14"),
    ]
    assert [item.keeps for item in corpus.skipped] == [
        *("source", "source", "document", "document"),
        *("document", "nothing", "source", "source", "source", "source"),
        *("document", "source", "source"),
    ]
    reasons = [item.reason for item in corpus.skipped]
    assert "not a JSON object" in reasons[0] and "got a list" in reasons[1]
    assert all("'text' or 'passage'" in reason for reason in reasons[2:4])
    assert reasons[2].startswith("line 4 ") and reasons[3].startswith("line 5 ") and reasons[10].startswith("line 12 ")
    assert "came before" in reasons[4] and "holds no text" in reasons[5] and "0xe9" in reasons[6]
    assert all("id must be" in reason for reason in (*reasons[7:9], *reasons[11:]))
    assert "surrogate at character 5" in reasons[10]


def test_gzip_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(json.dumps({"text": f"text {n}"}) for n in range(5000)).encode())
    for data in (whole[: len(whole) // 2], b"not gzip at all", whole[:100] + b"\xff" * 50 + whole[150:]):
        (tmp_path / "d.jsonl.gz").write_bytes(data)
        with pytest.raises(M2BertError, match=r"breaks off .* restore the file"):
            read_corpus(tmp_path / "d.jsonl.gz")


def test_other_paths_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"text"})
    with pytest.raises(M2BertError, match=r"must be a folder or a \.jsonl or \.jsonl\.gz file"):
        read_corpus(tmp_path / "a.txt")
    with pytest.raises(M2BertError, match="there is no folder or file"):
        read_corpus(tmp_path / "missing")


def test_loco_documents_are_read(shared_dir: Path) -> None:
    corpus = read_corpus(shared_dir / "data" / "loco" / "qmsum" / "test" / "documents.jsonl.gz")
    assert len(corpus.documents) > 10 and corpus.skipped == []
    assert all("qmsum" in document.id for document in corpus.documents)


def test_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path, {"open.txt": b"text", "vault/x.txt": b"text"})
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if Path(path).name == "vault":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    corpus = read_corpus(tmp_path)
    assert [document.id for document in corpus.documents] == ["open.txt"]
    assert [(item.id, item.reason) for item in corpus.skipped] == [("vault/", "cannot be read: Permission denied")]
