"""`m2bert stats` and `m2bert optimize`, and conditions on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bag_of_words import BagOfWords

from m2bert.search.documents import Document
from m2bert.search.index import SearchIndex


@pytest.fixture
def store(tmp_path: Path) -> Path:
    index = SearchIndex(tmp_path / "store", BagOfWords(dim=16))
    index.add(Document(f"d{n}", f"river {n}", metadata={"year": 2000 + n}) for n in range(5))
    return tmp_path / "store"


def test_stats_and_optimize_say_what_a_store_has(run: Any, store: Path) -> None:
    code, out, _ = run("stats", store)
    assert code == 0
    assert "documents  5\n" in out and "metadata   year\n" in out and "words: FTS of 5 rows" in out
    code, out, _ = run("optimize", store, "--json")
    told = json.loads(out)
    assert code == 0 and told["documents"] == 5 and told["names"] == ["year"] and told["dim"] == 16
    assert told["bytes"] > 5 * 16 * 4 and told["indexes"][0]["behind"] == 0
    for command in ("stats", "optimize"):
        code, _, err = run(command, store.parent / "nothing")
        assert code == 2 and "there is no store" in err


def test_search_asks_for_metadata(run: Any, store: Path) -> None:
    code, out, _ = run("search", store, "river", "--rank", "words", "--where", "year BETWEEN 2001 AND 2002", "--json")
    assert code == 0 and sorted(each["id"] for each in json.loads(out)["results"]) == ["d1", "d2"]
    code, _, err = run("search", store, "river", "--rank", "words", "--where", "year >")
    assert code == 2 and "where must be comparisons" in err
