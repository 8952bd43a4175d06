"""The commands `m2bert tasks lengths` and `m2bert tasks build`: what retrieval tasks hold, and making them.

Tests: tests/cli/test_cli_studies.py, tests/bench/test_original_files.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from m2bert.cli.progress import announced, counted, staged
from m2bert.cli.tables import stdout_console


def register(app: typer.Typer) -> None:
    """Add the command group `tasks`."""
    group = typer.Typer(no_args_is_help=True, help="Look at retrieval tasks, and build them.")
    group.callback()(_group)
    group.command("lengths")(lengths)
    group.command("build")(build)
    app.add_typer(group, name="tasks")


def _group() -> None:
    """Look at retrieval tasks, and build them."""


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
    from m2bert.bench import plots
    from m2bert.bench.evaluate import load_tasks
    from m2bert.bench.lengths import measure_lengths
    from m2bert.bench.runs import save_run
    from m2bert.files import check_output

    check_output(json_file, who="tasks")
    check_output(plot, who="tasks", option="--plot")
    if plot is not None:
        plots.load_matplotlib()
    from m2bert.cli.options import split_list

    with staged() as on_progress:
        loaded = load_tasks(data, split_list(tasks), split, on_progress)
        name, count_tokens = token_counter(tokenizer)
        run = measure_lengths(loaded, count_tokens, name, on_progress)
    stdout_console().print(lengths_table(run))
    if json_file is not None:
        save_run(json_file, run, who="tasks")
    if plot is not None:
        plots.save(plots.lengths(run), plot)


def build(
    task: Annotated[str, typer.Argument(help="One of LoCoV1's tasks, such as qmsum or stackoverflow.")],
    original: Annotated[Path, typer.Argument(help="Its original file, zip or folder (docs/retrieval.md).")],
    output: Annotated[Path, typer.Option(help="Folder of tasks; the task's own folder is made in it.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="A model's name or folder, to count tokens with. [default: m2-bert-mini]")
    ] = None,
) -> None:
    """Make a LoCoV1 task, train and test, from its original files, and show the lengths of its texts."""
    from m2bert.bench.evaluate import load_tasks
    from m2bert.bench.lengths import measure_lengths
    from m2bert.bench.task_building import SPLITS, build_task_files
    from m2bert.bench.tasks import LOCO_TASKS

    with counted(f"{task}: reading", "pairs") as progress:
        report = build_task_files(task, original, output, lambda pairs: progress(pairs, 0))
    name, count_tokens = token_counter(tokenizer)
    paper = {"train": LOCO_TASKS[task].train_size, "test": LOCO_TASKS[task].test_size}
    console = stdout_console()
    for split in SPLITS:
        queries, documents = report.sizes[split]
        theirs = "{} and {}".format(*paper[split])
        print(f"{task}, {split}: {queries} queries, {documents} documents (the paper: {theirs})")
        with staged() as on_progress:
            loaded = load_tasks(output, [task], split, on_progress)
            run = measure_lengths(loaded, count_tokens, name, on_progress)
        console.print(lengths_table(run))
    for reason, count in report.dropped.items():
        print(f"left out {count} {reason}")


def token_counter(model: str | None) -> tuple[str, Callable[[Sequence[str]], list[int]]]:
    """The name of a model's tokenizer, and a function that counts tokens with it, special tokens aside."""
    with announced("loading the tokenizer"):
        from m2bert.encoders.embedder import DEFAULT_MODEL
        from m2bert.model.checkpoints import model_folder
        from m2bert.model.tokenization import encode_ids, load_tokenizer

        name = model or DEFAULT_MODEL
        tokenizer = load_tokenizer(model_folder(name, "tasks"))

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
