"""Updates of a store that are killed at random moments, or find no room, in forks of a process that has all imported.

python attacked_store.py FOLDER '{"kills": 10, "seed": 22, "file": [0, 3000], "disk": "FOLDER", "free": [0, 30000]}'

file: bytes that a file may have. free: bytes that are left on the disk, which must be a file system of its own.
Prints a JSON row for every try: what was seen, and what was wrong with it (nothing, that is).
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bag_of_words import BagOfWords
from tiny import story

import m2bert.search.bulk
from m2bert.errors import M2BertError
from m2bert.search.check import check_store
from m2bert.search.documents import Document
from m2bert.search.index import SearchIndex
from m2bert.search.stores.checksums import text_hash

OLD = {f"d{number}": story(60, number) for number in range(12)}
# Some are changed, some gone, some new; enough for several staged files.
NEW = {name: text for name, text in OLD.items() if name != "d11"} | {
    f"d{number}": story(60, 100 + number) for number in [*range(4), *range(12, 15)]
}
m2bert.search.bulk.CHARACTERS_BETWEEN_WRITES = 800


def update(store: Path, texts: dict[str, str]) -> int:
    """Make the store hold these texts and no others; returns how many were embedded."""
    documents = [Document(name, text, "notes") for name, text in texts.items()]
    return SearchIndex(store, BagOfWords(dim=16)).update(documents, source="notes").embedded


def state(store: Path) -> dict[str, Any]:
    """Which texts a store holds, by name and hash, after all of it has been checked; None where there is no store."""
    try:
        index = SearchIndex(store, BagOfWords(dim=16))
        held = {name: each.text_hash for (_, name), each in index.stats(documents=True).documents.items()}
        check = check_store(store)
        found = {result.id for result in index.search("river stone light", 100)} if held else set()
    except M2BertError as error:
        return {"held": None, "wrong": "" if "there is no store" in str(error) else str(error)}
    wrong = "" if check.is_sound else json.dumps(check.to_dict())
    return {"held": held, "wrong": wrong or ("" if found == set(held) else f"a search finds {len(found)}")}


def forked(work: Callable[[], Any], *, killed_after: float | None = None) -> Any:
    """What `work` returns in a forked process, or how it failed; None where it was killed."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            told = {"made": work()}
        except M2BertError as error:
            told = {"refused": str(error)}
        except BaseException:
            told = {"failed": traceback.format_exc()}
        os.write(writing, json.dumps(told).encode())
        os._exit(0)
    os.close(writing)
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(process, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(process, 0)
    return json.loads(said) if said else None


def judged(store: Path, before: dict[str, str], outcome: Any) -> dict[str, Any]:
    """A row: the state after an attempt to bring `before` to NEW, and after another without hindrance."""
    wanted = {name: text_hash(text) for name, text in NEW.items()}
    old = {name: text_hash(text) for name, text in before.items()}

    def look() -> dict[str, Any]:
        seen = state(store)
        held, wrong = seen["held"], [seen["wrong"]]
        kind = "old" if (held or {}) == old else "new" if held == wanted else "mixed"
        update(store, NEW)
        seen = state(store)
        wrong += [seen["wrong"], "" if seen["held"] == wanted else "a second run does not end"]
        left = [path.name for path in (store / "staging").iterdir() if path.name != "lock"]
        return {"kind": kind, "wrong": [each for each in wrong if each], "left": left}

    row = forked(look)
    return {"outcome": outcome, **(row or {}).get("made", {"kind": "unreadable", "wrong": [str(row)], "left": []})}


def base_of(folder: Path) -> Path:
    """A store that holds OLD."""
    base = folder / "base"
    shutil.rmtree(base, ignore_errors=True)
    assert forked(lambda: update(base, OLD)) == {"made": len(OLD)}
    return base


def kills(folder: Path, count: int, seed: int) -> None:
    """Kill an update at random moments: of a store that holds OLD, and of one that is not there yet."""
    base, store = base_of(folder), folder / "store"

    def begin(old: bool) -> None:
        shutil.rmtree(store, ignore_errors=True)
        if old:
            shutil.copytree(base, store)

    lasts = []
    for _ in range(2):
        begin(old=True)
        start = time.monotonic()
        forked(lambda: update(store, NEW))
        lasts.append(time.monotonic() - start)
    generator = random.Random(seed)
    for _ in range(count):
        old = generator.random() < 0.75
        begin(old)
        outcome = forked(lambda: update(store, NEW), killed_after=generator.uniform(0, 1.1 * min(lasts)))
        told("kill", judged(store, OLD if old else {}, outcome))


def no_room(folder: Path, kind: str, sizes: list[int]) -> None:
    """Update a store with so many bytes to a file, or left on the disk that `folder` is."""
    base, store, filler = base_of(folder), folder / "store", folder / "filler"
    for size in sizes:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(base, store)
        if kind == "free":
            there = os.statvfs(folder)
            filler.write_bytes(bytes(max(there.f_bavail * there.f_frsize - size, 0)))

        def attempt(limit: int | None = size if kind == "file" else None) -> int:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return update(store, NEW)

        outcome = forked(attempt)
        filler.unlink(missing_ok=True)
        told(kind, {"size": size, **judged(store, OLD, outcome)})


def told(attack: str, row: dict[str, Any]) -> None:
    print(json.dumps({"attack": attack, **row}), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="lancedb.*fork")
    asked = json.loads(sys.argv[2])
    kills(Path(sys.argv[1]), asked["kills"], asked["seed"])
    no_room(Path(sys.argv[1]), "file", asked["file"])
    if asked.get("disk"):
        no_room(Path(asked["disk"]), "free", asked["free"])
