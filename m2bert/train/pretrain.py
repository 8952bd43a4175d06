"""Masked-LM pretraining from text files: `m2bert pretrain`. Recipe: arXiv 2402.07440, section 4.2.

Test: tests/train/test_pretrain.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from m2bert.data.examples import PretrainBatches, continuing_pieces, special_ids
from m2bert.data.tokens import TokenStore, load_tokens
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import model_folder
from m2bert.model.tokenization import load_tokenizer
from m2bert.train.budget import OnProgress, Progress, is_main_process
from m2bert.train.settings import TrainConfig
from m2bert.train.trainer import LOG_NAME, append_log, prepare_output, run_training
from m2bert.train.validation import HeldOut

if TYPE_CHECKING:
    from m2bert.model.configuration import M2BertConfig

logger = logging.getLogger(__name__)

PRESETS: dict[str, dict[str, Any]] = {
    "mini": {
        "hidden_size": 384,
        "num_hidden_layers": 4,
        "intermediate_size": 1536,
        "mlp_nblocks": 4,
        "filter_order": 64,
        "max_position_embeddings": 8192,
        "pooling": "mean",
        "identity_init": True,
        "filter_window": "multiscale",
    },
    "80m-2k": {},
    "80m-8k": {"max_position_embeddings": 8192},
    "80m-32k": {"max_position_embeddings": 32768},
}


@dataclass(kw_only=True)
class PretrainConfig(TrainConfig):
    """Settings of `m2bert pretrain`.

    data: files, folders or globs. preset: named model size; model: M2BertConfig fields over it.
    lengths: tokens per example -> share of the tokens. weights: source -> appearances per epoch (default 1).
    variable_share: examples of variable length, the others are packed to full length, or, without mix_documents, hold
    one document, or a full-length part of one, in a row of their own. whole_words: mask all pieces of
    a word or none. validation_tokens: held-out tokens of all buckets of length together; probes: long-range probes
    in them at most (m2bert.data.probes).
    """

    data: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    preset: str = "mini"
    model: dict[str, Any] = field(default_factory=dict)
    lengths: dict[int, float] = field(default_factory=lambda: {512: 1.0})
    weights: dict[str, float] = field(default_factory=dict)
    mask_rate: float = 0.3
    whole_words: bool = False
    variable_share: float = 0.3
    mix_documents: bool = True
    validation_mask_rate: float = 0.15
    validation_tokens: int = 100_000
    probes: int = 64
    final_learning_rate: float = 2e-5

    def check(self, who: str = "pretrain") -> None:
        """Raise M2BertError for settings that cannot be meant."""
        super().check(who)
        if not self.data:
            raise M2BertError(f"{who}: needs data, got nothing; pass --data with files, folders or globs")
        if self.preset not in PRESETS:
            raise M2BertError(f"{who}: preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name in ("mask_rate", "validation_mask_rate"):
            if not 0 < getattr(self, name) < 1:
                raise M2BertError(f"{who}: {name} must lie between 0 and 1, got {getattr(self, name)}")
        for name, least in (("validation_tokens", 1), ("probes", 0)):
            if getattr(self, name) < least:
                raise M2BertError(f"{who}: {name} must be at least {least}, got {getattr(self, name)}; raise it")
        if not 0 <= self.variable_share <= 1:
            raise M2BertError(f"{who}: variable_share must lie in 0..1, got {self.variable_share}")


def model_config(preset: str, fields: Mapping[str, Any], vocab_size: int, who: str) -> M2BertConfig:
    """Configuration of a new model: a preset, and `fields` of M2BertConfig over it. Raises M2BertError for others."""
    from m2bert.model.configuration import M2BertConfig

    unknown = sorted(name for name in fields if not hasattr(M2BertConfig(), name))
    if unknown:
        raise M2BertError(f"{who}: model fields must be those of M2BertConfig, got {', '.join(unknown)}; mend them")
    # Matrices go best to the kernels in multiples of 64 rows; the extra rows are never produced.
    return M2BertConfig(**{"vocab_size": -(-vocab_size // 64) * 64, **PRESETS[preset], **fields})


def build_masked_lm(config: PretrainConfig, vocab_size: int) -> Any:
    """A new M2BertForMaskedLM of the preset and overrides, or the one in the folder `config.init`.

    Raises M2BertError for unknown model fields, and when the checkpoint does not fit the tokenizer or lengths.
    """
    from m2bert.model.modeling import M2BertForMaskedLM

    if config.init:
        model = M2BertForMaskedLM.from_pretrained(model_folder(config.init, "pretrain"), dtype=torch.float32)
    else:
        torch.manual_seed(config.seed)
        model = M2BertForMaskedLM(model_config(config.preset, config.model, vocab_size, "pretrain"))
    if model.config.vocab_size < vocab_size:
        raise M2BertError(
            f"pretrain: the model's vocabulary must hold the tokenizer's {vocab_size} pieces, got "
            f"{model.config.vocab_size}; use the tokenizer it was trained with"
        )
    if max(config.lengths) > model.config.max_position_embeddings:
        remedy = "lengthen the checkpoint with m2bert extend" if config.init else "set max_position_embeddings"
        raise M2BertError(
            f"pretrain: lengths must be within the model's {model.config.max_position_embeddings} positions, got "
            f"{max(config.lengths)}; lower them or {remedy}"
        )
    return model


def _masked_lm_loss(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).loss


def _load_store(paths: list[str], tokenizer: Any, config: PretrainConfig, on_progress: OnProgress | None) -> TokenStore:
    def report(documents: int, tokens: int) -> None:
        if on_progress is not None:
            on_progress(Progress("tokenising", step=documents, tokens=tokens))

    cache = config.cache or str(Path(config.output) / "cache")
    return load_tokens(paths, tokenizer, cache, on_progress=report, who="pretrain")


def _held_out(config: PretrainConfig, tokenizer: Any, on_progress: OnProgress | None) -> HeldOut:
    return HeldOut(
        _load_store(config.validation, tokenizer, config, on_progress),
        special_ids(tokenizer),
        continues=continuing_pieces(tokenizer),
        longest=max(config.lengths),
        batch_tokens=config.batch_tokens,
        mask_rate=config.validation_mask_rate,
        tokens=config.validation_tokens,
        probes=config.probes,
        seed=config.seed,
    )


def pretrain(config: PretrainConfig, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Pretrain an M2BertForMaskedLM and save it, with its tokenizer, in the folder `model` of `config.output`.

    Continues from the newest complete checkpoint in `config.output` when there is one. Returns steps, tokens,
    seconds, tokens_per_second and, with validation data, what HeldOut.validate of m2bert.train.validation returns.
    Raises M2BertError for settings or data that cannot be used.
    """
    from m2bert.model.checkpoints import save_model

    config.check()
    tokenizer = load_tokenizer(config.tokenizer)
    ids = special_ids(tokenizer)
    continues = continuing_pieces(tokenizer)
    if config.whole_words and continues is None:
        raise M2BertError(
            "pretrain: whole_words needs a WordPiece tokenizer, whose pieces within a word begin with ##, got another; "
            "set whole_words=false"
        )
    model = build_masked_lm(config, ids.vocab_size)
    store = _load_store(config.data, tokenizer, config, on_progress)
    batches = PretrainBatches(
        store,
        ids,
        lengths=config.lengths,
        batch_tokens=config.batch_tokens,
        variable_share=config.variable_share,
        mix_documents=config.mix_documents,
        mask_rate=config.mask_rate,
        continues=continues if config.whole_words else None,
        weights=config.weights,
        seed=config.seed,
    )
    held_out = _held_out(config, tokenizer, on_progress) if config.validation else None
    output = prepare_output(config)
    logger.info("%d documents, %d tokens, %d parameters", len(store), store.num_tokens, model.num_parameters())
    result = run_training(config, model, batches, _masked_lm_loss, stage="pretraining", on_progress=on_progress)
    if not is_main_process():
        return result
    if held_out is not None:
        result.update(held_out.validate(model, bf16=config.bf16))
        append_log(output / LOG_NAME, result)
    # float32: this model is a start for further training, where bfloat16's rounding would cost.
    save_model(model, tokenizer, output / "model", dtype=torch.float32)
    return result
