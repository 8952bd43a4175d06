"""Folders of real documents on the command line: places in what is printed, and what is said of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import story, tiny_model_folder

from m2bert.cli.results import placed_snippet


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model_folder(tmp_path_factory.mktemp("models") / "tiny"))


def test_places_are_shown_and_files_are_told_of(run: Any, model: str, tmp_path: Path) -> None:
    docs, store = tmp_path / "docs", tmp_path / "store"
    docs.mkdir()
    (docs / "a.md").write_text(f"# Install\n\n{story(400, 1)}\n\n## Linux\n\ncopper harbor winter. {story(400, 2)}\n")
    (docs / "old.txt").write_bytes("café garden".encode("cp1252"))
    (docs / "broken.ipynb").write_text("{")
    code, out, err = run("index", docs, "--store", store, "--model", model, f"--json={tmp_path / 'report.json'}")
    assert code == 0 and out.startswith("documents: 2 added, 0 updated, 0 unchanged, 0 removed, 1 skipped; ")
    assert "skipped broken.ipynb: broken, or not what its name says: JSONDecodeError" in err
    assert "read as Windows-1252, because they are not UTF-8: old.txt\n" in err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["guessed"] == ["old.txt"] and [item["id"] for item in report["skipped"]] == ["broken.ipynb"]

    code, out, _ = run("search", store, "copper harbor winter", "-k", "1")
    assert code == 0 and "] " in out and "Install > Linux: " in out
    found = json.loads(run("search", store, "copper harbor winter", "-k", "1", "--json")[1])["results"][0]
    assert found["id"] == "a.md" and "Install > Linux" in {hit["place"] for hit in found["passages"]}
    for arguments in (("a.md", "--store", store), (docs / "a.md", "--model", model)):
        code, out, _ = run("explain", "copper harbor winter", *arguments)
        assert code == 0 and "  Install: " in out
        assert "Install > Linux: " in out


def test_the_limits_are_those_given(run: Any, model: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "good.txt").write_text("river")
    with open(docs / "long.txt", "wb") as file:
        file.truncate(100 << 20)
    code, _, err = run("index", docs, "--store", tmp_path / "store", "--model", model, "--megabytes-per-file", "64")
    assert code == 0 and "skipped long.txt: has 100 MB, over the limit of 64 (--megabytes-per-file)\n" in err


def test_a_long_place_leaves_room_for_the_passage() -> None:
    assert placed_snippet("page 12", "As it was", 60) == "page 12: As it was"
    assert placed_snippet("", "As it was", 60) == "As it was"
    long = placed_snippet(" > ".join(["heading"] * 20), "As it was written", 90)
    assert long.endswith("heading >...: As it was written") and len(long) <= 90
