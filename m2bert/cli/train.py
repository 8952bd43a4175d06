"""Commands that train: `m2bert train-tokenizer`, `m2bert pretrain`, `m2bert distill`, `m2bert finetune`.

Tests: tests/train/test_pretrain.py, tests/train/test_distill.py, tests/train/test_finetune.py.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2bert.cli.progress import announced, training_progress
from m2bert.train.settings import gather_settings

if TYPE_CHECKING:
    pass


Data = Annotated[list[str], typer.Option("--data", help="Files, folders or globs of text; may be repeated.")]
Pairs = Annotated[list[str], typer.Option("--pairs", help="Files of query, positive, dataset; may be repeated.")]
Loco = Annotated[list[str], typer.Option("--loco", help="Folders of retrieval tasks; train splits are used.")]
Preset = Annotated[str, typer.Option("--preset", help="Model size: mini, 80m-2k, 80m-8k, 80m-32k.")]
Config = Annotated[str, typer.Option("--config", help="YAML or JSON file of model fields over the preset.")]
Output = Annotated[str, typer.Option("--output", help="Folder of the run: checkpoints, log, the model.")]
Tokenizer = Annotated[str, typer.Option("--tokenizer", help="Folder with tokenizer.json.")]
Settings = Annotated[str, typer.Option("--settings", help="YAML or JSON file of settings; flags win over it.")]
Set = Annotated[list[str], typer.Option("--set", help="NAME=VALUE of any setting; may be repeated.")]
Init = Annotated[str, typer.Option("--init", help="Model folder (or finished run) to start from.")]
MaxSeconds = Annotated[float | None, typer.Option("--max-seconds", help="Time budget; the learning rate ends on time.")]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", help="Number of optimizer steps.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Tokens to train on, padding aside.")]
Lengths = Annotated[str, typer.Option("--lengths", help="Tokens per text with shares, such as 512:0.7,2048:0.3.")]
BatchTokens = Annotated[int | None, typer.Option("--batch-tokens", help="Tokens per batch, padding included.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="Peak learning rate.")]
Weights = Annotated[str, typer.Option("--weights", help="Weights of data sets, such as peps:3,books:0.5.")]
Cache = Annotated[str, typer.Option("--cache", help="Folder of tokenised data, shared by runs.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Continue from checkpoints in the output.")]


def _run(config: Any, train: Callable[..., dict[str, Any]]) -> None:
    from transformers.utils import logging as transformers_logging

    import m2ops

    m2ops.keep_freed_memory()  # the process is ours
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("m2bert").setLevel(logging.INFO)
    # Saving a checkpoint would draw a bar of its own into ours.
    transformers_logging.disable_progress_bar()
    with training_progress() as show:
        result = train(config, show)
    print(json.dumps({**result, "model": str(Path(config.output) / "model")}))


def train_tokenizer_command(
    data: Data,
    output: Output,
    vocab_size: Annotated[int, typer.Option(help="Number of pieces.")] = 16384,
    max_tokens: Annotated[int, typer.Option(help="model_max_length of the tokenizer.")] = 8192,
    max_chars: Annotated[int, typer.Option(help="Characters taken of each source at most.")] = 8_000_000,
) -> None:
    """Train a lower-cased WordPiece tokenizer on text, as much of every source."""
    from m2bert.data.text import read_documents
    from m2bert.files import make_output
    from m2bert.model.tokenization import sample_evenly, train_tokenizer

    make_output(output)
    with announced("reading text and counting words"):
        documents = read_documents(data, who="train-tokenizer")
        tokenizer = train_tokenizer(sample_evenly(documents, max_chars), vocab_size, max_tokens=max_tokens)
    tokenizer.save_pretrained(output)
    print(json.dumps({"pieces": len(tokenizer), "tokenizer": output}))


def pretrain_command(
    data: Data = [],  # noqa: B006 - typer's way of an empty list
    output: Output = "",
    tokenizer: Tokenizer = "",
    init: Init = "",
    validation: Annotated[list[str], typer.Option(help="Held-out text for the masked-LM loss.")] = [],  # noqa: B006
    preset: Preset = "",
    config: Config = "",
    lengths: Lengths = "",
    batch_tokens: BatchTokens = None,
    learning_rate: Rate = None,
    weights: Weights = "",
    max_seconds: MaxSeconds = None,
    max_steps: MaxSteps = None,
    max_tokens: MaxTokens = None,
    cache: Cache = "",
    resume: Resume = True,
    settings: Settings = "",
    set_: Set = [],  # noqa: B006
) -> None:
    """Pretrain a masked language model on text files; run it again to continue after an interruption."""
    from m2bert.train.pretrain import PretrainConfig, pretrain
    from m2bert.train.settings import config_from_mapping, read_settings

    flags = dict(
        data=data, output=output, tokenizer=tokenizer, init=init, validation=validation, preset=preset,
        lengths=lengths, batch_tokens=batch_tokens, learning_rate=learning_rate, weights=weights,
        max_seconds=max_seconds, max_steps=max_steps, max_tokens=max_tokens, cache=cache,
        resume=None if resume else False, model=read_settings(config, "pretrain") if config else None,
    )  # fmt: skip
    values = gather_settings("pretrain", settings, set_, flags)
    _run(config_from_mapping(PretrainConfig, values, "pretrain"), pretrain)


def distill_command(
    teacher: Annotated[str, typer.Option(help="SentenceTransformer or M2-BERT model to learn from.")] = "",
    data: Data = [],  # noqa: B006
    pairs: Pairs = [],  # noqa: B006
    loco: Loco = [],  # noqa: B006
    output: Output = "",
    init: Init = "",
    tokenizer: Tokenizer = "",
    preset: Preset = "",
    config: Config = "",
    text_tokens: Annotated[int | None, typer.Option(help="Tokens of text that the teacher reads.")] = None,
    window_tokens: Annotated[int | None, typer.Option(help="Longest stretch the student reads at once.")] = None,
    batch_tokens: BatchTokens = None,
    learning_rate: Rate = None,
    weights: Weights = "",
    max_seconds: MaxSeconds = None,
    max_steps: MaxSteps = None,
    max_tokens: MaxTokens = None,
    cache: Cache = "",
    resume: Resume = True,
    settings: Settings = "",
    set_: Set = [],  # noqa: B006
) -> None:
    """Teach an encoder a short-context model's vectors of every stretch of a text; run it again to continue."""
    from m2bert.train.distill import DistillConfig, distill
    from m2bert.train.settings import config_from_mapping, read_settings

    flags = dict(
        teacher=teacher, data=data, pairs=pairs, loco=loco, output=output, init=init, tokenizer=tokenizer,
        preset=preset, text_tokens=text_tokens, window_tokens=window_tokens, batch_tokens=batch_tokens,
        learning_rate=learning_rate, weights=weights, max_seconds=max_seconds, max_steps=max_steps,
        max_tokens=max_tokens, cache=cache, resume=None if resume else False,
        model=read_settings(config, "distill") if config else None,
    )  # fmt: skip
    values = gather_settings("distill", settings, set_, flags)
    _run(config_from_mapping(DistillConfig, values, "distill"), distill)


def finetune_command(
    init: Init = "",
    output: Output = "",
    pairs: Pairs = [],  # noqa: B006
    loco: Loco = [],  # noqa: B006
    cloze: Annotated[list[str], typer.Option(help="Plain text that queries are cut from.")] = [],  # noqa: B006
    loss: Annotated[str, typer.Option(help="mnrl, mnrl-symmetric, opl or cosent.")] = "",
    lengths: Lengths = "",
    batch_size: Annotated[int | None, typer.Option(help="Queries per batch at most.")] = None,
    negatives: Annotated[int | None, typer.Option(help="Extra documents per batch.")] = None,
    batch_tokens: BatchTokens = None,
    max_query_tokens: Annotated[int | None, typer.Option(help="Longest query in tokens.")] = None,
    learning_rate: Rate = None,
    weights: Weights = "",
    max_seconds: MaxSeconds = None,
    max_steps: MaxSteps = None,
    max_tokens: MaxTokens = None,
    cache: Cache = "",
    resume: Resume = True,
    settings: Settings = "",
    set_: Set = [],  # noqa: B006
) -> None:
    """Fine-tune an encoder for retrieval; run it again to continue after an interruption."""
    from m2bert.train.finetune import FinetuneConfig, finetune
    from m2bert.train.settings import config_from_mapping

    flags = dict(
        init=init, output=output, pairs=pairs, loco=loco, cloze=cloze, loss=loss, lengths=lengths,
        batch_size=batch_size, negatives=negatives, batch_tokens=batch_tokens,
        max_query_tokens=max_query_tokens, learning_rate=learning_rate, weights=weights,
        max_seconds=max_seconds, max_steps=max_steps, max_tokens=max_tokens, cache=cache,
        resume=None if resume else False,
    )  # fmt: skip
    values = gather_settings("finetune", settings, set_, flags)
    _run(config_from_mapping(FinetuneConfig, values, "finetune"), finetune)


def register(app: typer.Typer) -> None:
    """Add the training commands."""
    app.command("train-tokenizer")(train_tokenizer_command)
    app.command("pretrain")(pretrain_command)
    app.command("distill")(distill_command)
    app.command("finetune")(finetune_command)
