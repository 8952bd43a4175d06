"""The command `m2bert check-leaks`: does training text repeat the test documents of tasks?

Test: tests/train/test_leaks.py.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from m2bert.cli.options import Quiet
from m2bert.cli.progress import shown

MOST_SHOWN = 20


def check_leaks_command(
    sources: Annotated[list[str], typer.Argument(help="Training text, pairs or tasks (their train splits).")],
    tests: Annotated[list[str], typer.Option("--tests", help="Folder of tasks with test splits; may be repeated.")],
    least: Annotated[int, typer.Option(help="Shared characters, normalised, from which a document is reported.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings, one JSON object per line.")] = False,
    quiet: Quiet = False,
) -> None:
    """List training documents that share text with test documents; exit code 1 when there are any."""
    from m2bert.data.leaks import find_leaks

    with shown(transient=True) as show:
        show("reading the test documents", None, "")
        progress = lambda file, count: show(str(file), None, f"{count:,} texts")  # noqa: E731
        found = list(find_leaks(sources, tests, least=least, on_progress=progress))
    if as_json:
        for leak in found:
            print(json.dumps({**leak.__dict__, "file": str(leak.file)}))
    else:
        worst = sorted(found, key=lambda leak: -leak.shared)
        for leak in worst[:MOST_SHOWN]:
            share = leak.shared / leak.characters
            print(
                f"{leak.shared:8,} characters ({share:4.0%})  {leak.file}:{leak.number}  {leak.test}  {leak.excerpt!r}"
            )
        more = f", the {MOST_SHOWN} largest above" if len(found) > MOST_SHOWN else ""
        what = "training document shares" if len(found) == 1 else "training documents share"
        print(f"{len(found):,} {what} text with test documents{more}")
    if found:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check-leaks")(check_leaks_command)
