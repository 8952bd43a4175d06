"""Options of more than one command, each typed once: its name, its type and what the help says of it.

    --json          prints one JSON object on stdout in place of the text
    --json=FILE     writes it to FILE, beside the text on stdout
    --json FILE     the same, for commands whose --json always named a file (explain, evaluate, tasks lengths)

Test: tests/cli/test_options.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from m2bert.cli.progress import set_quiet
from m2bert.errors import M2BertError

STDOUT = Path("-")
"""The value of `--json` without a file."""

_MODEL = "Name of a shipped model, or a model folder"
# Square brackets would be read as markup.
_DEFAULT = "Default: m2-bert-mini."
_FIGURE = "Also draw the figure into this file (.png, .svg or .pdf)."


def _silence(ctx: typer.Context, quiet: bool) -> bool:
    if quiet:
        set_quiet(True)
        ctx.call_on_close(lambda: set_quiet(False))
    return quiet


# How a model is chosen and run; m2bert.cli.models makes encoders of them.
Model = Annotated[str | None, typer.Option("--model", help=f"{_MODEL}. {_DEFAULT}")]
StoreModel = Annotated[
    str | None, typer.Option("--model", help=f"{_MODEL}. Default: the store's, m2-bert-mini without one.")
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help=f"{_MODEL}, or a SentenceTransformer (folder, or name on the hub); NAME=FOLDER names it in tables; may be "
        f"repeated. {_DEFAULT}",
    ),
]
Tokenizer = Annotated[str | None, typer.Option("--tokenizer", help=f"{_MODEL}, to count tokens with. {_DEFAULT}")]
Overflow = Annotated[
    str, typer.Option("--overflow", help="Documents longer than the model: window, truncate or error.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="Where models run: cpu, cuda, cuda:1. Default: the library's choice.")
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens", min=1, help="Tokens, padding included, in one batch of an M2-BERT model. Default: 8,192."
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch. Default: torch's choice.")]

# What is read.
Store = Annotated[Path, typer.Option("--store", help="Folder of the store; made if it is not there.")]
Rank = Annotated[
    str,
    typer.Option("--rank", help="What documents are ranked by: all, or some of whole, passages, words, joined by +."),
]
Ranks = Annotated[
    str,
    typer.Option(
        "--rank",
        help="How M2-BERT models rank: all, or some of whole, passages, words, terms joined by +; several with commas.",
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        help="Rank those documents alone whose metadata meets this: year >= 2020 AND type = 'pdf'; =, !=, <, <=, >, "
        ">=, IN, BETWEEN, LIKE, IS NULL, AND, OR, NOT.",
    ),
]
SecondsPerFile = Annotated[
    float, typer.Option("--seconds-per-file", min=0.1, help="A file that takes longer to read is skipped.")
]
MegabytesPerFile = Annotated[
    int,
    typer.Option("--megabytes-per-file", min=64, help="A file that takes more memory to read is skipped (on Linux)."),
]
TruncateDim = Annotated[
    int | None, typer.Option("--truncate-dim", min=1, help="Keep only so many of an embedding's first numbers.")
]
Data = Annotated[Path, typer.Option("--data", help="Folder of tasks in LoCoV1's columns.")]
Tasks = Annotated[str, typer.Option("--tasks", help="Task names joined by commas, or all.")]
Split = Annotated[str, typer.Option("--split", help="test or train.")]

# How systems are scored.
Metrics = Annotated[
    str,
    typer.Option("--metrics", help="Any of nDCG@k, R@k, RR@k, joined by commas; figures show the first."),
]
Bm25 = Annotated[bool, typer.Option("--bm25/--no-bm25", help="Score BM25 beside the models.")]
Chunks = Annotated[
    str,
    typer.Option("--chunks", help="SentenceTransformers on long documents: none (cut), mean, max; joined by commas."),
]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Folder of cached embeddings. Default: in your cache folder.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep embeddings.")]

# What is told, and where.
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress and no notices on stderr; errors stay.", callback=_silence),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="[=FILE]",
        help="Print one JSON object in place of the text; with =FILE, write it there beside the text.",
    ),
]
RunJson = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        help="Print the run as one JSON object in place of the text; with FILE, write it there beside the text, "
        "for m2bert report. Give it last, or as --json=FILE.",
    ),
]
Plot = Annotated[Path | None, typer.Option("--plot", help=_FIGURE)]
Png = Annotated[Path | None, typer.Option("--png", help=_FIGURE)]


class JsonCommand(TyperCommand):
    """A command whose `--json` may stand without a value, and takes one with `=` alone."""

    takes_next_word = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click: the arguments that are left."""
        return super().parse_args(ctx, list(_with_json_value(args, self.takes_next_word)))


class RunJsonCommand(JsonCommand):
    """A command whose `--json` takes the next word too, if that is no option."""

    takes_next_word = True


def _with_json_value(args: Sequence[str], takes_next_word: bool) -> Iterator[str]:
    """The arguments with `--json=-` for a `--json` without a file."""
    options = list(args[: args.index("--")] if "--" in args else args)
    for place, arg in enumerate(options):
        following = options[place + 1] if place + 1 < len(options) else "--"
        named = takes_next_word and (following == str(STDOUT) or not following.startswith("-"))
        yield f"--json={STDOUT}" if arg == "--json" and not named else arg
    yield from args[len(options) :]


def split_list(text: str) -> list[str]:
    """The parts of an option's value that are joined by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(text: str, option: str) -> list[int]:
    """The numbers of an option's value that are joined by commas. Raises M2BertError unless all are at least 1."""
    parts = split_list(text)
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise M2BertError(f"{option} must be whole numbers of at least 1 joined by commas, got {text!r}")
    return [int(part) for part in parts]
