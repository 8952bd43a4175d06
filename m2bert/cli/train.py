"""Commands that train: `m2bert train-tokenizer`, `m2bert pretrain`, `m2bert distill`, `m2bert finetune`.

The flags of the last three are the fields of their settings (m2bert/train/settings.py), one each.
Tests: tests/train/test_settings.py, tests/train/test_pretrain.py, tests/train/test_distill.py,
tests/train/test_finetune.py.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from m2bert.cli.options import Quiet
from m2bert.cli.progress import announced, is_quiet, training_progress
from m2bert.train.reading import config_from_mapping, gather_settings
from m2bert.train.settings import DistillConfig, FinetuneConfig, PretrainConfig, TrainConfig, TrainerSettings

Data = Annotated[list[str], typer.Option("--data", help="Files, folders or globs of text; may be repeated.")]
Output = Annotated[str, typer.Option("--output", help="Folder of the tokenizer.")]
Settings = Annotated[str, typer.Option("--settings", help="YAML or JSON file of settings; flags win over it.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of any setting; may be repeated.")]
STAGES = {
    "pretrain": (
        PretrainConfig,
        "Pretrain a masked language model on text files; run it again to continue after an interruption.",
    ),
    "distill": (
        DistillConfig,
        "Teach an encoder a short-context model's vectors of every stretch of a text; run it again to continue.",
    ),
    "finetune": (
        FinetuneConfig,
        "Fine-tune an encoder for retrieval; run it again to continue after an interruption.",
    ),
}


def train_tokenizer_command(
    data: Data,
    output: Output,
    vocab_size: Annotated[int, typer.Option(help="Number of pieces.")] = 16384,
    max_tokens: Annotated[int, typer.Option(help="model_max_length of the tokenizer.")] = 8192,
    max_chars: Annotated[int, typer.Option(help="Characters taken of each source at most.")] = 8_000_000,
    quiet: Quiet = False,
) -> None:
    """Train a lower-cased WordPiece tokenizer on text, as much of every source."""
    from m2bert.data.text import read_documents
    from m2bert.files import make_output, writing
    from m2bert.model.tokenization import sample_evenly, train_tokenizer

    make_output(output)
    with announced("reading text and counting words"):
        documents = read_documents(data, who="train-tokenizer")
        tokenizer = train_tokenizer(sample_evenly(documents, max_chars), vocab_size, max_tokens=max_tokens)
    with writing(output, who="train-tokenizer"):
        tokenizer.save_pretrained(output)
    print(json.dumps({"pieces": len(tokenizer), "tokenizer": output}))


def training_command(stage: str, kind: type[TrainConfig], meaning: str) -> Callable[..., None]:
    """The command of m2bert.train.<stage>: a flag for every field of `kind`, `--settings` and `--set`."""

    def command(settings: str, set_: list[str] | None, quiet: bool, **flags: Any) -> None:
        values = gather_settings(stage, settings, set_ or [], flags)
        config = config_from_mapping(kind, values, stage)
        _run(config, getattr(importlib.import_module(f"m2bert.train.{stage}"), stage))

    parameters = [
        inspect.Parameter("settings", inspect.Parameter.KEYWORD_ONLY, default="", annotation=Settings),
        inspect.Parameter("set_", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Set),
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet),
        *flag_parameters(kind),
    ]
    # Typer reads a function's parameters from these.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__ = meaning
    return command


def flag_parameters(kind: type[TrainConfig]) -> list[inspect.Parameter]:
    """A parameter for every field of the settings, the command's own first; not given is None, whatever the default."""
    types = get_type_hints(kind)
    groups: dict[str, list[inspect.Parameter]] = {"This command": [], "Any training": [], "transformers' Trainer": []}
    for item in dataclasses.fields(kind):
        flag = (item.metadata["flag"] or item.name).replace("_", "-")
        given: Any = str if get_origin(types[item.name]) is dict else types[item.name]
        panel = _panel(item.name)
        option = typer.Option(
            f"--{flag}/--no-{flag}" if given is bool else f"--{flag}",
            help=item.metadata["meaning"] + _shown_default(item),
            rich_help_panel=panel,
        )
        annotation = Annotated[given | None, option]
        groups[panel].append(
            inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    return [parameter for group in groups.values() for parameter in group]


def _panel(name: str) -> str:
    if name in TrainerSettings.__dataclass_fields__:
        return "transformers' Trainer"
    return "Any training" if name in TrainConfig.__dataclass_fields__ else "This command"


def _shown_default(item: dataclasses.Field[Any]) -> str:
    """The default as the end of a help text; nothing where it is empty, or where asking for it would load torch."""
    default: Any = item.default
    if item.name != "bf16" and callable(item.default_factory):
        default = item.default_factory()
    if isinstance(default, dict):
        default = ",".join(f"{key}:{share:g}" for key, share in default.items())
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return "" if default in ("", []) or default is dataclasses.MISSING else f" Default: {default}."


def _run(config: Any, train: Callable[..., dict[str, Any]]) -> None:
    from transformers.utils import logging as transformers_logging

    import m2ops

    m2ops.keep_freed_memory()  # the process is ours
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("m2bert").setLevel(logging.WARNING if is_quiet() else logging.INFO)
    # Saving a checkpoint would draw a bar of its own into ours.
    transformers_logging.disable_progress_bar()
    with training_progress() as show:
        result = train(config, show)
    print(json.dumps({**result, "model": str(Path(config.output) / "model")}))


def register(app: typer.Typer) -> None:
    """Add the training commands."""
    app.command("train-tokenizer")(train_tokenizer_command)
    for stage, (kind, meaning) in STAGES.items():
        app.command(stage)(training_command(stage, kind, meaning))
