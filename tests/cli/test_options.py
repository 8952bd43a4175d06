"""Options that commands share: which command has which, what `--json` takes, and that `--quiet` is quiet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny import tiny_embedder, tiny_model_folder

import m2bert
import m2bert.cli
from m2bert.cli.options import JsonCommand, RunJsonCommand
from m2bert.search.index import SearchIndex

RUNNING = "--device --batch-tokens --threads"
EVALUATION = f"--model {RUNNING} --json --quiet -q"
CACHED = "--overflow --cache --no-cache"
# Command -> options that its help must list, each typed once in m2bert/cli/options.py.
HELP = {
    "": "--version --quiet -q --install-completion --show-completion --help",
    "index": f"--store --overflow --truncate-dim --seconds-per-file --megabytes-per-file --model {RUNNING} --json "
    "--quiet -q",
    "search": f"-k --rank --model {RUNNING} --json --quiet -q",
    "embed": "--store --ray --workers --gpus --documents-per-fragment --model --overflow --batch-tokens --truncate-dim "
    "--json --quiet -q",
    "stats": "--json --quiet -q",
    "optimize": "--json --quiet -q",
    "check": "--mend --json --quiet -q",
    "serve": f"--host --port --writable --token --workers --model {RUNNING} --quiet -q",
    "explain": f"--store --source --rows --png --model {RUNNING} --json --quiet -q",
    "demo": f"--questions --all --store --rank --model {RUNNING} --json --quiet -q",
    "check-leaks": "--tests --least --json --quiet -q",
    "report": "--output --markdown --title --quiet -q",
    "tasks lengths": "--data --tasks --split --tokenizer --plot --json --quiet -q",
    "tasks build": "--output --tokenizer --quiet -q",
    "tasks from-pairs": "--output --datasets --most --most-characters",
    "train-tokenizer": "--data --output --vocab-size --quiet -q",
    **dict.fromkeys(("pretrain", "distill", "finetune"), "--output --settings --set --max-seconds --quiet -q"),
    "convert": "--tokenizer --file --quiet -q",
    "extend": "--to --output --method --quiet -q",
    "project": "--output --pairs --loco --dim --exponent --quiet -q",
    "validate": "--data --length --tokens --quiet -q",
    "evaluate loco": f"--data --tasks --split --metrics --bm25 --rank --hybrid --fusion --baseline --chunks "
    f"{CACHED} {EVALUATION}",
    "evaluate needle": f"--needles --distractors --passages --metrics --bm25 --rank --chunks --plot {CACHED} "
    f"{EVALUATION}",
    "evaluate encode-time": f"--lengths --repeats --plot {EVALUATION}",
    "evaluate clusters": f"--per-kind --seed --plot {CACHED} {EVALUATION}",
    "evaluate mixture": f"--data --tasks --split --save --cache --no-cache {EVALUATION}",
}


@pytest.fixture()
def store(tmp_path: Path) -> tuple[Path, Path]:
    """A store of two documents, and the folder of its model."""
    model = tiny_model_folder(tmp_path / "tiny")
    SearchIndex(tmp_path / "store", tiny_embedder()).add({"a": "river stone", "b": "paper engine"})
    return tmp_path / "store", model


@pytest.mark.parametrize("command", HELP)
def test_help_lists_the_options_of_every_command(run: Any, command: str) -> None:
    code, out, err = run(*command.split(), "--help")
    words = out.replace("│", " ").split()
    assert (code, err) == (0, "")
    assert [option for option in HELP[command].split() if option not in words] == []


def test_no_command_is_left_out_of_the_test_of_helps() -> None:
    found: set[str] = set()
    for name, command in typer.main.get_command(m2bert.cli.build_app()).commands.items():  # type: ignore[attr-defined]
        found |= {f"{name} {each}" for each in command.commands} if hasattr(command, "commands") else {name}
    assert found == set(HELP) - {""}


def test_every_model_option_says_the_same(run: Any) -> None:
    for command, options in HELP.items():
        if "--model" in options.split():
            text = " ".join(run(*command.split(), "--help")[1].replace("│", " ").split())
            assert "Name of a shipped model, or a model folder" in text and "Default: " in text, command
            assert "m2-bert-mini" in text, command


def test_version(run: Any) -> None:
    assert run("--version") == (0, f"m2bert {m2bert.__version__}\n", "")


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "m2bert", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"m2bert {m2bert.__version__}\n", "")


def test_the_shell_completes_commands_and_options(tmp_path: Path) -> None:
    program = "import sys; sys.argv[0] = 'm2bert'\nfrom m2bert.cli import main; main()"
    for words, expected in (("m2bert sea", ["search"]), ("m2bert index --batch", ["--batch-tokens"])):
        asked = {"_M2BERT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **asked}
        )
        assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize(
    ("kind", "given", "json_to", "words"),
    [
        (JsonCommand, ["a", "--json"], "-", ["a"]),
        (JsonCommand, ["--json", "a"], "-", ["a"]),
        (JsonCommand, ["--json=f", "a"], "f", ["a"]),
        (JsonCommand, ["a", "--", "--json"], None, ["a", "--json"]),
        (RunJsonCommand, ["a", "--json"], "-", ["a"]),
        (RunJsonCommand, ["a", "--json", "f"], "f", ["a"]),
        (RunJsonCommand, ["--json", "-x", "a"], "-", ["a"]),
        (RunJsonCommand, ["--json", "-", "a"], "-", ["a"]),
        (RunJsonCommand, ["--json", "--", "a"], "-", ["a"]),
        (RunJsonCommand, ["--json=f", "a"], "f", ["a"]),
    ],
)
def test_json_with_and_without_a_file(kind: Any, given: list[str], json_to: str | None, words: list[str]) -> None:
    app, seen = typer.Typer(), []

    @app.command(cls=kind)
    def command(
        words: list[str], json_to: str | None = typer.Option(None, "--json"), flag: bool = typer.Option(False, "-x")
    ) -> None:
        seen.append((json_to, words, flag))

    app(given, standalone_mode=False)
    assert seen == [(json_to, words, "-x" in given)]


def test_json_is_one_object_on_stdout_or_in_a_file_beside_the_text(run: Any, store: Any, tmp_path: Path) -> None:
    place, model = store
    search = ("search", place, "river stone", "--model", model)
    text, object_ = run(*search)[1], run(*search, "--json")[1]
    assert json.loads(object_)["results"][0]["id"] == "a" and "  1.  " in text
    assert run(*search, f"--json={tmp_path / 's.json'}")[1] == text
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(object_)
    explain = ("explain", "river", "a", "--store", place, "--batch-tokens", 512)
    assert run(*explain)[0] == 2, "the store names a model that is not there"
    (tmp_path / "t.txt").write_text("river stone")
    explain = ("explain", "river", tmp_path / "t.txt", "--model", model)
    found = json.loads(run(*explain, "--json")[1])
    assert found["kind"] == "explanation" and run(*explain, "--json", tmp_path / "e.json")[1] == run(*explain)[1]
    saved = json.loads((tmp_path / "e.json").read_text())
    assert saved["contributions"] == found["contributions"]
    code, out, err = run(*search, "--json=no/s.json")
    assert (code, out) == (2, "") and "no such folder for --json" in err


@pytest.mark.parametrize("place", ["before", "behind"])
def test_quiet_leaves_results_and_errors_alone(run: Any, store: Any, tmp_path: Path, place: str) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("river")
    (tmp_path / "texts" / "photo.png").write_bytes(b"\x89PNG\0")

    def quietly(*arguments: Any) -> Any:
        return run("-q", *arguments) if place == "before" else run(*arguments, "--quiet")

    index = ("index", tmp_path / "texts", "--model", store[1], "--store")
    _, loud_out, loud_err = run(*index, tmp_path / "loud")
    assert "texts: 100%" in loud_err and "skipped photo.png" in loud_err
    assert quietly(*index, tmp_path / "quiet") == (0, loud_out, "")
    code, out, err = quietly("search", tmp_path / "nowhere", "river")
    assert (code, out) == (2, "") and err.startswith("m2bert: ") and err.count("\n") == 1
    assert "texts: 100%" in run(*index, tmp_path / "loud again")[2], "silence ends with its command"


@pytest.mark.parametrize("option", ["--batch-tokens", "--threads"])
def test_numbers_below_one_are_refused(run: Any, store: Any, option: str) -> None:
    code, out, err = run("search", store[0], "river", option, 0)
    assert (code, out) == (2, "") and option in err
