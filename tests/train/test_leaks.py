"""check-leaks finds planted text and nothing else; the oracle is Python's `in` on normalised strings."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import numpy as np
import pytest
from training_data import write_jsonl
from typer.testing import CliRunner

from m2bert.cli import build_app
from m2bert.data.leaks import WINDOW, Leak, TestWindows, find_leaks, normalise
from m2bert.errors import M2BertError


def prose(words: int, seed: str) -> str:
    """Random words, so that two texts share no 200 characters by chance."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8))) for _ in range(words))


def write_tests(folder: Path) -> list[str]:
    """Two tasks of three test documents and one short one."""
    texts = []
    for task in ("apples", "pears"):
        passages = [prose(400, f"{task}{i}") for i in range(3)]
        texts += passages
        rows = [{"dataset": task, "pid": f"{task}{i}", "passage": text} for i, text in enumerate([*passages, "short"])]
        write_jsonl(folder / task / "test" / "documents.jsonl.gz", rows)
        write_jsonl(folder / task / "train" / "documents.jsonl.gz", [{"pid": "t", "passage": prose(300, task)}])
    return texts


def write_training(path: Path, texts: list[str]) -> Path:
    return write_jsonl(path, [{"text": text} for text in texts])


def leaks_of(folder: Path, texts: list[str], **options: int) -> list[Leak]:
    path = write_training(folder / "train.jsonl", texts)
    return list(find_leaks([path], [folder / "tasks"], **options))


def test_planted_text_is_found_at_every_offset_and_length(tmp_path: Path) -> None:
    (first, *_) = write_tests(tmp_path / "tasks")
    normal = normalise(first)
    planted = []
    for start in range(0, 60, 7):
        for size in (150, 199, 224, 300):
            planted.append(f"{prose(30, f'a{start}')} {normal[start : start + size]} {prose(20, f'b{size}')}")
    found = {leak.number for leak in leaks_of(tmp_path, planted)}
    for number, text in enumerate(planted):
        windows = [normal[i : i + WINDOW] in normalise(text) for i in range(0, len(normal) - WINDOW, 1)]
        kept = [normal[i : i + WINDOW] in normalise(text) for i in range(0, len(normal) - WINDOW, 25)]
        assert (number in found) == any(kept)
        # Every run of 224 characters holds a window that is kept.
        assert any(kept) or sum(windows) < 25


def test_findings_say_where_and_how_much(tmp_path: Path) -> None:
    texts = write_tests(tmp_path / "tasks")
    clean = prose(500, "clean")
    # Case and punctuation do not hide a copy.
    copied = texts[4][50:450].upper().replace(" ", " -- ", 20)
    (leak,) = leaks_of(tmp_path, [clean, f"{clean} {copied}"])
    assert (leak.number, leak.test, leak.file.name) == (1, "pears/pears1", "train.jsonl")
    assert 350 < leak.shared <= 400 and leak.characters == len(normalise(f"{clean} {copied}"))
    assert leak.excerpt in normalise(texts[4])
    assert leaks_of(tmp_path, [f"{clean} {copied}"], least=1000) == []
    # Changed in every hundredth character, no window of 200 is left.
    changed = "".join("#" if i % 100 == 50 else c for i, c in enumerate(texts[0])).replace("#", "qq")
    assert leaks_of(tmp_path, [clean, changed]) == []


def test_equal_hashes_of_different_text_are_no_leak(tmp_path: Path) -> None:
    known = TestWindows(iter([("a/1", prose(100, "one"))]))
    other = np.frombuffer(normalise(prose(100, "two")).encode("utf-32-le"), dtype="<u4")
    known.hashes = np.sort(known.hasher.windows(other)[: len(known.hashes)])
    known.known[:] = True
    assert len(known.matches(other)[0]) == 0


def test_window_hashes_are_equal_where_text_is_and_only_there() -> None:
    text = normalise(prose(200, "x"))
    known = TestWindows(iter([("a/1", text)]))
    doubled = np.frombuffer((text + "z" + text).encode("utf-32-le"), dtype="<u4")
    hashes = known.hasher.windows(doubled)
    count = len(text) - WINDOW + 1
    assert np.array_equal(hashes[:count], hashes[len(text) + 1 :])
    assert len(np.unique(hashes)) == len(text) + 1


def test_command(tmp_path: Path) -> None:
    texts = write_tests(tmp_path / "tasks")
    path = write_training(tmp_path / "train.jsonl", [prose(50, "q"), texts[0]])
    arguments = ["check-leaks", str(path), "--tests", str(tmp_path / "tasks")]
    done = CliRunner().invoke(build_app(), arguments)
    assert done.exit_code == 1 and "apples/apples0" in done.stdout and "1 training document" in done.stdout
    done = CliRunner().invoke(build_app(), [*arguments, "--json"])
    assert done.exit_code == 1 and json.loads(done.stdout)["number"] == 1
    # A folder of tasks means its train splits.
    clean = CliRunner().invoke(
        build_app(), ["check-leaks", str(tmp_path / "tasks"), "--tests", str(tmp_path / "tasks")]
    )
    assert clean.exit_code == 0 and clean.stdout.startswith("0 training documents")


def test_bad_input(tmp_path: Path) -> None:
    write_tests(tmp_path / "tasks")
    path = write_training(tmp_path / "train.jsonl", ["x"])
    with pytest.raises(M2BertError, match="tests must be folders"):
        list(find_leaks([path], [tmp_path / "nowhere"]))
    with pytest.raises(M2BertError, match="for evaluation only"):
        list(find_leaks([tmp_path / "tasks/apples/test"], [tmp_path / "tasks"]))
    with pytest.raises(M2BertError, match="needs test documents of 200"):
        TestWindows(iter([("a/1", "short")]))
