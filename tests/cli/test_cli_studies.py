"""The studies as seen by a user: a table on stdout, a run file, a figure, one sentence per mistake."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_of_words import BagOfWords
from tiny import tiny_model_folder

import m2bert.cli
from m2bert.encoders.embedder import Embedder
from m2bert.ranking.parts import Mixture


@pytest.fixture()
def run(capsys: Any, monkeypatch: Any, tmp_path: Path) -> Any:
    """Run `m2bert evaluate ARGS` with a bag-of-words encoder that reads 30 words: (exit code, stdout, stderr)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("m2bert.cli.models.Running.encoder", lambda *arguments: BagOfWords(limit=30))

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m2bert", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            m2bert.cli.main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return call


@pytest.fixture()
def pairs(tmp_path: Path) -> Path:
    rows = [{"query": f"topic{n}", "positive": f"topic{n} " + "filler " * 9} for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "pairs.jsonl"


def test_needle_prints_a_row_per_system_and_length(run: Any, pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib to draw")
    files = ("--json", tmp_path / "needle.json", "--plot", tmp_path / "needle.png")
    code, out, err = run(
        "needle", "--needles", pairs, "--queries", 10, "--passages", "2,10", "--metrics", "RR@1", *files
    )
    assert code == 0 and "needle: bag-of-words: 100%" in err and "%:" not in out
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["bag-of-words"], ["BM25"])]
    assert [row[:4] for row in rows] == [
        ["bag-of-words", "2", "20", "0"], ["bag-of-words", "10", "100", "10"], ["BM25", "2", "-", "0"],
        ["BM25", "10", "-", "0"],
    ]  # fmt: skip
    saved = json.loads((tmp_path / "needle.json").read_text())
    by_rank = ["bag-of-words", "bag-of-words, whole", "bag-of-words, passages"]
    assert [system["name"] for system in saved["systems"]] == [*by_rank, "BM25"]
    curves = [[cell for cell in system["cells"] if cell["passages"] == 10] for system in saved["systems"]]
    first, last = ([curve[place]["metrics"]["RR@1"] for curve in curves] for place in (0, -1))
    # What is not read is found by its words alone.
    assert first == [1.0] * 4 and last[0] == last[3] == 1.0 and max(last[1:3]) < 0.5
    assert (rows[1][-5], rows[1][-1]) == ("1.000", "1.000")
    whole = next(line.split() for line in out.splitlines() if line.split()[:3] == ["bag-of-words,", "whole", "10"])
    assert (whole[-5], whole[-1]) == ("1.000", f"{last[1]:.3f}")
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--passages", "2,x"), "--passages must be whole numbers of at least 1"),
        (("--passages", "99"), "99 passages need 98 distractors, got 20"),
        (("--metrics", "MAP"), "a metric must be one of"),
        (("--json", "no/such.json"), "no such folder for --json"),
    ],
)
def test_mistakes_of_needle_are_told_before_a_model_is_loaded(
    run: Any, pairs: Path, monkeypatch: Any, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.setattr("m2bert.cli.models.Running.encoder", None)
    code, out, err = run("needle", "--needles", pairs, "--queries", 10, *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.fixture()
def three_tasks(tmp_path: Path) -> Path:
    """Train splits of three tasks; every answer has a word of its query, as what ranks last by ids has not."""
    for task in ("one", "two", "three"):
        folder = tmp_path / "data" / task / "train"
        folder.mkdir(parents=True)
        rows = [{"pid": f"d{n}", "passage": f"topic{n} filler"} for n in range(4)]
        (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, rows)))
        rows = [{"qid": f"q{n}", "query": f"topic{n}", "answer_pids": [f"d{n}"]} for n in range(4)]
        (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data"


class Blind(BagOfWords):
    """Every text has one and the same vector."""

    def vector(self, text: str) -> np.ndarray:
        return np.ones(4, dtype=np.float32) / 2


def test_mixture_prints_the_weights_and_what_they_are_worth(
    run: Any, three_tasks: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Four equal scores put the answers at places 4, 3, 2 and 1."""
    monkeypatch.setattr("m2bert.cli.models.Running.encoder", lambda *arguments: Blind())
    code, out, err = run("mixture", "--data", three_tasks, "--json", tmp_path / "m.json")
    tied = f"{sum(1 / math.log2(1 + place) for place in (1, 2, 3, 4)) / 4:.4f}"
    assert code == 0 and "one: mixtures: 100%" in err and "%" not in out
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert out.startswith("nDCG@10, mean of 3 tasks; bag-of-words\n")
    assert lines[1] == ["best", "weights", "whole 1, passages 0, words 0.25, terms 0: 1.0000"]
    assert lines[2][:2] == ["left", "out"] and lines[2][2].startswith("1.0000 ")
    assert " ".join(lines[4]) == f"alone whole {tied}, passages {tied}, words 1.0000"
    saved = json.loads((tmp_path / "m.json").read_text())
    assert saved["kind"] == "mixture" and saved["best"]["words"] == 0.25
    assert json.loads(run("mixture", "--data", three_tasks, "--json")[1])["alone"] == saved["alone"]
    code, out, err = run("mixture", "--data", three_tasks, "--tasks", "one,two")
    assert (code, out) == (2, "") and "needs at least 3 tasks" in err
    code, out, err = run("mixture", "--data", three_tasks, "--split", "test")
    assert (code, out) == (2, "") and "no task with a test split" in err


@pytest.mark.parametrize("place", ["", "model"])
def test_mixture_is_saved_where_the_model_finds_it(
    run: Any, three_tasks: Path, tmp_path: Path, monkeypatch: Any, place: str
) -> None:
    """In a model's folder, and in that of a finished run, which holds the model in `model`."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    tiny_model_folder(tmp_path / "made" / place)
    arguments = ("mixture", "--data", three_tasks, "--model", tmp_path / "made")
    best = json.loads(run(*arguments, "--json")[1])["best"]
    assert Embedder(tmp_path / "made").mixture == Mixture() and not list(tmp_path.rglob("ranking.json"))
    assert run(*arguments, "--save")[0] == 0
    assert [path.parent for path in tmp_path.rglob("ranking.json")] == [tmp_path / "made" / place]
    assert Embedder(tmp_path / "made").mixture == Mixture(**best) != Mixture()


def test_a_mixture_that_could_not_be_saved_is_not_looked_for(run: Any, three_tasks: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("m2bert.bench.tuning.tune_mixture", None)
    code, out, err = run("mixture", "--data", three_tasks, "--save")
    assert (code, out) == (2, "") and "mixture: a model must be a folder" in err


def test_encode_time_prints_a_row_per_length(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib to draw")
    files = ("--json", tmp_path / "time.json", "--plot", tmp_path / "time.png")
    code, out, err = run("encode-time", "--lengths", "40,20", "--repeats", 2, "--threads", 1, *files)
    assert code == 0 and "encode-time: 20 tokens, 1 of 2: 100%" in err
    saved = json.loads((tmp_path / "time.json").read_text())
    (system,) = saved["systems"]
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["20"], ["40"])]
    expected = [(str(row["tokens"]), f"{row['median']:.4f}", str(row["pieces"])) for row in system["rows"]]
    assert [tuple(row) for row in rows] == expected and expected[0][2] == "3"
    assert saved["settings"]["threads"] == 1 and "1 threads" in out
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run("encode-time", "--lengths", "40,0")
    assert (code, out) == (2, "") and "--lengths must be whole numbers" in err


def test_lengths_prints_characters_and_tokens(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib to draw")
    folder = tmp_path / "data/animals/test"
    folder.mkdir(parents=True)
    rows = [{"pid": f"d{n}", "passage": "river stone " * (n + 1)} for n in range(3)]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "queries.jsonl").write_text(json.dumps({"qid": "q", "query": "river", "answer_pids": ["d1"]}))
    model = tiny_model_folder(tmp_path / "tiny")
    files = ["--json", str(tmp_path / "l.json"), "--plot", str(tmp_path / "l.png")]
    arguments = ["m2bert", "tasks", "lengths", "--data", str(tmp_path / "data"), "--tokenizer", str(model), *files]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        m2bert.cli.main()
    assert not ended.value.code
    out = capsys.readouterr().out
    rows = [line.split()[2:] for line in out.splitlines() if line.split()[:2] == ["animals", "documents"]]
    assert rows == [["characters", "3", "24", "24", "36"], ["tokens", "3", "4", "4", "6"]]
    assert json.loads((tmp_path / "l.json").read_text())["kind"] == "lengths"
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")


def test_clusters_prints_both_measures(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    rows = [{"text": f"{kind} {n}", "source": kind} for kind in ("cats", "dogs") for n in range(8)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = run("clusters", tmp_path / "texts.jsonl", "--json", tmp_path / "c.json")
    (system,) = json.loads((tmp_path / "c.json").read_text())["systems"]
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["bag-of-words"])
    assert code == 0 and row[1:] == [f"{system['silhouette']:.3f}", f"{system['v_measure']:.3f}"]
    assert "clusters: bag-of-words: 100%" in err and len(system["points"]) == 16
