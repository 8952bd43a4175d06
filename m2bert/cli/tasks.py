"""The commands `m2bert tasks lengths`, `build` and `from-pairs`: what retrieval tasks hold, and making them.

Tests: tests/cli/test_cli_studies.py, tests/bench/test_original_files.py, tests/bench/test_validation_tasks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from m2bert.cli.options import Data, Plot, Quiet, RunJson, RunJsonCommand, Split, Tasks, Tokenizer, split_list
from m2bert.cli.output import check_files, deliver_run, print_tables
from m2bert.cli.progress import announced, counted, staged


def register(app: typer.Typer) -> None:
    """Add the command group `tasks`."""
    group = typer.Typer(no_args_is_help=True, help="Look at retrieval tasks, and build them.")
    group.callback()(_group)
    group.command("lengths", cls=RunJsonCommand)(lengths)
    group.command("build")(build)
    group.command("from-pairs")(from_pairs)
    app.add_typer(group, name="tasks")


def _group() -> None:
    """Look at retrieval tasks, and build them."""


def lengths(
    data: Data,
    tasks: Tasks = "all",
    split: Split = "test",
    tokenizer: Tokenizer = None,
    json_to: RunJson = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Count characters and tokens of the documents and queries of tasks."""
    from m2bert.bench.evaluate import load_tasks
    from m2bert.bench.lengths import measure_lengths

    check_files(json_to, plot, "tasks")
    with staged() as on_progress:
        loaded = load_tasks(data, split_list(tasks), split, on_progress)
    name, count_tokens = token_counter(tokenizer)
    with staged() as on_progress:
        run = measure_lengths(loaded, count_tokens, name, on_progress)
    deliver_run(run, json_to, plot, who="tasks")


def build(
    task: Annotated[str, typer.Argument(help="One of LoCoV1's tasks, such as qmsum or stackoverflow.")],
    original: Annotated[Path, typer.Argument(help="Its original file, zip or folder (docs/retrieval.md).")],
    output: Annotated[Path, typer.Option(help="Folder of tasks; the task's own folder is made in it.")],
    tokenizer: Tokenizer = None,
    quiet: Quiet = False,
) -> None:
    """Make a LoCoV1 task, train and test, from its original files, and show the lengths of its texts."""
    from m2bert.bench.evaluate import load_tasks
    from m2bert.bench.lengths import measure_lengths
    from m2bert.bench.tables import tables_of
    from m2bert.bench.task_building import SPLITS, build_task_files
    from m2bert.bench.tasks import LOCO_TASKS

    with counted(f"{task}: reading", "pairs") as progress:
        report = build_task_files(task, original, output, lambda pairs: progress(pairs, 0))
    name, count_tokens = token_counter(tokenizer)
    paper = {"train": LOCO_TASKS[task].train_size, "test": LOCO_TASKS[task].test_size}
    for split in SPLITS:
        queries, documents = report.sizes[split]
        theirs = "{} and {}".format(*paper[split])
        print(f"{task}, {split}: {queries} queries, {documents} documents (the paper: {theirs})")
        with staged() as on_progress:
            loaded = load_tasks(output, [task], split, on_progress)
            run = measure_lengths(loaded, count_tokens, name, on_progress)
        print_tables(tables_of(run))
    for reason, count in report.dropped.items():
        print(f"left out {count} {reason}")


def from_pairs(
    pairs: Annotated[list[str], typer.Argument(help="Files or folders of query, positive and dataset.")],
    output: Annotated[Path, typer.Option(help="Folder of tasks.")],
    datasets: Annotated[str, typer.Option(help="Data sets, joined by commas. Default: all.")] = "",
    most: Annotated[int, typer.Option(min=1, help="Queries, and documents, of a task at most.")] = 250,
    most_characters: Annotated[int, typer.Option(min=1, help="Characters of a task's documents at most.")] = 2_000_000,
) -> None:
    """Make tasks of pair files, to choose settings on that no test split has a part in; each is a train split."""
    from m2bert.bench.task_building import build_validation_tasks

    with announced("reading pairs"):
        sizes = build_validation_tasks(
            pairs, output, datasets=split_list(datasets), most=most, most_characters=most_characters
        )
    for name, (queries, documents) in sizes.items():
        print(f"{name}: {queries} queries, {documents} documents")


def token_counter(model: str | None) -> tuple[str, Callable[[Sequence[str]], list[int]]]:
    """The name of a model's tokenizer, and a function that counts tokens with it, without special tokens."""
    with announced("loading the tokenizer"):
        from m2bert.encoders.embedder import DEFAULT_MODEL
        from m2bert.model.checkpoints import model_folder
        from m2bert.model.tokenization import encode_ids, load_tokenizer

        name = model or DEFAULT_MODEL
        tokenizer = load_tokenizer(model_folder(name, "tasks"))

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encode_ids(tokenizer, [text])[0]) for text in texts]

    return name, count
