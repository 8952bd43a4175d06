"""The command `m2bert evaluate mixture`: the weights of a ranking's parts, chosen on train splits.

Tests: tests/bench/test_tuning.py, tests/cli/test_cli_studies.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from m2bert.cli.models import Running, default_models
from m2bert.cli.options import (
    BatchTokens,
    Cache,
    Data,
    Device,
    Model,
    NoCache,
    Quiet,
    RunJson,
    RunJsonCommand,
    Tasks,
    Threads,
    split_list,
)
from m2bert.cli.output import check_files, deliver
from m2bert.cli.progress import staged


def register(group: typer.Typer) -> None:
    """Add the command to the command group `evaluate`."""
    group.command("mixture", cls=RunJsonCommand)(mixture)


def mixture(
    data: Data,
    tasks: Tasks = "all",
    model: Model = None,
    split: Annotated[
        str, typer.Option("--split", help="train or test; what is chosen on test says nothing of it.")
    ] = "train",
    save: Annotated[bool, typer.Option("--save", help="Write the best weights into the model's folder.")] = False,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    json_to: RunJson = None,
    quiet: Quiet = False,
) -> None:
    """Choose the weights of whole, passages and words on tasks, and say what the choice is worth on tasks left out."""
    from m2bert.bench.evaluate import load_tasks
    from m2bert.bench.tuning import save_mixture, tune_mixture
    from m2bert.encoders.cache import CachedEncoder
    from m2bert.files import cache_folder
    from m2bert.model.checkpoints import model_folder

    check_files(json_to, None, "mixture")
    encoder = Running(device, batch_tokens, threads).encoder(default_models([model] if model else None)[0])
    # Where Embedder looks: a finished run has its model in a folder of its own.
    folder = model_folder(encoder.location, "mixture") if save else None
    if not no_cache:
        encoder = CachedEncoder(encoder, cache or cache_folder("embeddings"), f"overflow={encoder.overflow}")
    with staged() as on_progress:
        loaded = load_tasks(data, split_list(tasks), split, on_progress)
        run = tune_mixture(loaded, encoder, on_progress)
    if folder is not None:
        save_mixture(run, folder)
    deliver(run, lambda: print(format_mixture(run)), json_to, who="mixture")


def format_mixture(run: Mapping[str, Any]) -> str:
    """The best weights and what they are worth, in a few lines."""
    weights = ", ".join(f"{part} {weight:g}" for part, weight in run["best"].items())
    alone = ", ".join(f"{part} {value:.4f}" for part, value in run["alone"].items())
    return "\n".join(
        [
            f"{run['metric']}, mean of {len(run['tasks'])} tasks; {run['model']}",
            f"best weights   {weights}: {run['best_mean']:.4f}",
            f"left out       {run['left_out_mean']:.4f} (each task by the weights best on the others)",
            f"with terms     {run['best_mean_with_terms']:.4f}, left out {run['left_out_mean_with_terms']:.4f}",
            f"alone          {alone}",
        ]
    )
