"""Masked-LM pretraining from text files: `m2bert pretrain`. Recipe: arXiv 2402.07440, section 4.2.

Test: tests/train/test_pretrain.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m2bert.data.examples import PretrainBatches, SpecialIds, continuing_pieces, special_ids
from m2bert.data.tokens import TokenStore, load_tokens
from m2bert.errors import M2BertError
from m2bert.train.budget import OnProgress, Progress, is_main_process
from m2bert.train.settings import PRESETS, PretrainConfig
from m2bert.train.trainer import LOG_NAME, append_log, load_run_tokenizer, prepare_output, run_training
from m2bert.train.validation import HeldOut

if TYPE_CHECKING:
    from m2bert.model.configuration import M2BertConfig
    from m2bert.model.modeling import M2BertForMaskedLM

logger = logging.getLogger(__name__)


def model_config(preset: str, fields: Mapping[str, Any], vocab_size: int, who: str) -> M2BertConfig:
    """Configuration of a new model: a preset, and `fields` of M2BertConfig over it. Raises M2BertError for others."""
    from m2bert.model.configuration import M2BertConfig

    unknown = sorted(name for name in fields if not hasattr(M2BertConfig(), name))
    if unknown:
        raise M2BertError(f"{who}: model fields must be those of M2BertConfig, got {', '.join(unknown)}; mend them")
    # Matrices go best to the kernels in multiples of 64 rows; the extra rows are never produced.
    return M2BertConfig(**{"vocab_size": -(-vocab_size // 64) * 64, **PRESETS[preset], **fields})


def masked_lm_on(encoder: Any, seed: int) -> M2BertForMaskedLM:
    """A masked LM over the weights of a model that has no such head; the head is drawn with `seed`.

    What only pooling needs is left out, and the configuration says so.
    """
    from m2bert.model.modeling import M2BertForMaskedLM

    plain = {"pooling": "mean", "bilinear_features": 0, "projection_dim": 0, "term_weights": False}
    torch.manual_seed(seed)
    model = M2BertForMaskedLM(type(encoder.config)(**{**encoder.config.to_diff_dict(), **plain}))
    weights = encoder.base_model.state_dict()
    kept = {name: weights[name] for name in model.m2bert.state_dict()}
    model.m2bert.load_state_dict(kept)
    left_out = sorted({name.partition(".")[0] for name in weights.keys() - kept.keys()})
    logger.warning(
        "the model to start from has no masked-LM head: a fresh one is trained with it%s",
        f"; its {', '.join(left_out)} are for pooling and are left out" if left_out else "",
    )
    return model


def build_masked_lm(config: PretrainConfig, vocab_size: int) -> Any:
    """A new M2BertForMaskedLM of the preset and overrides, or the model that `config.init` names.

    A model without the head of a masked LM gets a fresh one, which is logged as a warning. Raises M2BertError for
    unknown model fields, and when the checkpoint does not fit the tokenizer or lengths.
    """
    from m2bert.model.checkpoints import load_whole
    from m2bert.model.modeling import M2BertForMaskedLM

    if config.init:
        model, _ = load_whole(config.init, "pretrain")
        if not isinstance(model, M2BertForMaskedLM):
            model = masked_lm_on(model, config.seed)
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


def _batches(
    config: PretrainConfig, store: TokenStore, ids: SpecialIds, continues: np.ndarray | None
) -> PretrainBatches:
    return PretrainBatches(
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
    tokenizer = load_run_tokenizer(config, "pretrain")
    ids = special_ids(tokenizer)
    continues = continuing_pieces(tokenizer)
    if config.whole_words and continues is None:
        raise M2BertError(
            "pretrain: whole_words needs a WordPiece tokenizer, whose pieces within a word begin with ##, got another; "
            "set whole_words=false"
        )
    model = build_masked_lm(config, ids.vocab_size)
    store = _load_store(config.data, tokenizer, config, on_progress)
    batches = _batches(config, store, ids, continues)
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
