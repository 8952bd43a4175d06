"""Commands on trained models: `m2bert extend`.

Heavy imports happen inside the commands. May import everything of m2bert. Tests: tests/test_extend.py.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

Checkpoint = Annotated[str, typer.Argument(help="Model folder, finished run, or shipped model.")]


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
    from m2bert.extend import extend_checkpoint

    _quietly()
    print(json.dumps(extend_checkpoint(checkpoint, to, output, method)))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("extend")(extend_command)
