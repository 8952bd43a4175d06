"""Fine-tuning for retrieval with pairs, tasks' train splits and pairs cut from plain text: `m2bert finetune`.

Tests: tests/train/test_finetune.py, tests/model/test_lexical_features.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from m2bert.data.contrast import (
    ContrastBatches,
    ContrastSettings,
    LabelledSource,
    PairSource,
    cloze_sources,
    inverse_document_frequencies,
    labelled_sources,
)
from m2bert.data.examples import SpecialIds, special_ids
from m2bert.data.pairs import load_pairs
from m2bert.data.tokens import load_tokens
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import model_folder
from m2bert.model.tokenization import load_tokenizer
from m2bert.train.budget import OnProgress, Progress, is_main_process, process_group
from m2bert.train.losses import LOSSES, RANKING_SCALE
from m2bert.train.mining import KINDS, Mining, MiningSettings, bm25_scorer, model_scorer
from m2bert.train.settings import TrainConfig
from m2bert.train.trainer import LossFn, last_checkpoint, prepare_output, run_training

logger = logging.getLogger(__name__)
SENTENCE_ENDS = (".", "!", "?")


@dataclass(kw_only=True)
class FinetuneConfig(TrainConfig):
    """Settings of `m2bert finetune`.

    pairs: files of {"query", "positive", "dataset"}; loco: tasks whose train split is used; cloze: plain text.
    lengths: longest document in tokens -> share of the batches. Other names as in ContrastSettings.
    chunk_tokens: documents are encoded in groups of about so many tokens, which stay in the processor's cache.
    cached: groups are encoded again for their gradients, one at a time (GradCache): the gradient of the whole batch in
    the memory of one group. negatives_from: which documents `negatives` are: random, bm25 or self (the model's own);
    mining_depth: how many are mined for each query, among mining_pool documents of its data set at most;
    refresh_steps: steps after which the model mines anew. tokenizer: by default the one of `init`.
    scale: what the losses that rank multiply cosines by. bf16_weights: store the result in bfloat16 (half the size).
    pooling, bilinear_features, lexical_features: what the model of `init` goes on with (M2BertConfig), by default its
    own; fresh lexical features start at the inverse document frequencies of the pairs' and tasks' documents.
    only_lexical: train the weights of the lexical features alone, by their own cosines; the encoder is not run.
    """

    init: str = ""
    loss: str = "mnrl"
    pairs: list[str] = field(default_factory=list)
    loco: list[str] = field(default_factory=list)
    cloze: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    lengths: dict[int, float] = field(default_factory=lambda: {512: 1.0})
    batch_size: int = 64
    batch_tokens: int = 32768
    negatives: int = 0
    max_query_tokens: int = 64
    crop: str = "mixed"
    cloze_share: float = 0.5
    keep_share: float = 0.5
    keyword_share: float = 0.3
    similar_lengths: bool = True
    chunk_tokens: int = 8192
    cached: bool = False
    negatives_from: str = "random"
    refresh_steps: int = 200
    mining_depth: int = 20
    mining_pool: int = 2000
    learning_rate: float = 3e-4
    scale: float = RANKING_SCALE
    bf16_weights: bool = True
    pooling: str = ""
    bilinear_features: int = 0
    lexical_features: int = 0
    only_lexical: bool = False

    def check(self, who: str = "finetune") -> None:
        """Raise M2BertError for settings that cannot be meant."""
        if not self.init:
            raise M2BertError(f"{who}: needs init, got nothing; pass --init with a pretrained model's folder")
        if not self.tokenizer:
            self.tokenizer = str(model_folder(self.init, who))
        super().check(who)
        if self.loss not in LOSSES:
            raise M2BertError(f"{who}: loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.crop not in ("head", "random", "mixed"):
            raise M2BertError(f"{who}: crop must be head, random or mixed, got {self.crop!r}")
        if self.negatives_from not in KINDS:
            raise M2BertError(f"{who}: negatives_from must be one of {', '.join(KINDS)}, got {self.negatives_from!r}")
        if self.negatives_from != "random" and not (self.negatives > 0 and (self.pairs or self.loco)):
            raise M2BertError(f"{who}: mined negatives need negatives above 0 and pairs or tasks, got none; pass them")
        for name in ("cloze_share", "keep_share", "keyword_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise M2BertError(f"{who}: {name} must lie in 0..1, got {getattr(self, name)}")
        counts = {"batch_size": 1, "negatives": 0, "max_query_tokens": 3, "chunk_tokens": 1}
        counts |= {"refresh_steps": 0, "mining_depth": 1, "mining_pool": 2}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise M2BertError(f"{who}: {name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.scale < math.inf:
            raise M2BertError(f"{who}: scale must be above 0, got {self.scale}; raise it")
        if self.loss == "opl" and self.scale != RANKING_SCALE:
            raise M2BertError(f"{who}: scale must be left alone with loss opl, which has none, got {self.scale}")
        if self.only_lexical and self.gradient_checkpointing:
            raise M2BertError(f"{who}: only_lexical runs no blocks to checkpoint; set gradient_checkpointing to false")
        if self.batch_size + self.negatives < 2:
            raise M2BertError(f"{who}: a batch needs 2 documents, got batch_size 1 without negatives; add negatives")
        if not self.lengths or min(self.lengths) < 16 or min(self.lengths.values()) < 0:
            raise M2BertError(f"{who}: lengths must map tokens (16 or more) to shares, got {self.lengths}")


def encode(model: Any, input_ids: Tensor, attention_mask: Tensor, chunk_tokens: int, *, cached: bool = False) -> Tensor:
    """Vectors (rows, dim) of padded rows, in groups of similar length, each padded to its own longest.

    `model` is an encoder, which pools, or a layer that makes vectors itself. With `cached` only the vectors are kept
    for the gradient, and a group's activations are made again when its turn comes: GradCache (arXiv 2101.06983) for
    any loss.
    """

    def pooled(ids: Tensor, mask: Tensor) -> Tensor:
        made = model(input_ids=ids, attention_mask=mask)
        return made if isinstance(made, Tensor) else made.pooler_output

    lengths = attention_mask.sum(dim=1)
    order = lengths.argsort(descending=True).tolist()
    vectors, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        group = order[start : start + max(1, chunk_tokens // longest)]
        rows = input_ids[group, :longest], attention_mask[group, :longest]
        vectors.append(checkpoint(pooled, *rows, use_reentrant=False) if cached else pooled(*rows))
        start += len(group)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.as_tensor(order)] = torch.arange(len(order))
    return torch.cat(vectors)[back.to(input_ids.device)]


def retrieval_loss(
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor], chunk_tokens: int, cached: bool = False
) -> LossFn:
    """`loss` of a batch of query_*, document_* and, optionally, `ignored`, as the training loop wants it."""

    def loss_of(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        sides = [
            encode(model, inputs[f"{side}_input_ids"], inputs[f"{side}_attention_mask"], chunk_tokens, cached=cached)
            for side in ("query", "document")
        ]
        return loss(sides[0], sides[1], inputs.get("ignored"))

    return loss_of


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
        refresh_steps = config.refresh_steps
        scorer = model_scorer(
            lambda ids, mask: encode(model, ids, mask, config.chunk_tokens),
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
        batches_per_step=config.accumulate * world,
        folder=output / (f"mined-{rank}" if world > 1 else "mined"),
        seed=config.seed,
    )
    mining = Mining(labelled, scorer, settings)
    mining.begin(resumed=config.resume and last_checkpoint(output) is not None)
    return mining


def start_lexical_features(model: Any, sources: Sequence[LabelledSource], ids: SpecialIds) -> None:
    """Weigh each piece by its inverse document frequency, special tokens by 0; without documents all stay alike."""
    if not sources:
        return
    weights = inverse_document_frequencies(sources, len(model.lexical_features.weight))
    weights[sorted(ids.unmaskable)] = 0.0
    with torch.no_grad():
        model.lexical_features.weight.copy_(torch.from_numpy(weights))


def finetune(config: FinetuneConfig, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Fine-tune the encoder of `config.init` and save it in the folder `model` of `config.output`.

    Continues from the newest complete checkpoint in `config.output` when there is one. Returns steps, tokens,
    seconds, tokens_per_second. Raises M2BertError for settings or data that cannot be used, test splits included.
    """
    from m2bert.model.checkpoints import load_model, save_model, with_pooling

    config.check()
    tokenizer = load_tokenizer(config.tokenizer)
    model, _ = load_model(config.init)
    torch.manual_seed(config.seed)  # fresh layers are drawn
    new_lexical = config.lexical_features not in (0, model.config.lexical_features)
    with_pooling(model, config.pooling, config.bilinear_features, config.lexical_features)
    if config.only_lexical and model.lexical_features is None:
        raise M2BertError(
            "finetune: only_lexical needs a model with lexical features, got none; "
            "pass --set lexical_features=4096 or another start"
        )
    longest, positions = max(config.lengths), model.config.max_position_embeddings
    if max(longest, config.max_query_tokens) > positions and not config.only_lexical:
        raise M2BertError(
            f"finetune: lengths must be within the model's {positions} positions, got "
            f"{longest} for documents and {config.max_query_tokens} for queries; lower them"
        )
    settings = ContrastSettings(**{name: getattr(config, name) for name in ContrastSettings.__dataclass_fields__})
    labelled, cloze = load_sources(config, tokenizer, on_progress)
    if new_lexical:
        start_lexical_features(model, labelled, special_ids(tokenizer))
    batches = ContrastBatches(
        labelled, cloze, special_ids(tokenizer), settings, weights=config.weights, seed=config.seed
    )
    for source, chance in zip(batches.sources, batches.chances, strict=True):
        logger.info("%-28s %5.1f %% of the batches", source.name, 100 * chance)
    output = prepare_output(config)
    mining = mined_negatives(config, labelled, model, tokenizer)
    if mining is not None:
        batches.negatives_of = mining.negatives_of
    model.train()
    options: dict[str, Any] = {} if config.loss == "opl" else {"scale": config.scale}
    loss = partial(LOSSES[config.loss], **options)
    loss_of = retrieval_loss(loss, config.chunk_tokens, config.cached)
    result = run_training(
        config,
        model.lexical_features if config.only_lexical else model,
        batches,
        loss_of,
        stage=f"finetuning ({config.loss})",
        on_progress=on_progress,
        callbacks=[] if mining is None else [mining],
    )
    if is_main_process():
        save_model(model, tokenizer, output / "model", dtype=torch.bfloat16 if config.bf16_weights else torch.float32)
    return result
