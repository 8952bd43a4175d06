"""The command line: `m2bert COMMAND`. Each sibling module registers the commands of one part.

Test: tests/cli/test_cli.py.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from m2bert.cli.options import Quiet
from m2bert.errors import M2BertError

INTERRUPTED = 130
# New objects before the garbage collector looks for cycles. Python's 700 make it look hundreds of times at what imports
# leave behind: a tenth of the time of a search.
OBJECTS_BETWEEN_COLLECTIONS = 50_000
PARTS = (
    "search",
    "stores",
    "embed",
    "explain",
    "serve",
    "demo",
    "train",
    "checkpoints",
    "leaks",
    "tasks",
    "evaluate",
    "report",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import m2bert

        print(f"m2bert {m2bert.__version__}")
        raise typer.Exit()


def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", callback=_print_version, is_eager=True)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Long-document retrieval with Monarch Mixer encoders."""


def build_app() -> typer.Typer:
    """Assemble the application from its parts."""
    app = typer.Typer(name="m2bert", no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(root)
    for part in PARTS:
        importlib.import_module(f"m2bert.cli.{part}").register(app)
    return app


def main() -> None:
    """Entry point. User errors become one line on stderr and exit code 2."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
    _open_streams()
    try:
        try:
            build_app()()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read has what it wanted
        _drop_stdout()
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except SystemExit as ended:
        # Typer makes this of a KeyboardInterrupt within a command, and says nothing.
        if ended.code == INTERRUPTED:
            print("m2bert: interrupted", file=sys.stderr)
        raise
    except Exception as error:
        if not (words := _mendable(error)):
            raise
        _end(words, 2)


def _mendable(error: Exception) -> str:
    """What a user can mend, in words; empty for what only we can."""
    from m2bert.files import reason_of_system

    # Of a library that does not fit, or of an environment variable of the kernels, which know no M2BertError.
    if isinstance(error, M2BertError) or str(error).startswith(("M2OPS_", "m2ops: ")):
        return str(error)
    if not (reason := reason_of_system(error)):
        return ""
    place = getattr(error, "filename", None) or "something, standard output perhaps,"
    return f"the system refuses {place} ({reason}); check permissions and room"


def _end(words: str, code: int) -> NoReturn:
    _drop_stdout()
    with suppress(OSError):
        print(f"m2bert: {words}", file=sys.stderr, flush=True)
    raise SystemExit(code) from None


def _open_streams() -> None:
    """Standard streams that the caller has closed lead nowhere; else the next file that is opened becomes one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _drop_stdout() -> None:
    """What stdout could not take is not tried again when the interpreter ends."""
    with suppress(OSError):
        sys.stdout.flush()
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
