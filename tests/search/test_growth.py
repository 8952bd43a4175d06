"""Nothing grows that must not: descriptors, memory and the files of a store, over many additions and deletions.

M2BERT_UPDATES=1000 M2BERT_CYCLES=1000 python -m pytest -s tests/search/test_growth.py     a campaign
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bag_of_words import BagOfWords
from tiny import story

import m2bert.search.stores.lance as lance
from m2bert.search.index import SearchIndex

UPDATES, CYCLES = (int(os.environ.get(f"M2BERT_{name}", few)) for name, few in (("UPDATES", "12"), ("CYCLES", "150")))
PROGRAM = f"""
import json, os, resource, sys
import pytest
from bag_of_words import BagOfWords
from tiny import story
from m2bert.search.index import SearchIndex

def state():
    return len(os.listdir("/proc/self/fd")), int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20

index = SearchIndex(sys.argv[1], BagOfWords(dim=64))
index.add({{f"d{{number}}": story(50, number) for number in range(20)}})
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
states = []
for cycle in range({CYCLES}):
    index.add({{"x": story(40, cycle)}})
    index.search("river stone", 3)
    index.delete(["x"])
    if cycle % 10 == 9:
        states.append(state())
print(json.dumps(states))
"""


def test_additions_and_deletions_leak_neither_descriptors_nor_memory(tmp_path: Path) -> None:
    """Each cycle left a descriptor open; the process may have 64."""
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "s")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    descriptors, megabytes = zip(*json.loads(done.stdout), strict=True)
    assert max(descriptors) <= min(descriptors) + 10, descriptors
    assert megabytes[-1] <= megabytes[0] + 40, megabytes


def size_of(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


@pytest.mark.filterwarnings("ignore:optimize:UserWarning")  # of readers beside, and there are none
def test_a_store_that_changes_all_the_time_stays_small(tmp_path: Path) -> None:
    """Three times a new one at most; it was 43 times after 50 updates, because versions were kept for a minute."""
    index, sizes = SearchIndex(tmp_path / "s", BagOfWords(dim=64)), []
    for cycle in range(UPDATES):
        texts = {f"d{number}": story(50, 50 * cycle + number) for number in range(50)}
        index.add(texts)
        sizes.append((size_of(tmp_path / "s"), len(os.listdir("/proc/self/fd"))))
    SearchIndex(tmp_path / "new", BagOfWords(dim=64)).add(texts)
    print(f"{UPDATES} updates: (bytes, descriptors) {sizes[:: max(UPDATES // 10, 1)]}, new {size_of(tmp_path / 'new')}")
    assert max(size for size, _ in sizes) <= 3 * size_of(tmp_path / "new"), sizes
    assert max(descriptors for _, descriptors in sizes) <= sizes[0][1] + 10, sizes
    assert {key[1] for key in index.stats(documents=True).documents} == set(texts)


def test_a_version_that_is_tidied_away_under_a_search_is_no_fault(tmp_path: Path, monkeypatch: Any) -> None:
    """A writer makes so many versions while a search looks at one that its files are gone."""
    writing, reading = (SearchIndex(tmp_path / "s", BagOfWords(dim=64)) for _ in range(2))
    texts = {f"d{number}": story(50, number) for number in range(20)}
    writing.add(texts)
    near, looked = lance.near, []

    def overtaken(table: Any, *arguments: Any) -> Any:
        looked.append(table.version)
        if len(looked) == 1:
            for cycle in range(6):
                writing.add({name: story(50, 100 * cycle) for name in texts})
        return near(table, *arguments)

    monkeypatch.setattr(lance, "near", overtaken)
    assert {result.id for result in reading.search("river stone", 50)} == set(texts)
    assert len(looked) == 2 and looked[0] < looked[1]


def test_a_search_beside_a_writer_counts_what_it_searches(tmp_path: Path, monkeypatch: Any) -> None:
    """The number of documents a moment before was the most that were found: six of 132 searches lacked some."""
    index = SearchIndex(tmp_path / "s", BagOfWords(dim=64))
    index.add({f"d{number}": story(50, number) for number in range(5)})
    monkeypatch.setattr(lance.LanceStore, "count", lambda store: 3)
    assert len(index.search("river stone", 10**9)) == 5


def test_words_are_indexed_once_for_a_change(tmp_path: Path, monkeypatch: Any) -> None:
    """They were once more when a run ended: 7 s for a document of 24 MB of which no two words are the same."""
    made: list[bool] = []
    plain = lance.index_words

    def counted(*asked: Any) -> bool:
        made.append(plain(*asked))
        return made[-1]

    monkeypatch.setattr(lance, "index_words", counted)
    index = SearchIndex(tmp_path / "s", BagOfWords(dim=64))
    for texts in ({"a": "river stone"}, {"b": "paper light"}, {"a": "garden"}):
        made.clear()
        index.add(texts)
        assert len(made) == 1 + (texts == {"a": "river stone"})  # before the first rows, too
    assert [each.id for each in index.search("garden", 1, rank="words")] == ["a"]
    index.optimize()
    assert len(made) == 2


@pytest.mark.parametrize("change", [lambda index: index.optimize(), lambda index: index.add({"d0": "paper"})])
@pytest.mark.filterwarnings("ignore:optimize:UserWarning")
def test_a_file_that_no_version_names_goes_after_a_week(tmp_path: Path, monkeypatch: Any, change: Any) -> None:
    """What a killed writer left. A younger one may be of a writer that is at work."""
    monkeypatch.setattr(lance, "VERSIONS_BETWEEN_TIDYING", 1)
    index = SearchIndex(tmp_path / "s", BagOfWords(dim=64))
    index.add({f"d{number}": story(50, number) for number in range(20)})
    data = tmp_path / "s" / "documents.lance" / "data"
    known = next(data.glob("*.lance"))
    for days in (0, 6, 8):
        orphan = data / f"{days:020d}deadbeef.lance"
        orphan.write_bytes(known.read_bytes())
        os.utime(orphan, (time.time() - days * 86_400,) * 2)
    change(index)
    assert [int(path.name[:20]) for path in sorted(data.glob("*deadbeef.lance"))] == [0, 6]
    assert len(index.search("river", 30)) == 20
