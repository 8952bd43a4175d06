"""The command `m2bert tasks lengths`: what retrieval tasks hold.

May import everything of m2bert; nothing imports it. Test: tests/test_cli_studies.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from m2bert.cli.progress import announced, staged
from m2bert.cli.tables import stdout_console


def register(app: typer.Typer) -> None:
    """Add the command group `tasks`."""
    group = typer.Typer(no_args_is_help=True, help="Look at retrieval tasks.")
    group.callback()(_group)
    group.command("lengths")(lengths)
    app.add_typer(group, name="tasks")


def _group() -> None:
    """Look at retrieval tasks."""


def lengths(
    data: Annotated[Path, typer.Option(help="Folder of tasks in LoCoV1's columns.")],
    tasks: Annotated[str, typer.Option(help="Task names joined by commas, or all.")] = "all",
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    tokenizer: Annotated[
        str | None, typer.Option(help="A model's name or folder, to count tokens with. [default: m2-bert-mini]")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the run to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the distributions (.png, .svg or .pdf).")] = None,
) -> None:
    """Count characters and tokens of the documents and queries of tasks."""
    from m2bert import plots
    from m2bert.evaluate import load_tasks
    from m2bert.lengths import measure_lengths
    from m2bert.runs import check_output, save_run

    check_output(json_file, who="tasks")
    check_output(plot, who="tasks", option="--plot")
    if plot is not None:
        plots.load_matplotlib()
    from m2bert.cli.evaluate import split_list

    with staged() as on_progress:
        loaded = load_tasks(data, split_list(tasks), split, on_progress)
        name, count_tokens = token_counter(tokenizer)
        run = measure_lengths(loaded, count_tokens, name, on_progress)
    stdout_console().print(lengths_table(run))
    if json_file is not None:
        save_run(json_file, run, who="tasks")
    if plot is not None:
        plots.save(plots.lengths(run), plot)


def token_counter(model: str | None) -> tuple[str, Callable[[Sequence[str]], list[int]]]:
    """The name of a model's tokenizer, and a function that counts tokens with it, special tokens aside."""
    with announced("loading the tokenizer"):
        from m2bert.checkpoints import model_folder
        from m2bert.embedding import DEFAULT_MODEL
        from m2bert.tokenization import encode_ids, load_tokenizer

        name = model or DEFAULT_MODEL
        tokenizer = load_tokenizer(model_folder(name))

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encode_ids(tokenizer, [text])[0]) for text in texts]

    return name, count


def lengths_table(run: dict[str, Any]) -> Table:
    """One row per task and kind of text: number, mean, median and largest length in characters and in tokens."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=f"lengths; tokens of {run['settings']['tokenizer']}")
    table.add_column("task", overflow="fold", min_width=6)
    for column in ("text", "count"):
        table.add_column(column, justify="right", no_wrap=True)
    units = list(run["tasks"][0]["documents"])
    for unit in units:
        for column in (f"{unit}\nmean", "median", "largest"):
            table.add_column(column, justify="right", no_wrap=True)
    for task in run["tasks"]:
        for kind in ("documents", "queries"):
            cells = [task["task"], kind, f"{task[kind][units[0]]['count']:,}"]
            for unit in units:
                each = task[kind][unit]
                cells += [f"{each['mean']:,.0f}", f"{each['percentiles'][2]:,.0f}", f"{each['largest']:,}"]
            table.add_row(*cells)
    return table
