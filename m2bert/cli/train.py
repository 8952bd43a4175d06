"""Commands that train: `m2bert train-tokenizer`, `m2bert pretrain`, `m2bert distill`, `m2bert finetune`.

Heavy imports happen inside the commands. May import everything of m2bert.
Tests: tests/test_pretrain.py, tests/test_distill.py, tests/test_finetune.py.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as ProgressBars

from m2bert.errors import M2BertError

if TYPE_CHECKING:
    from m2bert.training import Progress

LINE_EVERY_SECONDS = 15.0

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


def parse_shares(text: str, name: str, *, lengths: bool) -> dict[Any, float]:
    """`a:1,b:2` as a mapping; keys are whole numbers when `lengths`. Raises M2BertError when it is not that."""
    shares: dict[Any, float] = {}
    try:
        for item in text.split(","):
            # A bare length stands for a share of 1; names of data sets may hold colons.
            key, _, value = item.strip().rpartition(":") if ":" in item else (item.strip(), "", "1")
            shares[int(key) if lengths else key] = float(value)
    except ValueError as error:
        raise M2BertError(f"train: --{name} must read NAME:NUMBER,NAME:NUMBER, got {text!r}; mend it") from error
    return shares


def gather_settings(who: str, path: str, pairs: list[str], flags: dict[str, Any]) -> dict[str, Any]:
    """Settings of a file, then of `--set NAME=VALUE`, then of flags that were given (not None, '' or [])."""
    import yaml  # type: ignore[import-untyped]

    from m2bert.settings import read_settings

    values = read_settings(path, who) if path else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise M2BertError(f"{who}: --set must read NAME=VALUE, got {pair!r}; mend it")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise M2BertError(f"{who}: --set {pair!r} must be NAME=VALUE with a value in YAML; mend it") from error
        # YAML reads 1e-3 as text: it wants 1.0e-3.
        try:
            values[name] = float(value) if isinstance(value, str) else value
        except ValueError:
            values[name] = value
    values.update({name: value for name, value in flags.items() if value not in (None, "", [])})
    for name in ("lengths", "weights"):
        if isinstance(values.get(name), (str, int)):
            values[name] = parse_shares(str(values[name]), name, lengths=name == "lengths")
        elif isinstance(values.get(name), dict):
            try:
                values[name] = {int(k) if name == "lengths" else str(k): float(v) for k, v in values[name].items()}
            except (TypeError, ValueError) as error:
                raise M2BertError(f"{who}: {name} must map to numbers, got {values[name]}; mend it") from error
    return values


def _describe(progress: Progress) -> str:
    if progress.fraction == 0.0:
        return f"{progress.stage}: {progress.step:,} texts, {progress.tokens / 1e6:.1f}M tokens"
    if progress.step == 0:
        return f"{progress.stage}: {progress.tokens / 1e6:.1f}M tokens"
    left = "?" if math.isnan(progress.seconds_left) else time.strftime("%H:%M:%S", time.gmtime(progress.seconds_left))
    return (
        f"{progress.stage}: step {progress.step:,}  loss {progress.loss:.3f}  "
        f"{progress.tokens_per_second:,.0f} tokens/s  {left} left"
    )


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, otherwise a line on stderr from time to time."""
    console = Console(stderr=True)
    if not console.is_terminal:
        last = [0.0]

        def line(progress: Progress) -> None:
            if time.monotonic() - last[0] >= LINE_EVERY_SECONDS:
                last[0] = time.monotonic()
                print(f"{progress.fraction:6.1%}  {_describe(progress)}", file=sys.stderr, flush=True)

        yield line
        return
    with ProgressBars(TextColumn("{task.description}"), BarColumn(), console=console) as bars:
        task = bars.add_task("starting", total=1.0)
        yield lambda progress: bars.update(task, completed=progress.fraction, description=_describe(progress))


def _run(config: Any, train: Callable[..., dict[str, Any]]) -> None:
    from transformers.utils import logging as transformers_logging

    import m2ops

    m2ops.keep_freed_memory()  # the process is ours
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("m2bert").setLevel(logging.INFO)
    # Saving a checkpoint would draw a bar of its own into ours.
    transformers_logging.disable_progress_bar()
    with _shown() as show:
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
    from m2bert.settings import make_output
    from m2bert.tokenization import sample_evenly, train_tokenizer

    console = Console(stderr=True)
    make_output(output)
    with console.status("reading text and counting words"):
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
    from m2bert.pretrain import PretrainConfig, pretrain
    from m2bert.settings import config_from_mapping, read_settings

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
    from m2bert.distill import DistillConfig, distill
    from m2bert.settings import config_from_mapping, read_settings

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
    from m2bert.finetune import FinetuneConfig, finetune
    from m2bert.settings import config_from_mapping

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
