"""Nothing grows that must not: descriptors, memory and the files of a store, over many additions and deletions."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bag_of_words import BagOfWords
from tiny import story

import m2bert.search.stores.lance as lance
from m2bert.search.index import SearchIndex

CYCLES = 40
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
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
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
    """In 40 cycles 40 descriptors were left open: too many for a process that may have 48."""
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
def test_a_store_that_changes_all_the_time_stays_small(tmp_path: Path, monkeypatch: Any) -> None:
    """Old versions go while it changes, by deletions too; without, twice the changes made twice the size."""
    monkeypatch.setattr(lance, "KEPT_OF_MANY", timedelta(0))
    monkeypatch.setattr(lance, "MANY_VERSIONS", 10)
    monkeypatch.setattr(lance, "VERSIONS_BETWEEN_TIDYING", 10)
    documents = {f"d{number}": story(200, number) for number in range(20)}
    index, sizes = SearchIndex(tmp_path / "s", BagOfWords(dim=64)), []
    for cycle in range(30):
        index.add({**documents, "x": story(30, cycle)})
        index.delete(["x"])
        sizes.append(size_of(tmp_path / "s"))
    assert max(sizes[20:]) <= 1.3 * max(sizes[:10]), sizes
    assert {key[1] for key in index.stats(documents=True).documents} == set(documents)
