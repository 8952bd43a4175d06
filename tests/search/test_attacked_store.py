"""An update that is killed, or finds no room, leaves the old state or the new one, and the next one ends.

M2BERT_KILLS=120 M2BERT_KILLS_SEED=7 python -m pytest -s tests/search/test_attacked_store.py     a campaign
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
KILLS = int(os.environ.get("M2BERT_KILLS", "10"))
SEED = int(os.environ.get("M2BERT_KILLS_SEED", "22"))
# Bytes of the largest file, and bytes that are left: from nothing to nearly enough, so that other writes fail.
FILE, FREE = [0, 6_000], [0, 30_000, 60_000]


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A file system of 4 MB in memory; where this user may not mount one, why."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        reason = made.stderr.strip() if made.returncode else ""
    except OSError as error:
        reason = str(error)
    try:
        yield reason
    finally:
        if not reason:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of every attack."""
    folder = tmp_path_factory.mktemp("attacked")
    with small_disk(folder / "disk") as reason:
        disk = "" if reason else str(folder / "disk")
        asked = {"kills": KILLS, "seed": SEED, "file": FILE, "disk": disk, "free": FREE}
        done = subprocess.run(
            [sys.executable, str(SUPPORT / "attacked_store.py"), str(folder), json.dumps(asked)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return found if disk else [*found, {"attack": "free", "reason": reason}]


def of(rows: list[dict[str, Any]], attack: str) -> list[dict[str, Any]]:
    """The rows of one attack, of which each left the old state or the new one, and a whole one in the end."""
    found = [row for row in rows if row["attack"] == attack]
    for row in found:
        assert "reason" in row or (row["kind"] in ("old", "new") and not row["wrong"] and not row["left"]), row
    return found


def test_a_kill_loses_nothing(rows: list[dict[str, Any]]) -> None:
    found = of(rows, "kill")
    killed = [row for row in found if row["outcome"] is None]
    print(f"seed {SEED}: {len(killed)} of {len(found)} killed,", Counter(row["kind"] for row in found))
    assert len(found) == KILLS and len(killed) > KILLS / 3


@pytest.mark.parametrize("attack", ["file", "free"])
def test_no_room_is_told_in_a_sentence(rows: list[dict[str, Any]], attack: str) -> None:
    found = of(rows, attack)
    if "reason" in found[0]:
        pytest.skip(f"needs a small disk of its own: {found[0]['reason']}")
    refused = [row["outcome"].get("refused", "") for row in found]
    for row, words in zip(found, refused, strict=True):
        assert "made" in row["outcome"] or re.match(r"store: .*cannot (be read or written|write)", words), row
    assert found[0]["kind"] == "old" and len(set(refused)) > 1
