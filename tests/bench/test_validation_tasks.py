"""Tasks made of pair files: which queries and documents are taken, and that every answer comes along."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m2bert.bench.task_building import build_validation_tasks
from m2bert.bench.tasks import choose_tasks, load_task
from m2bert.cli import build_app
from m2bert.errors import M2BertError

ROWS = [
    ("birds", "where do herons nest", "Herons nest in tall trees by the water."),
    ("birds", "where do herons nest", "Some herons nest in reeds."),
    ("birds", "what do owls eat", "Owls eat mice."),
    ("birds", "food of owls", "Owls eat mice."),
    ("stones", "what is basalt", "Basalt is a dark rock."),
    ("stones", "", "A row without a query."),
]


def name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl.gz"
    with gzip.open(file, "wt") as lines:
        for dataset, query, positive in ROWS:
            lines.write(json.dumps({"query": query, "positive": positive, "dataset": dataset}) + "\n")
    return file


def test_every_data_set_becomes_a_train_split_with_all_answers(pairs: Path, tmp_path: Path) -> None:
    sizes = build_validation_tasks([pairs], tmp_path / "tasks")
    assert sizes == {"birds": (3, 3), "stones": (1, 1)}
    files = choose_tasks(["birds"], tmp_path / "tasks", "train")["birds"]
    task = load_task("birds", files, "train")
    assert {task.queries[query]: {task.corpus[doc] for doc in found} for query, found in task.qrels.items()} == {
        "where do herons nest": {"Herons nest in tall trees by the water.", "Some herons nest in reeds."},
        "what do owls eat": {"Owls eat mice."},
        "food of owls": {"Owls eat mice."},
    }
    assert set(task.corpus) == {name(positive) for dataset, _, positive in ROWS if dataset == "birds"}
    assert list(task.queries) == sorted(task.queries)
    before = {file: file.read_bytes() for file in (tmp_path / "tasks").rglob("*.gz")}
    build_validation_tasks([pairs], tmp_path / "tasks")
    assert len(before) == 4 and all(file.read_bytes() == old for file, old in before.items())


def test_bounds_hold_and_queries_come_by_their_hash(pairs: Path, tmp_path: Path) -> None:
    order = sorted({query for dataset, query, _ in ROWS if dataset == "birds"}, key=name)
    sizes = build_validation_tasks([pairs], tmp_path / "few", datasets=["birds"], most=1)
    task = load_task("birds", choose_tasks(["birds"], tmp_path / "few", "train")["birds"], "train")
    # One document at most: the query with two answers is passed over.
    assert sizes == {"birds": (1, 1)}
    assert list(task.queries.values()) == [query for query in order if query != "where do herons nest"][:1]
    sizes = build_validation_tasks([pairs], tmp_path / "short", datasets=["birds"], most_characters=20)
    assert sizes == {"birds": (2, 1)}


def test_unknown_data_sets_are_named(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(M2BertError, match="data sets must be of birds, stones, got fish"):
        build_validation_tasks([pairs], tmp_path / "tasks", datasets=["fish"])
    assert not (tmp_path / "tasks").exists()


def test_the_command_tells_sizes(pairs: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(build_app(), ["tasks", "from-pairs", str(pairs), "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "birds: 3 queries, 3 documents" in done.stdout and "stones: 1 queries, 1 documents" in done.stdout
