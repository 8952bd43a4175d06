"""Fine-tuning for retrieval with pairs, tasks' train splits and pairs cut from plain text: `m2bert finetune`.

Tests: tests/train/test_finetune.py, tests/model/test_term_weights.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from m2bert.data.contrast import (
    ContrastBatches,
    LabelledSource,
    PairSource,
    cloze_sources,
    inverse_document_frequencies,
    labelled_sources,
)
from m2bert.data.examples import SpecialIds, special_ids
from m2bert.data.pairs import load_pairs
from m2bert.data.tokens import load_tokens
from m2bert.train.budget import OnProgress, Progress, is_main_process, process_group
from m2bert.train.losses import LOSSES
from m2bert.train.mining import Mining, MiningSettings, bm25_scorer, model_scorer
from m2bert.train.retrieval import (
    RetrievalLoss,
    TermWeightsAlone,
    TrainedPart,
    WholeModel,
    encode,
    retrieval_loss,
)
from m2bert.train.settings import FinetuneConfig
from m2bert.train.trainer import last_checkpoint, load_run_tokenizer, prepare_output, run_training

logger = logging.getLogger(__name__)
SENTENCE_ENDS = (".", "!", "?")


def load_sources(
    config: FinetuneConfig, tokenizer: Any, on_progress: OnProgress | None = None
) -> tuple[list[LabelledSource], list[PairSource]]:
    """Labelled and plain-text sources of the settings, tokenised once and kept in the cache."""

    def report(documents: int, tokens: int) -> None:
        if on_progress is not None:
            on_progress(Progress("tokenising", step=documents, tokens=tokens))

    cache = config.cache or str(Path(config.output) / "cache")
    labelled: list[LabelledSource] = []
    cloze: list[PairSource] = []
    if config.pairs or config.loco:
        labelled = labelled_sources(load_pairs(config.pairs, config.loco, tokenizer, cache, on_progress=report))
    if config.cloze:
        store = load_tokens(config.cloze, tokenizer, cache, on_progress=report, who="finetune")
        ends = frozenset(tokenizer.convert_tokens_to_ids(list(SENTENCE_ENDS)))
        cloze = cloze_sources(store, ends)
    return labelled, cloze


def mined_negatives(
    config: FinetuneConfig, labelled: list[LabelledSource], model: Any, tokenizer: Any
) -> Mining | None:
    """What mines the negatives that the settings ask for, with its first lists made; None for random ones."""
    if config.negatives_from == "random":
        return None
    if config.negatives_from == "bm25":
        scorer, refresh_steps = bm25_scorer(tokenizer), 0
    else:
        refresh_steps, whole = config.refresh_steps, WholeModel(model)
        scorer = model_scorer(
            lambda ids, mask: encode(partial(whole.vectors, model), ids, mask, config.chunk_tokens),
            model,
            special_ids(tokenizer),
            longest=max(config.lengths),
            bf16=config.bf16,
        )
    rank, world = process_group()
    output = Path(config.output)
    settings = MiningSettings(
        depth=config.mining_depth,
        pool=config.mining_pool,
        refresh_steps=refresh_steps,
        batches_per_step=config.gradient_accumulation_steps * world,
        folder=output / (f"mined-{rank}" if world > 1 else "mined"),
        seed=config.seed,
    )
    mining = Mining(labelled, scorer, settings)
    mining.begin(resumed=config.resume and last_checkpoint(output) is not None)
    return mining


def start_term_weights(model: Any, sources: Sequence[LabelledSource], ids: SpecialIds) -> None:
    """Weigh each piece by its inverse document frequency, special tokens by 0; without documents all stay alike."""
    if not sources:
        return
    weights = inverse_document_frequencies(sources, len(model.term_weights.weight))
    weights[sorted(ids.unmaskable)] = 0.0
    with torch.no_grad():
        model.term_weights.weight.copy_(torch.from_numpy(weights))


def loss_of(config: FinetuneConfig) -> RetrievalLoss:
    """The loss of the settings, with their scale where it has one."""
    options: dict[str, Any] = {} if config.loss == "opl" else {"scale": config.scale}
    return partial(LOSSES[config.loss], **options)


def finetune(config: FinetuneConfig, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Fine-tune the encoder of `config.init` and save it in the folder `model` of `config.output`.

    Continues from the newest complete checkpoint in `config.output` when there is one. Returns steps, tokens,
    seconds, tokens_per_second. Raises M2BertError for settings or data that cannot be used, test splits included.
    """
    from m2bert.model.checkpoints import load_model, save_model, with_pooling

    config.check()
    tokenizer = load_run_tokenizer(config, "finetune")
    ids = special_ids(tokenizer)
    model, _ = load_model(config.init)
    torch.manual_seed(config.seed)  # fresh layers are drawn
    new_terms = config.term_weights and model.term_weights is None
    with_pooling(model, config.pooling, config.bilinear_features, config.projection_dim, config.term_weights)
    part: TrainedPart = TermWeightsAlone(model) if config.only_term_weights else WholeModel(model)
    part.check_tokens(max(config.lengths), config.max_query_tokens)
    labelled, cloze = load_sources(config, tokenizer, on_progress)
    if new_terms:
        start_term_weights(model, labelled, ids)
    batches = ContrastBatches(labelled, cloze, ids, config, weights=config.weights, seed=config.seed)
    for source, chance in zip(batches.sources, batches.chances, strict=True):
        logger.info("%-28s %5.1f %% of the batches", source.name, 100 * chance)
    output = prepare_output(config)
    mining = mined_negatives(config, labelled, model, tokenizer)
    if mining is not None:
        batches.negatives_of = mining.negatives_of
    model.train()
    result = run_training(
        config,
        part.module,
        batches,
        retrieval_loss(loss_of(config), part, config.chunk_tokens, config.cached),
        stage=f"finetuning ({config.loss})",
        on_progress=on_progress,
        callbacks=[] if mining is None else [mining],
    )
    if is_main_process():
        save_model(model, tokenizer, output / "model", dtype=torch.bfloat16 if config.bf16_weights else torch.float32)
    return result
