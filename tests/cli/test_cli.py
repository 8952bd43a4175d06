"""The frame of the command line: what it lists, how it fails, what it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import m2bert.cli

PROGRAM = "from m2bert.cli import main; main()"
HEAVY = (
    "torch", "transformers", "tokenizers", "lancedb", "pyarrow", "pandas", "numpy", "bm25s", "matplotlib", "sklearn",
    "datasets", "m2ops",
)  # fmt: skip
COMMANDS = (
    "index", "search", "explain", "demo", "check-leaks", "report", "tasks", "tasks lengths", "tasks build",
    "tasks from-pairs", "evaluate", "evaluate loco", "evaluate needle", "evaluate encode-time", "evaluate clusters",
    "evaluate mixture", "train-tokenizer", "pretrain", "distill", "finetune", "extend", "project", "validate",
)  # fmt: skip


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *args], cwd=cwd, capture_output=True, text=True)


def test_help_lists_every_command(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    commands = "index search demo evaluate pretrain finetune train-tokenizer extend project validate check-leaks"
    for command in commands.split():
        assert command in result.stdout


def test_no_help_imports_anything_heavy(tmp_path: Path) -> None:
    program = f"""
import sys
from m2bert.cli import build_app
app = build_app()
for command in ["", *{COMMANDS}]:
    try:
        app([*command.split(), "--help"])
    except SystemExit as ended:
        assert ended.code == 0, command
    loaded = [name for name in {HEAVY} if name in sys.modules]
    assert not loaded, f"m2bert {{command}} --help imports {{loaded}}"
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(command.split()[-1] in result.stdout for command in COMMANDS)


def test_help_by_itself_imports_nothing_heavy(tmp_path: Path) -> None:
    """Each in a process of its own, as a user starts it."""
    for arguments in (["--help"], ["search", "--help"]):
        program = f"""
import sys
from m2bert.cli import main
sys.argv[1:] = {arguments}
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules])
"""
        result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0 and result.stdout.splitlines()[-1] == "[]"


def test_user_errors_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for args in (("search", "nowhere", "a question"), ("evaluate", "loco", "--data", "nowhere", "--tasks", "qmsum")):
        result = run(*args, cwd=tmp_path)
        assert result.returncode == 2
        # On a slow machine the command says after two seconds what it is at, as it should.
        (error,) = [line for line in result.stderr.splitlines() if line != "opening nowhere ..."]
        assert error.startswith("m2bert: ") and "nowhere" in error and result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_unknown_command_is_refused(tmp_path: Path) -> None:
    result = run("frobnicate", cwd=tmp_path)
    assert result.returncode == 2 and "frobnicate" in result.stderr


def test_interruption_is_said_and_has_its_exit_code(monkeypatch: Any, capsys: Any) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    app = typer.Typer()
    app.command()(interrupted)
    monkeypatch.setattr(m2bert.cli, "build_app", lambda: app)
    monkeypatch.setattr(sys, "argv", ["m2bert"])
    with pytest.raises(SystemExit) as ended:
        m2bert.cli.main()
    assert ended.value.code == 130 and capsys.readouterr().err == "m2bert: interrupted\n"


@pytest.mark.parametrize(
    ("streams", "code", "words"),
    [(">/dev/full", 2, "m2bert: the system refuses .* (No space left on device); "), (">&- 2>&-", 0, "")],
)
def test_a_stream_that_takes_nothing_is_no_traceback(tmp_path: Path, streams: str, code: int, words: str) -> None:
    """Closed ones lead nowhere: they were taken by the next file that was opened, and a search did not end."""
    command = f"exec {sys.executable} -m m2bert --version {streams}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == bool(words) and all(part in done.stderr for part in words.split(".*"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "the system refuses /a/b (Permission denied); "),
        (OSError(36, "File name too long", "/a/b"), "the system refuses /a/b (File name too long); "),
        (Exception("No space left on device (os error 28)"), "(No space left on device (os error 28)); "),
        (RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos"), "(not all could be written); "),
        (
            ValueError("M2OPS_ISA: the instruction set must be one this machine has"),
            "M2OPS_ISA: the instruction set must ",
        ),
        (RuntimeError("a fault of ours"), None),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: Exception, words: str | None, monkeypatch: Any, capsys: Any
) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr(m2bert.cli, "build_app", failing)
    with pytest.raises(SystemExit if words else RuntimeError) as ended:
        m2bert.cli.main()
    said = capsys.readouterr().err
    if words is not None:
        assert ended.value.code == 2 and said.startswith("m2bert: ") and words in said and said.count("\n") == 1
