"""What commands print and write: text or one JSON object, tables, run files and figures.

Tests: tests/cli/test_options.py, tests/bench/test_tables.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2bert.cli.options import STDOUT

if TYPE_CHECKING:
    from rich.console import Console

    from m2bert.bench.tables import Table

# A table narrower than its numbers would be useless in a file or a pipe, where rich assumes 80 columns.
PIPE_WIDTH = 200
# Wider than any table: what a table would like to have is measured in it.
UNLIMITED_WIDTH = 10_000


def print_json(value: Any) -> None:
    """One JSON object on stdout, in ASCII, so that no encoding can break it."""
    print(json.dumps(value, indent=1))


def deliver(value: Mapping[str, Any], text: Callable[[], None], json_to: Path | None, *, who: str) -> None:
    """A result: `text()` prints it for people; `--json` prints `value` instead, and `--json=FILE` writes it too."""
    from m2bert.files import write_text

    if json_to == STDOUT:
        print_json(value)
        return
    if json_to is not None:
        write_text(json_to, json.dumps(value, indent=1, ensure_ascii=False) + "\n", who=who)
    text()


def check_files(json_to: Path | None, figure: Path | None, who: str, option: str = "--plot") -> None:
    """Tell what is wrong with the files to write before work that may take an hour. Raises M2BertError."""
    from m2bert.bench.plots import load_matplotlib
    from m2bert.files import check_output

    check_output(json_to, who=who)
    check_output(figure, who=who, option=option)
    if figure is not None:
        load_matplotlib()


def deliver_run(run: Mapping[str, Any], json_to: Path | None, figure: Path | None = None, *, who: str) -> None:
    """The tables of a run on stdout with what made its numbers, or its JSON; and its figure."""
    from m2bert.bench import plots
    from m2bert.bench.runs import as_plain
    from m2bert.bench.tables import sources, tables_of

    plain = as_plain(run)
    deliver(plain, lambda: print_tables(tables_of(plain), sources(plain)), json_to, who=who)
    if figure is not None:
        plots.save(plots.draw(plain), figure)


def stdout_console() -> Console:
    """stdout, at its own width on a terminal and wide enough for any table elsewhere."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def print_tables(tables: Sequence[Table], lines: Sequence[str] = (), console: Console | None = None) -> None:
    """Print tables, then their notes and further lines, on the console (None: stdout)."""
    console = console or stdout_console()
    for table in tables:
        _print_table(table, console)
    for line in [*(note for table in tables for note in table.notes), *lines]:
        console.print(line, soft_wrap=True, markup=False)


def _print_table(table: Table, console: Console) -> None:
    """Only names may be folded, never a number; columns stand closer where the table is wider than the console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=SIMPLE_HEAD, padding=(0, 1), title=Text(table.title, style="italic"))
    for place, column in enumerate(table.columns):
        longest = max((len(row[place]) for row in table.all_rows), default=0)
        made.add_column(
            Text(column.on_screen),
            justify="right" if column.numeric else "left",
            overflow="fold",
            min_width=longest if column.numeric else 6,
        )
    for row in table.rows:
        made.add_row(*map(Text, row))
    if table.foot:
        made.add_section()
        made.add_row(*map(Text, table.foot))
    unlimited = console.options.update(width=UNLIMITED_WIDTH)
    if console.measure(made, options=unlimited).maximum > console.width:
        made.padding = (0, 0)
    # Lines longer than the console are wrapped by the terminal; cropped ones would lose numbers.
    least = console.measure(made, options=unlimited).minimum
    console.print(made, width=max(console.width, least), crop=False)
