"""`m2bert evaluate loco` as seen by a user: table on stdout, progress on stderr, one sentence per mistake."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import typer
from bag_of_words import BagOfWords
from rich.console import Console
from tiny import tiny_model_folder
from typer.testing import CliRunner

import m2bert.cli.evaluate as command
from m2bert.bench.evaluate import evaluate_loco
from m2bert.bench.runs import as_plain
from m2bert.bench.tables import tables_of
from m2bert.cli.output import print_tables
from m2bert.errors import M2BertError

ANIMALS = {"a": "the cat sat on the mat and purred all day long", "b": "the dog barked"}
QUERIES = {"q1": ("cat purred", ["a"]), "q2": ("dog barked", ["b"])}


def write_task(folder, corpus=ANIMALS, queries=QUERIES):
    folder.mkdir(parents=True)
    rows = [{"pid": doc_id, "passage": text} for doc_id, text in corpus.items()]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"qid": query_id, "query": text, "answer_pids": pids} for query_id, (text, pids) in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """No test may touch the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "m2bert" / "embeddings"


@pytest.fixture
def data(tmp_path):
    write_task(tmp_path / "data/animals/test")
    write_task(tmp_path / "data/zoo/test", {**ANIMALS, "c": None}, {**QUERIES, "q3": ("fish", ["a"])})
    return tmp_path / "data"


@pytest.fixture
def run(monkeypatch):
    """Run `m2bert evaluate loco ARGS` with a bag-of-words encoder; returns the result."""
    loaded = []

    def encoder(running, model, overflow="window"):
        loaded.append((model, overflow))
        invoke.running.append(running)
        made = invoke.encoder or BagOfWords(limit=5 if overflow == "truncate" else None)
        made.name = "bag-of-words" if model == "m2-bert-mini" else model
        return made

    monkeypatch.setattr("m2bert.cli.models.Running.encoder", encoder)
    app = typer.Typer()
    command.register(app)

    def invoke(*args):
        result = CliRunner().invoke(app, ["evaluate", "loco", *map(str, args)])
        result.loaded = loaded
        return result

    invoke.encoder, invoke.running = None, []
    return invoke


def row(result, name):
    """The cells of the table's row of that name."""
    return next(line.split() for line in result.stdout.splitlines() if line.split()[:1] == [name])


def test_table_shows_sizes_truncation_and_both_systems(run, data):
    result = run("--data", data, "--tasks", "animals")
    assert result.exception is None
    assert row(result, "animals") == ["animals", "2", "2", "7", "11", "1", "0", *["1.000"] * 4]
    header = result.stdout[: result.stdout.index("animals")]
    for word in (
        "queries",
        "docu-",
        "tokens",
        "win-",
        "trun-",
        "nDCG@10",
        "R@10",
        "bag-of-words",
        "BM25",
        "test split",
    ):
        assert word in header
    assert "mean" not in [line.split()[0] for line in result.stdout.splitlines() if line.split()]
    assert "ties: score descending in float32, then document id descending" in result.stdout
    assert f"bag-of-words: {BagOfWords.fingerprint}" in result.stdout
    assert result.loaded == [("m2-bert-mini", "window")]


def test_progress_goes_to_stderr_and_only_there(run, data):
    result = run("--data", data, "--tasks", "animals")
    assert "animals: bag-of-words, documents: 100%" in result.stderr
    assert not re.search(r"\d%|documents:|reading", result.stdout)


def test_all_tasks_get_a_mean_row_and_dropped_documents_are_told(run, data):
    result = run("--data", data, "--metrics", "RR@1", "--overflow", "truncate")
    assert row(result, "animals")[-3:] == ["1", "1.000", "1.000"]
    assert row(result, "zoo")[-2:] == ["0.667", "0.667"]
    assert row(result, "mean") == ["mean", "0.833", "0.833"]
    assert "zoo: left out 1 documents without text and 0 queries that only they answer" in result.stdout


def test_json_report_agrees_with_the_table(run, data, tmp_path):
    result = run("--data", data, "--tasks", "zoo", "--json", tmp_path / "report.json")
    assert result.exception is None
    task = json.loads((tmp_path / "report.json").read_text())["tasks"][0]
    values = [system["metrics"][metric] for metric in ("nDCG@10", "R@10") for system in task["systems"]]
    assert [f"{value:.3f}" for value in values] == row(result, "zoo")[-4:]
    assert len(set(values)) > 1


def test_table_shows_every_number_on_a_narrow_terminal(data):
    report = evaluate_loco(data, ["animals"], BagOfWords())
    first = report.tasks[0].systems[0]
    lengths = replace(first.lengths, mean_tokens=123456.0, max_tokens=654321, num_windowed=9876)
    report.tasks[0].systems[0] = replace(first, lengths=lengths)
    console = Console(width=80, record=True, file=io.StringIO())
    print_tables(tables_of(as_plain(report.to_dict()))[:1], console=console)
    text = console.export_text()
    assert "…" not in text
    numbers = next(line.split() for line in text.splitlines() if "animal" in line)
    assert numbers[1:] == ["2", "2", "123,456", "654,321", "9,876", "0", *["1.000"] * 4]


def test_a_model_folder_is_loaded_and_named(data, tmp_path):
    app = typer.Typer()
    command.register(app)
    folder = tiny_model_folder(tmp_path / "tiny-m2")
    result = CliRunner().invoke(app, ["evaluate", "loco", "--data", str(data), "--model", str(folder)])
    assert result.exception is None
    weights = "whole 0.7, passages 0.3, words 0.7"
    assert re.search(rf"^tiny-m2: [0-9a-f]{{16}}, {weights}$", result.stdout, re.MULTILINE)


def test_several_systems_in_one_run(run, data, tmp_path):
    """BM25 is perfect on q1 and q2; the constant encoder of `zoo` is not, so the test has a difference to show."""
    args = ("--model", "one", "--model", "two", "--rank", "whole", "--overflow", "truncate")
    args += ("--hybrid", "--metrics", "RR@1,R@10,RR@10")
    result = run("--data", data, *args, "--baseline", "bm25", "--json", tmp_path / "report.json")
    assert result.exception is None
    assert [model for model, _ in result.loaded] == ["one", "two"]
    saved = json.loads((tmp_path / "report.json").read_text())
    names = ["one, whole", "two, whole", "BM25", "one, whole + BM25", "two, whole + BM25"]
    assert [system["name"] for system in saved["tasks"][0]["systems"]] == names
    assert row(result, "mean") == ["mean", *["0.833"] * 5]
    overall = saved["comparison"]["overall"]
    assert saved["comparison"]["baseline"] == "BM25" and overall["BM25"]["RR@1"]["p"] is None
    assert overall["one, whole + BM25"]["RR@1"]["p"] == 1.0
    summary = result.stdout[result.stdout.index("mean over tasks") :]
    assert "95 % interval" in summary and "minus" in summary and "<2k" in summary and "5 queries" in summary
    assert "one, whole: read 2 of 4 documents in part, lost 12 tokens" in result.stdout
    assert "fusion of scores, first 1000 of one, whole and BM25" in result.stdout


def test_hybrids_by_scores_and_by_ranks(run, data):
    args = ("--rank", "whole", "--hybrid", "--fusion", "ranks,scores", "--metrics", "RR@1")
    result = run("--data", data, *args)
    assert result.exception is None
    assert "fusion of scores, first 1000 of" in result.stdout
    assert "reciprocal rank fusion, k=60, first 1000 of" in result.stdout and "BM25, by rank" in result.stdout


def test_each_rank_is_a_system_of_its_own_and_words_are_fused_once(run, data, tmp_path):
    """The encoder sees no difference between the texts, so that what the words add decides; zoo's q3 has none."""

    class Blind(BagOfWords):
        def vector(self, text):
            return np.ones(4, dtype=np.float32) / 2

    run.encoder = Blind()
    file = tmp_path / "report.json"
    ranks = ("--rank", "all, whole,words,whole+passages,passages+words")
    result = run("--data", data, "--tasks", "animals", *ranks, "--hybrid", "--metrics", "RR@1", "--json", file)
    assert result.exception is None and len(result.loaded) == 1
    systems = {each["name"]: each for each in json.loads(file.read_text())["tasks"][0]["systems"]}
    # Equal scores: the document b comes first, which answers q2 alone.
    assert {name: each["metrics"]["RR@1"] for name, each in systems.items()} == {
        "bag-of-words": 1.0, "bag-of-words, whole": 0.5, "bag-of-words, words": 1.0,
        "bag-of-words, whole+passages": 0.5, "bag-of-words, passages+words": 1.0, "BM25": 1.0,
        "bag-of-words, whole + BM25": 1.0, "bag-of-words, whole+passages + BM25": 1.0,
    }  # fmt: skip
    weights = {name: each["fingerprint"].partition(", ")[2] for name, each in systems.items()}
    assert weights["bag-of-words"] == "whole 0.7, passages 0.3, words 0.7"
    assert weights["bag-of-words, words"] == "words 1"
    assert weights["bag-of-words, passages+words"] == "passages 0.3, words 0.7"


def test_embeddings_are_kept_where_they_are_wanted(run, data, cache, tmp_path):
    first = run("--data", data, "--no-cache")
    assert not cache.exists()
    second = run("--data", data, "--cache", tmp_path / "mine")
    assert not cache.exists() and len(list((tmp_path / "mine").iterdir())) == 1
    third = run("--data", data)
    assert len(list(cache.iterdir())) == 1
    assert first.stdout == second.stdout == third.stdout == run("--data", data).stdout


def test_chunks_give_a_system_each(run, data):
    class Splitting(BagOfWords):
        def split(self, text):
            words = text.split()
            return [" ".join(words[:3]), " ".join(words[3:])] if len(words) > 3 else [text]

    run.encoder = Splitting(limit=3)
    result = run("--data", data, "--tasks", "animals", "--chunks", "none,max", "--metrics", "RR@1")
    assert result.exception is None
    assert "bag-of-words, best chunk" in result.stdout
    assert "bag-of-words: read 1 of 2 documents in part, lost 8 tokens" in result.stdout
    ignored = run("--data", data, "--tasks", "animals", "--rank", "whole,words", "--metrics", "RR@1")
    assert ignored.exception is None and "whole" not in ignored.stdout, "only models that cut texts have chunks"
    result = run("--data", data, "--chunks", "min")
    assert "--chunks must be of none, mean, max, got min" in str(result.exception)


def test_a_model_may_be_given_a_name(data, tmp_path):
    app = typer.Typer()
    command.register(app)
    folder = tiny_model_folder(tmp_path / "tiny-m2")
    args = ["evaluate", "loco", "--data", str(data), "--model", f"mine={folder}", "--no-bm25", "--tasks", "animals"]
    result = CliRunner().invoke(app, args)
    assert result.exception is None
    assert re.search(r"^mine: [0-9a-f]{16}, whole 0.7, ", result.stdout, re.MULTILINE) and "minus" not in result.stdout


def test_without_bm25(run, data):
    result = run("--data", data, "--tasks", "animals", "--no-bm25")
    assert "BM25" not in result.stdout
    assert row(result, "animals")[-2:] == ["1.000", "1.000"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "boats"], "unknown task 'boats': not in .* which has animals, zoo"),
        (["--tasks", ","], "name at least one task"),
        (["--split", "dev"], "split must be one of train, test"),
        (["--split", "train"], "no task with a train split"),
        (["--metrics", "MAP"], "a metric must be one of"),
        (["--json", "nowhere/report.json"], "no such folder for --json: .*nowhere"),
        (["--json", "."], "--json must name a file, got the folder"),
        (["--hybrid", "--no-bm25"], "--hybrid fuses with BM25"),
        (["--hybrid", "--fusion", "votes"], "--fusion must be of scores, ranks, got votes"),
        (["--rank", "whole,best"], r"rank: must be all, .* joined by \+, got 'best'"),
        (["--rank", "whole+whole"], r"rank: must be all, .* joined by \+, got 'whole\+whole'"),
        (["--rank", ","], "--rank must name a way to rank, got none"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(run, data, args, message):
    result = run("--data", data, *args)
    assert isinstance(result.exception, M2BertError)
    with pytest.raises(M2BertError, match=message):
        raise result.exception
    assert result.loaded == []


def test_names_are_checked_before_anything_is_encoded(run, data):
    for args, message in [
        (["--baseline", "boats"], "baseline must be one of bag-of-words, BM25, got 'boats'"),
        (["--model", "one", "--model", "one"], "systems of different names, got one, one, BM25"),
        (["--rank", "words,words"], "systems of different names, got bag-of-words, words, bag-of-words, words, BM25"),
    ]:
        result = run("--data", data, *args)
        assert isinstance(result.exception, M2BertError) and message in str(result.exception)


def test_missing_folder_is_told(run, tmp_path):
    result = run("--data", tmp_path / "nowhere")
    assert isinstance(result.exception, M2BertError)
    assert "no such data folder" in str(result.exception)


def test_the_command_is_quick_to_load():
    """`m2bert --help` must not wait for torch, transformers or bm25s."""
    heavy = "{'torch', 'transformers', 'bm25s', 'numpy'}"
    code = f"import sys, m2bert.cli.evaluate; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
