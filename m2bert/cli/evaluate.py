"""The command `m2bert evaluate loco`: retrieval scores of a model and of BM25 side by side.

May import everything of m2bert; nothing imports it. Test: tests/test_cli_evaluate.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

from m2bert.cli.progress import announced
from m2bert.errors import M2BertError

if TYPE_CHECKING:
    from m2bert.evaluate import Report
    from m2bert.systems import Encoder, Progress

# A table narrower than its numbers would be useless in a file or a pipe, where rich assumes 80 columns.
PIPE_WIDTH = 200
SECONDS_BETWEEN_LINES = 10.0


def register(app: typer.Typer) -> None:
    """Add the command group `evaluate`."""
    group = typer.Typer(no_args_is_help=True, help="Score retrieval on benchmark tasks.")
    group.callback()(_group)
    group.command("loco")(loco)
    app.add_typer(group, name="evaluate")


def _group() -> None:
    """Score retrieval on benchmark tasks."""


def loco(
    data: Annotated[Path, typer.Option(help="Folder of tasks in LoCoV1's columns.")],
    tasks: Annotated[str, typer.Option(help="Task names joined by commas, or all.")] = "all",
    model: Annotated[str, typer.Option(help="A model's name or folder.")] = "m2-bert-mini",
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    overflow: Annotated[
        str, typer.Option(help="Documents longer than the model: window, truncate or error.")
    ] = "window",
    metrics: Annotated[str, typer.Option(help="Any of nDCG@k, R@k, RR@k, joined by commas.")] = "nDCG@10,R@10",
    bm25: Annotated[bool, typer.Option("--bm25/--no-bm25", help="Score BM25 beside the model.")] = True,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write the report, with the values per query, to this file."),
    ] = None,
) -> None:
    """Score a model and BM25 on LoCoV1 tasks, or on your own in the same columns."""
    from m2bert.evaluate import evaluate_loco
    from m2bert.metrics import largest_cutoff
    from m2bert.tasks import choose_tasks

    names, measures = _split(tasks), _split(metrics)
    # What can be wrong is checked before the model is loaded; the work may take an hour.
    choose_tasks(names, data, split)
    largest_cutoff(measures)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise M2BertError(f"evaluate: no such folder for --json: {json_file.absolute().parent}; create it first")
    if json_file is not None and json_file.is_dir():
        raise M2BertError(f"evaluate: --json must name a file, got the folder {json_file}; add a file name")
    with announced(f"loading the model {model}"):
        encoder = load_encoder(model, overflow)
    with _progress() as on_progress:
        report = evaluate_loco(data, names, encoder, bm25=bm25, split=split, metrics=measures, on_progress=on_progress)
    print_report(report)
    if json_file is not None:
        report.save(json_file)


def load_encoder(model: str, overflow: str) -> Encoder:
    """The embedder of a model's name or folder."""
    from m2bert.embedding import Embedder

    return Embedder(model, overflow=overflow)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar per stage on a terminal; elsewhere a line per stage at its start, every 10 s and at its end."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _progress_lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with ProgressBars(*columns, console=console) as bars:
        ids = {}

        def on_progress(label: str, fraction: float) -> None:
            if label not in ids:
                ids[label] = bars.add_task(label, total=1.0)
            bars.update(ids[label], completed=fraction)

        yield on_progress


def _progress_lines(console: Console) -> Progress:
    last: dict[str, float] = {}

    def on_progress(label: str, fraction: float) -> None:
        now = time.monotonic()
        if label not in last or fraction >= 1.0 or now - last[label] >= SECONDS_BETWEEN_LINES:
            last[label] = now
            console.print(f"{label}: {fraction:.0%}", highlight=False, soft_wrap=True)

    return on_progress


def print_report(report: Report) -> None:
    """Print the table, and under it what the numbers depend on, to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(_table(report))
    dropped = [task for task in report.tasks if task.num_dropped_documents or task.num_dropped_queries]
    for task in dropped:
        console.print(
            f"{task.task}: left out {task.num_dropped_documents} documents without text "
            f"and {task.num_dropped_queries} queries that only they answer",
            soft_wrap=True,
        )
    for system in report.tasks[0].systems:
        console.print(f"{system.name}: {system.fingerprint}", soft_wrap=True, markup=False)
    console.print("data: " + ", ".join(f"{task.task} {task.data_fingerprint}" for task in report.tasks), soft_wrap=True)
    console.print(f"ties: {report.settings['tie_rule']}", soft_wrap=True)


def _table(report: Report) -> Table:
    first = report.tasks[0]
    measures: Sequence[str] = report.settings["metrics"]
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
