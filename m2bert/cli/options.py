"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2bert.cli.progress import announced
from m2bert.errors import M2BertError

if TYPE_CHECKING:
    pass

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2bert.bench.systems import EncoderSystem
    from m2bert.encoders.protocol import Encoder


def load_encoder(model: str, overflow: str) -> Encoder:
    """The encoder of a model's name or folder, or of NAME=FOLDER under that name."""
    import m2ops
    from m2bert.encoders.opening import open_encoder

    m2ops.keep_freed_memory()  # the process is ours
    return open_encoder(model, overflow)


def open_systems(models: list[str], overflow: str, chunks: list[str], cache: Path | None) -> list[EncoderSystem]:
    """A system per model; for models that can divide texts, one per way to read long documents.

    chunks: of none, mean and max. cache: the folder of the embedding cache, or None.
    """
    from m2bert.bench.systems import CHUNKS, EncoderSystem
    from m2bert.encoders.cache import CachedEncoder

    unknown = [way for way in chunks if way not in ("none", *CHUNKS)]
    if unknown or not chunks:
        raise M2BertError(
            f"evaluate: --chunks must be of none, {', '.join(CHUNKS)}, got {', '.join(unknown) or 'none'}"
        )
    systems = []
    for model in models:
        with announced(f"loading the model {model}"):
            encoder = load_encoder(model, overflow)
        ways = chunks if hasattr(encoder, "split") else ["none"]
        if cache is not None:
            encoder = CachedEncoder(encoder, cache, f"overflow={getattr(encoder, 'overflow', 'truncate')}")
        systems += [EncoderSystem(encoder, None if way == "none" else way) for way in ways]
    return systems


def split_list(text: str) -> list[str]:
    """The parts of an option's value that are joined by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model's name or folder, or NAME=FOLDER; may be repeated. [default: m2-bert-mini]"),
]


Overflow = Annotated[str, typer.Option(help="Documents longer than the model: window, truncate or error.")]


Chunks = Annotated[
    str, typer.Option(help="SentenceTransformers on long documents: none (cut), mean, max; joined by commas.")
]


Cache = Annotated[Path | None, typer.Option(help="Folder of cached embeddings. [default: in the user's cache folder]")]


NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep embeddings.")]


JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the run to this file, for m2bert report.")]


Plot = Annotated[Path | None, typer.Option(help="Also draw the figure into this file (.png, .svg or .pdf).")]


def _numbers(text: str, option: str) -> list[int]:

    parts = split_list(text)
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise M2BertError(f"{option} must be whole numbers of at least 1 joined by commas, got {text!r}")
    return [int(part) for part in parts]


def check_files(json_file: Path | None, plot: Path | None, who: str) -> None:
    """What can be wrong with the files to write is told before a model is loaded."""
    from m2bert.bench.plots import load_matplotlib
    from m2bert.files import check_output

    check_output(json_file, who=who)
    check_output(plot, who=who, option="--plot")
    if plot is not None:
        load_matplotlib()
