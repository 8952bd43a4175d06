"""The command `m2bert report`: runs as one HTML page and, if wanted, Markdown.

Test: tests/bench/test_report.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m2bert.cli.options import Quiet
from m2bert.cli.progress import announced


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Files that evaluate, explain and tasks lengths wrote with --json.")
    ],
    output: Annotated[Path, typer.Option(help="The page, with everything inside.")] = Path("report.html"),
    markdown: Annotated[
        Path | None, typer.Option(help="Also write Markdown here, its figures into a folder beside it.")
    ] = None,
    title: Annotated[str, typer.Option(help="The title of the page.")] = "m2bert: report",
    quiet: Quiet = False,
) -> None:
    """Write tables and figures of runs, the paper's numbers beside them, and where they come from."""
    from m2bert.bench.report import read_runs, write_report
    from m2bert.files import check_output

    check_output(output, who="report", option="--output")
    check_output(markdown, who="report", option="--markdown")
    loaded = read_runs(runs)
    with announced("drawing"):
        write_report(loaded, output, markdown, title)
    print(output if markdown is None else f"{output}\n{markdown}")
