"""Commands on trained models: `m2bert convert`, `m2bert extend`, `m2bert project`, `m2bert validate`.

Tests: tests/model/test_conversion.py, tests/model/test_extend.py,
tests/train/test_fit_projection.py, tests/train/test_validation.py.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from m2bert.cli.options import Device, Quiet
from m2bert.cli.progress import announced, counted

Checkpoint = Annotated[
    str, typer.Argument(help="Model folder, finished run, shipped model, or owner/name[@revision] on the hub.")
]


def _quietly() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def convert_command(
    source: Annotated[
        str,
        typer.Argument(help="Checkpoint of the published code: a file, a folder, or owner/name[@revision] on the hub."),
    ],
    output: Annotated[str, typer.Argument(help="Folder of the model.")],
    tokenizer: Annotated[
        str, typer.Option(help="Folder, or name on the hub. Default: the checkpoint's, else bert-base-uncased.")
    ] = "",
    file: Annotated[str, typer.Option(help="Name of the weights' file, where there are several.")] = "",
    quiet: Quiet = False,
) -> None:
    """Turn a released M2-BERT checkpoint into a model folder that gives the same embeddings."""
    from m2bert.model.conversion import convert_checkpoint

    _quietly()
    with announced("converting"):
        result = convert_checkpoint(source, output, tokenizer=tokenizer, file=file)
    print(json.dumps(result))


def extend_command(
    checkpoint: Checkpoint,
    to: Annotated[int, typer.Option("--to", help="Positions of the new model.")],
    output: Annotated[str, typer.Option("--output", help="Folder of the new model.")],
    method: Annotated[str, typer.Option("--method", help="interpolate, or tile as the paper did.")] = "interpolate",
    quiet: Quiet = False,
) -> None:
    """Lengthen a trained model: a warm start for training on longer texts."""
    from m2bert.model.extend import extend_checkpoint

    _quietly()
    print(json.dumps(extend_checkpoint(checkpoint, to, output, method)))


def project_command(
    checkpoint: Checkpoint,
    output: Annotated[str, typer.Option("--output", help="Folder of the new model.")],
    pairs: Annotated[
        list[str] | None, typer.Option("--pairs", help="Files of query and positive; may be repeated.")
    ] = None,
    loco: Annotated[
        list[str] | None, typer.Option("--loco", help="Folders of tasks, of which train splits are read.")
    ] = None,
    dim: Annotated[int, typer.Option(help="Length of an embedding.")] = 768,
    exponent: Annotated[float, typer.Option(help="How far directions are evened out: 0 not at all, 0.5 fully.")] = 0.3,
    texts: Annotated[int, typer.Option(min=2, help="Documents, and queries, that are read at most.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of which texts are read.")] = 17,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Fit the projection of a model's embeddings to texts, without training: fewer numbers that tell more."""
    from m2bert.train.projection import fit_projection

    _quietly()
    with counted("reading", "tokens") as progress:
        result = fit_projection(
            checkpoint, output, pairs=pairs or [], loco=loco or [], dim=dim, exponent=exponent, texts=texts, seed=seed,
            device=device, on_progress=progress,
        )  # fmt: skip
    print(json.dumps(result))


def validate_command(
    checkpoint: Checkpoint,
    data: Annotated[list[str], typer.Option("--data", help="Held-out text: files, folders or globs.")],
    length: Annotated[int, typer.Option(help="Tokens per row at most; by default the model's positions.")] = 0,
    tokens: Annotated[int, typer.Option(help="Tokens of all buckets of length together.")] = 100_000,
    probes: Annotated[int, typer.Option(help="Long-range probes at most.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of what is masked.")] = 17,
    cache: Annotated[str, typer.Option(help="Folder that keeps the tokens of the text, shared with training.")] = "",
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Loss of a masked language model on held-out text, by length of the documents, and its long-range probe."""
    from m2bert.train.validation import validate_checkpoint

    _quietly()
    with announced("reading and scoring held-out text"):
        result = validate_checkpoint(
            checkpoint, data, length=length, tokens=tokens, probes=probes, seed=seed, cache=cache or None, device=device
        )
    print(json.dumps(result))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("convert")(convert_command)
    app.command("extend")(extend_command)
    app.command("project")(project_command)
    app.command("validate")(validate_command)
