"""The command line: `m2bert COMMAND`. Each sibling module registers the commands of one part.

Test: tests/cli/test_cli.py.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from m2bert.cli.options import Quiet
from m2bert.errors import M2BertError

INTERRUPTED = 130
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
    try:
        build_app()()
    except M2BertError as error:
        print(f"m2bert: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (ValueError, ImportError) as error:
        # Of a library that does not fit, or of an environment variable of the kernels, which know no M2BertError.
        if not str(error).startswith(("M2OPS_", "m2ops: ")):
            raise
        print(f"m2bert: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("m2bert: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as ended:
        # Typer makes this of a KeyboardInterrupt within a command, and says nothing.
        if ended.code == INTERRUPTED:
            print("m2bert: interrupted", file=sys.stderr)
        raise
