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
    Variation,
    cloze_sources,
    inverse_document_frequencies,
    labelled_sources,
)
from m2bert.data.examples import SpecialIds, special_ids
from m2bert.data.pairs import load_pairs
from m2bert.data.query_variants import QueryVariants
from m2bert.data.tokens import load_tokens
from m2bert.errors import M2BertError
from m2bert.ranking.parts import Mixture
from m2bert.train.budget import OnProgress, Progress, is_main_process, process_group
from m2bert.train.losses import LOSSES
from m2bert.train.mining import Mining, MiningSettings, Scorer, bm25_scorer, model_scorer, search_scorer
from m2bert.train.retrieval import (
    RetrievalLoss,
    Scoring,
    TermWeightsAlone,
    TrainedPart,
    WholeModel,
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


def miner(config: FinetuneConfig, model: Any, tokenizer: Any) -> Scorer:
    """What scores documents for the mined negatives of the settings; the encoder as it is when it is called."""
    if config.negatives_from == "bm25":
        return bm25_scorer(tokenizer)
    mixture = Mixture()
    in_search = config.negatives_from == "search"
    by_model = model_scorer(
        Scoring(WholeModel(model), config.chunk_tokens, passages=mixture.passages if in_search else config.passages),
        model,
        special_ids(tokenizer),
        longest=max(config.lengths),
        bf16=config.bf16,
    )
    return search_scorer(by_model, tokenizer, mixture.words) if in_search else by_model


def mined_negatives(
    config: FinetuneConfig, labelled: list[LabelledSource], model: Any, tokenizer: Any
) -> Mining | None:
    """What mines the negatives that the settings ask for, with its first lists made; None for random ones."""
    if config.negatives_from == "random":
        return None
    rank, world = process_group()
    output = Path(config.output)
    scorer = miner(config, model, tokenizer)
    settings = MiningSettings(
        depth=config.mining_depth,
        pool=config.mining_pool,
        refresh_steps=0 if config.negatives_from == "bm25" else config.refresh_steps,
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


def scoring_of(config: FinetuneConfig, model: Any) -> Scoring:
    """How the settings score queries and documents. Raises M2BertError when `model` cannot be scored so."""
    part: TrainedPart = TermWeightsAlone(model) if config.only_term_weights else WholeModel(model)
    part.check_tokens(max(config.lengths), config.max_query_tokens)
    if config.passages > 0 and not model.config.sums_states:
        raise M2BertError(
            f"finetune: passages needs pooling mean or weighted, got {model.config.pooling!r}; set it to 0"
        )
    size = model.config.embedding_size
    if config.matryoshka and max(config.matryoshka) >= size:
        raise M2BertError(
            f"finetune: matryoshka must be below the {size} numbers of a vector, got {config.matryoshka}; lower it"
        )
    return Scoring(part, config.chunk_tokens, config.cached, config.passages)


def variation_of(config: FinetuneConfig, tokenizer: Any) -> Variation | None:
    """What changes the share of queries that the settings ask for; None for nothing."""
    if config.query_variants == 0:
        return None
    return QueryVariants(tokenizer, config.query_variants, longest=config.max_query_tokens - 2)


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
    scoring = scoring_of(config, model)
    labelled, cloze = load_sources(config, tokenizer, on_progress)
    if new_terms:
        start_term_weights(model, labelled, ids)
    vary = variation_of(config, tokenizer)
    batches = ContrastBatches(labelled, cloze, ids, config, weights=config.weights, vary=vary, seed=config.seed)
    for source, chance in zip(batches.sources, batches.chances, strict=True):
        logger.info("%-28s %5.1f %% of the batches", source.name, 100 * chance)
    output = prepare_output(config)
    mining = mined_negatives(config, labelled, model, tokenizer)
    if mining is not None:
        batches.negatives_of = mining.negatives_of
    model.train()
    result = run_training(
        config,
        scoring.part.module,
        batches,
        retrieval_loss(loss_of(config), scoring, config.matryoshka),
        stage=f"finetuning ({config.loss})",
        on_progress=on_progress,
        callbacks=[] if mining is None else [mining],
    )
    if is_main_process():
        save_model(model, tokenizer, output / "model", dtype=torch.bfloat16 if config.bf16_weights else torch.float32)
    return result
