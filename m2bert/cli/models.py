"""Models as commands open them: `--model` with how it is to run, `--device`, `--batch-tokens` and `--threads`.

Test: tests/cli/test_models.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2bert.cli.progress import announced
from m2bert.errors import M2BertError
from m2bert.memory import keep_freed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from m2bert.bench.mixtures import MixedSystem
    from m2bert.bench.systems import EncoderSystem
    from m2bert.encoders.embedder import Embedder
    from m2bert.encoders.protocol import Encoder


@dataclass(frozen=True)
class Running:
    """How models run. None leaves the choice to the library; batch_tokens is for M2-BERT models alone."""

    device: str | None = None
    batch_tokens: int | None = None
    threads: int | None = None
    truncate_dim: int | None = None

    def embedder(self, model: str | None, overflow: str = "window") -> Embedder:
        """The Embedder of a model's name or folder; None: of the default model."""
        with announced(f"loading {model or 'the model'}"):
            self._prepare()
            from m2bert.encoders.embedder import DEFAULT_MODEL, Embedder

            options = {"device": self.device, "batch_tokens": self.batch_tokens, "truncate_dim": self.truncate_dim}
            return Embedder(model or DEFAULT_MODEL, overflow=overflow, **_given(options))

    def encoder(self, model: str, overflow: str = "window") -> Encoder:
        """The encoder of a model's name or folder, or of NAME=FOLDER under that name."""
        with announced(f"loading {model}"):
            self._prepare()
            from m2bert.encoders.opening import open_encoder

            encoder: Any = open_encoder(model, overflow, **_given({"device": self.device}))
        # SentenceTransformers have no such budget: they make batches of a number of texts.
        if self.batch_tokens is not None and hasattr(encoder, "batch_tokens"):
            encoder.batch_tokens = self.batch_tokens
        opened: Encoder = encoder
        return opened

    def _prepare(self) -> None:
        """Settings of the whole process, which is ours."""
        keep_freed()
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a value; the library chooses the others."""
    return {name: value for name, value in options.items() if value is not None}


def default_models(models: list[str] | None) -> list[str]:
    """The models that were named; the shipped one where none was."""
    return models or ["m2-bert-mini"]


def open_systems(
    models: list[str] | None,
    overflow: str,
    chunks: list[str],
    cache: Path | None,
    running: Running,
    ranks: Sequence[str] = ("whole",),
) -> list[EncoderSystem | MixedSystem]:
    """A system per model and way to rank: models that can divide texts by `chunks`, others by `ranks`.

    chunks: of none, mean and max. ranks: parts, joined by + (m2bert.ranking.parts). cache: the folder of the embedding
    cache, or None. Raises M2BertError for other ways, and as the encoders do.
    """
    from m2bert.bench.mixtures import MixedSystem, PartScores
    from m2bert.bench.systems import CHUNKS, EncoderSystem
    from m2bert.encoders.cache import CachedEncoder
    from m2bert.ranking.parts import Mixture

    unknown = [way for way in chunks if way not in ("none", *CHUNKS)]
    if unknown or not chunks:
        raise M2BertError(
            f"evaluate: --chunks must be of none, {', '.join(CHUNKS)}, got {', '.join(unknown) or 'none'}"
        )
    if not ranks:
        raise M2BertError("evaluate: --rank must name a way to rank, got none")
    for rank in ranks:
        Mixture().only(rank)
    systems: list[EncoderSystem | MixedSystem] = []
    for model in default_models(models):
        encoder = running.encoder(model, overflow)
        if cache is not None:
            encoder = CachedEncoder(encoder, cache, f"overflow={getattr(encoder, 'overflow', 'truncate')}")
        if hasattr(encoder, "split"):
            systems += [EncoderSystem(encoder, None if way == "none" else way) for way in chunks]
        else:
            scores = PartScores(encoder)
            systems += [MixedSystem(scores, rank) for rank in ranks]
    return systems
