"""Commands on trained models: `m2bert extend`, `m2bert validate`.

Tests: tests/model/test_extend.py, tests/train/test_validation.py.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from m2bert.cli.progress import announced

Checkpoint = Annotated[str, typer.Argument(help="Model folder, finished run, shipped model, or owner/name on the hub.")]


def _quietly() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def extend_command(
    checkpoint: Checkpoint,
    to: Annotated[int, typer.Option("--to", help="Positions of the new model.")],
    output: Annotated[str, typer.Option("--output", help="Folder of the new model.")],
    method: Annotated[str, typer.Option("--method", help="interpolate, or tile as the paper did.")] = "interpolate",
) -> None:
    """Lengthen a trained model: a warm start for training on longer texts."""
    from m2bert.model.extend import extend_checkpoint

    _quietly()
    print(json.dumps(extend_checkpoint(checkpoint, to, output, method)))


def validate_command(
    checkpoint: Checkpoint,
    data: Annotated[list[str], typer.Option("--data", help="Held-out text: files, folders or globs.")],
    length: Annotated[int, typer.Option(help="Tokens per row at most; by default the model's positions.")] = 0,
    tokens: Annotated[int, typer.Option(help="Tokens of all buckets of length together.")] = 100_000,
    probes: Annotated[int, typer.Option(help="Long-range probes at most.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of what is masked.")] = 17,
    cache: Annotated[str, typer.Option(help="Folder that keeps the tokens of the text, shared with training.")] = "",
) -> None:
    """Loss of a masked language model on held-out text, by length of the documents, and its long-range probe."""
    from m2bert.train.validation import validate_checkpoint

    _quietly()
    with announced("reading and scoring held-out text"):
        result = validate_checkpoint(
            checkpoint, data, length=length, tokens=tokens, probes=probes, seed=seed, cache=cache or None
        )
    print(json.dumps(result))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("extend")(extend_command)
    app.command("validate")(validate_command)
