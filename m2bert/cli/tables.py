"""The report of an evaluation as tables on stdout.

Test: tests/cli/test_cli_evaluate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from m2bert.bench.evaluate import Report

# A table narrower than its numbers would be useless in a file or a pipe, where rich assumes 80 columns.
PIPE_WIDTH = 200
# With more columns than these the table of tasks shows the first metric only; the summary has them all.
MOST_VALUE_COLUMNS = 4


def stdout_console() -> Console:
    """stdout, at its own width on a terminal and wide enough for any table elsewhere."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def print_report(report: Report) -> None:
    """Print the tables, and under them what the numbers depend on, to stdout."""
    console = stdout_console()
    console.print(tasks_table(report))
    console.print(_summary_table(report))
    if report.buckets:
        console.print(_buckets_table(report))
    for line in _notes(report):
        console.print(line, soft_wrap=True, markup=False)


def _notes(report: Report) -> list[str]:
    """Lines under the tables: what was left out or not read, and what made the numbers."""
    notes = [
        f"{task.task}: left out {task.num_dropped_documents} documents without text "
        f"and {task.num_dropped_queries} queries that only they answer"
        for task in report.tasks
        if task.num_dropped_documents or task.num_dropped_queries
    ]
    for place, system in enumerate(report.tasks[0].systems):
        lengths = [lengths for task in report.tasks if (lengths := task.systems[place].lengths)]
        truncated, lost = sum(each.num_truncated for each in lengths), sum(each.tokens_lost for each in lengths)
        if truncated:
            documents = sum(task.num_documents for task in report.tasks)
            notes.append(f"{system.name}: read {truncated:,} of {documents:,} documents in part, lost {lost:,} tokens")
    notes += [f"{system.name}: {system.fingerprint}" for system in report.tasks[0].systems]
    notes.append("data: " + ", ".join(f"{task.task} {task.data_fingerprint}" for task in report.tasks))
    return [*notes, f"ties: {report.settings['tie_rule']}", report.comparison.method]


def tasks_table(report: Report) -> Table:
    """One row per task: its size, the lengths of its documents, and the scores of every system."""
    first = report.tasks[0]
    measures: Sequence[str] = report.settings["metrics"]
    if len(measures) * len(first.systems) > MOST_VALUE_COLUMNS:
        measures = measures[:1]
    # Only names may be folded, never a number: the table fits 80 columns with one model beside BM25.
    table = Table(box=SIMPLE_HEAD, padding=(0, 0), title=f"{first.split} split")
    table.add_column("task", overflow="fold", min_width=6)
    for header in ("queries", "docu-\nments", "tokens\nmean", "tokens\nmax", "win-\ndowed", "trun-\ncated"):
        table.add_column(header, justify="right", no_wrap=True)
    for measure in measures:
        for system in first.systems:
            table.add_column(f"{measure}\n{system.name}", justify="right", overflow="fold", min_width=7)
    for task in report.tasks:
        lengths = next((system.lengths for system in task.systems if system.lengths), None)
        cells = [task.task, str(task.num_queries), str(task.num_documents)]
        if lengths is None:
            cells += ["-"] * 4
        else:
            cells += [f"{lengths.mean_tokens:.0f}", str(lengths.max_tokens)]
            cells += [str(lengths.num_windowed), str(lengths.num_truncated)]
        cells += [f"{system.metrics[measure]:.3f}" for measure in measures for system in task.systems]
        table.add_row(*cells)
    if len(report.tasks) > 1:
        table.add_section()
        means = report.means()
        values = [f"{means[system.name][measure]:.3f}" for measure in measures for system in first.systems]
        table.add_row("mean", *[""] * 6, *values)
    return table


def _summary_table(report: Report) -> Table:
    """One row per system: the first metric with its interval and the test against the baseline, then the others."""
    measures: Sequence[str] = report.settings["metrics"]
    baseline = report.comparison.baseline
    title = "mean over tasks" if len(report.tasks) > 1 else report.tasks[0].task
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=title)
    table.add_column("system", overflow="fold", min_width=6)
    table.add_column(measures[0], justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    if baseline is not None:
        table.add_column(f"minus\n{baseline}", justify="right", overflow="fold", min_width=6)
        table.add_column("p", justify="right", no_wrap=True)
    for measure in measures[1:]:
        table.add_column(measure, justify="right", no_wrap=True)
    for name, estimates in report.comparison.overall.items():
        main = estimates[measures[0]]
        cells = [name, f"{main.mean:.3f}", f"{main.low:.3f} to {main.high:.3f}"]
        if baseline is not None:
            against = main.difference is not None and main.p is not None
            cells += [f"{main.difference:+.3f}", f"{main.p:.4f}"] if against else ["", ""]
        table.add_row(*cells, *(f"{estimates[measure].mean:.3f}" for measure in measures[1:]))
    return table


def _buckets_table(report: Report) -> Table:
    """The first metric by the length of the answer, over the queries of all tasks together."""
    measure: str = report.settings["metrics"][0]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=f"{measure} by tokens of the longest relevant document")
    table.add_column("system", overflow="fold", min_width=6)
    for bucket in report.buckets:
        table.add_column(f"{bucket.name}\n{bucket.num_queries} queries", justify="right", no_wrap=True)
    for system in report.tasks[0].systems:
        table.add_row(system.name, *(f"{bucket.means[system.name][measure]:.3f}" for bucket in report.buckets))
    return table
