"""Distillation of short-context teachers into a long-context encoder: `m2bert distill`.

A teacher reads a text segment by segment; the student reads it whole, and what every segment adds to its embedding is
drawn to the teachers' vector of that segment (the prototype loss of arXiv 2402.07440, section 4.3, for every stretch
of a text instead of its beginning). The sum over a document is then what the teachers would make of all of it.
Test: tests/train/test_distill.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from m2bert.data.examples import SpecialIds, special_ids
from m2bert.data.pairs import load_pairs
from m2bert.data.segments import SegmentBatches, Window, choose_windows, windows_of
from m2bert.data.tokens import load_tokens
from m2bert.encoders.devices import chosen_device
from m2bert.errors import M2BertError
from m2bert.train.budget import OnProgress, Progress, is_main_process
from m2bert.train.losses import prototype, ranking_agreement
from m2bert.train.pretrain import model_config
from m2bert.train.settings import DistillConfig
from m2bert.train.teachers import TeacherSpace, open_teachers, teacher_vectors, vocabulary_vectors
from m2bert.train.trainer import LOG_NAME, append_log, last_checkpoint, load_run_tokenizer, prepare_output, run_training
from m2bert.train.validation import evaluating

logger = logging.getLogger(__name__)
# Segments for each number of what is pooled, from which a projection's first weights are fitted.
SEGMENTS_PER_FEATURE = 4
# Windows of text to train on, and of held-out text.
Groups = tuple[list[Window], list[Window]]


def cache_folder(config: DistillConfig) -> Path:
    """Where tokens and the teachers' vectors are kept."""
    return Path(config.cache or Path(config.output) / "cache")


def load_windows(config: DistillConfig, tokenizer: Any, on_progress: OnProgress | None = None) -> Groups:
    """The windows of text that the settings choose; the same for the same settings and files."""

    def report(documents: int, tokens: int) -> None:
        if on_progress is not None:
            on_progress(Progress("tokenising", step=documents, tokens=tokens))

    def plain(sources: list[str]) -> dict[str, list[Window]]:
        if not sources:
            return {}
        store = load_tokens(sources, tokenizer, cache_folder(config), on_progress=report, who="distill")
        return windows_of(store, config.window_tokens)

    groups = plain(config.data)
    if config.pairs or config.loco:
        cache = cache_folder(config)
        data = load_pairs(config.pairs, config.loco, tokenizer, cache, on_progress=report, who="distill")
        documents = windows_of(data.documents, config.window_tokens)
        queries = windows_of(data.queries, config.window_tokens, is_query=True)
        groups |= {f"documents/{name}": windows for name, windows in documents.items()}
        groups |= {f"queries/{name}": windows for name, windows in queries.items()}
    held_out = plain(config.validation)
    return (
        choose_windows(groups, config.text_tokens, config.weights, config.seed),
        choose_windows(held_out, config.validation_tokens, {}, config.seed) if held_out else [],
    )


def make_batches(
    config: DistillConfig,
    groups: Groups,
    teachers: list[Any],
    tokenizer: Any,
    on_progress: OnProgress | None,
) -> tuple[SegmentBatches, SegmentBatches | None]:
    """Batches to train on and, if there is held-out text, batches of that, each with the teachers' joined vectors."""
    ids = special_ids(tokenizer)
    space: TeacherSpace | None = None
    made: list[SegmentBatches] = []
    for windows in groups:
        if not windows:
            continue
        size = config.segment_tokens
        read = [teacher_vectors(teacher, windows, tokenizer, size, on_progress) for teacher in teachers]
        space = space or TeacherSpace(read)
        vectors = space.joined(read)
        made.append(
            SegmentBatches(
                windows, vectors, ids, segment_tokens=size, batch_tokens=config.batch_tokens, seed=config.seed
            )
        )
    return made[0], made[1] if len(made) > 1 else None


def new_student(config: DistillConfig, teacher: Any, tokenizer: Any, ids: SpecialIds) -> Any:
    """A new encoder of the settings' size whose word embeddings are the teacher's vectors of the pieces."""
    from m2bert.model.modeling import M2BertModel

    torch.manual_seed(config.seed)
    model = M2BertModel(model_config(config.preset, config.model, ids.vocab_size, "distill"))
    rows: Tensor = model.embeddings.word_embeddings.weight
    vectors = vocabulary_vectors(teacher, tokenizer, model.config.initializer_range)
    if model.config.hidden_size != vectors.shape[1]:
        raise M2BertError(
            f"distill: a new student must have the first teacher's {vectors.shape[1]} channels, got "
            f"{model.config.hidden_size}; set hidden_size or choose another teacher"
        )
    own = torch.as_tensor([number for number in range(len(vectors)) if number not in ids.unmaskable])
    with torch.no_grad():
        rows[own] = vectors[own]
    return model


def open_student(config: DistillConfig, teachers: list[Any], tokenizer: Any, ids: SpecialIds) -> Any:
    """The model to start from, or a new one. Raises M2BertError where it does not fit the teachers or the windows."""
    from m2bert.model.checkpoints import load_model, with_pooling

    model = load_model(config.init)[0] if config.init else new_student(config, teachers[0], tokenizer, ids)
    with_pooling(model, config.pooling, config.bilinear_features, config.projection_dim)
    dim, found = sum(teacher.dim for teacher in teachers), model.config.embedding_size
    if found != dim:
        raise M2BertError(
            f"distill: the student's embeddings must be as long as the teachers' together, {dim}, got {found}; "
            f"set projection_dim={dim} or choose other teachers"
        )
    if config.window_tokens + 2 > model.config.max_position_embeddings:
        raise M2BertError(
            f"distill: window_tokens + 2 must be within the student's {model.config.max_position_embeddings} "
            f"positions, got {config.window_tokens}; lower it"
        )
    return model


def segment_sums(states: Tensor, weights: Tensor, segment_ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Sums (segments, dim) of each segment's states (batch, seqlen, dim) times weights (batch, seqlen), and of weights.

    segment_ids (batch, seqlen) int64, -1 where a token belongs to none. The sums of weights are (segments,).
    """
    inside = segment_ids >= 0
    owners, own = segment_ids[inside], weights[inside]
    sums = states.new_zeros(segments, states.shape[-1]).index_add(0, owners, states[inside] * own[:, None])
    return sums, own.new_zeros(segments).index_add(0, owners, own)


def pooled_segments(model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What each segment adds to what is pooled (segments, pooled_size), and its weight (segments,); float32."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    encoder: Any = getattr(model, "module", model)  # inside of the wrapper of several processes
    with torch.autocast(states.device.type, enabled=False):
        weights = encoder.pooling_weights(states, ids, mask)
        return segment_sums(encoder.features(states), weights, inputs["segment_ids"], len(inputs["teacher"]))


def distillation_loss(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Prototype loss of segments and of whole windows, and the agreement of the rankings. -> scalar float32."""
    pooled, shares = pooled_segments(model, inputs)
    teacher, windows = inputs["teacher"], inputs["window_ids"]
    encoder: Any = getattr(model, "module", model)
    with torch.autocast(pooled.device.type, enabled=False):
        sums = encoder.projected(pooled)
        size = len(inputs["input_ids"]), teacher.shape[1]
        # A window's vector is the sum of its segments': their weights, the lengths under a plain mean, count in both.
        whole = sums.new_zeros(size).index_add(0, windows, sums)
        wanted = teacher.new_zeros(size).index_add(0, windows, teacher * shares.detach()[:, None])
        return prototype(sums, teacher) + prototype(whole, wanted) + ranking_agreement(sums, teacher)


def fit_projection_to(model: Any, batches: SegmentBatches) -> None:
    """Set a student's projection to the least squares of the teachers' vectors over the first segments of `batches`.

    Without this it would pull the states about until it has found the teachers' space.
    """
    size = model.config.pooled_size
    moment, cross = torch.zeros(size, size), torch.zeros(size, model.config.projection_dim)
    seen = 0
    with evaluating(model, bf16=False):
        for index in range(len(batches)):
            inputs = {name: torch.as_tensor(array).to(model.device) for name, array in batches[index].items()}
            rows = torch.nn.functional.normalize(pooled_segments(model, inputs)[0], dim=1).cpu()
            moment, cross, seen = moment + rows.T @ rows, cross + rows.T @ inputs["teacher"].cpu(), seen + len(rows)
            if seen >= SEGMENTS_PER_FEATURE * size:
                break
        ridge = 1e-3 * moment.diagonal().mean() * torch.eye(size)
        model.projection.weight.copy_(torch.linalg.solve(moment + ridge, cross).T)


class _HeldOutLoss(TrainerCallback):
    """Writes the mean loss of held-out batches into the log at every checkpoint."""

    def __init__(self, batches: SegmentBatches, log: Path, bf16: bool) -> None:
        self.batches, self.log, self.bf16 = batches, log, bf16

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if is_main_process():
            append_log(self.log, {"step": state.global_step, "held_out_loss": self.loss(model)})

    def loss(self, model: Any) -> float:
        losses = []
        with evaluating(model, self.bf16):
            for index in range(len(self.batches)):
                inputs = {name: torch.as_tensor(x).to(model.device) for name, x in self.batches[index].items()}
                losses.append(float(distillation_loss(model, inputs)))
        return float(np.mean(losses))


def distill(
    config: DistillConfig,
    on_progress: OnProgress | None = None,
    *,
    windows: Groups | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train a student on its teachers' vectors and save it in the folder `model` of `config.output`.

    windows: to train on and held out, in place of those that the settings choose. callbacks: of transformers' Trainer.
    Continues from the newest complete checkpoint in `config.output` when there is one. Returns steps, tokens,
    seconds, tokens_per_second, segments and, with held-out text, held_out_loss. Raises M2BertError for settings, data
    or models that do not fit.
    """
    from m2bert.model.checkpoints import save_model

    config.check()
    tokenizer = load_run_tokenizer(config, "distill")
    ids = special_ids(tokenizer)
    teachers = open_teachers(config.teacher, cache_folder(config))
    model = open_student(config, teachers, tokenizer, ids)
    groups = windows or load_windows(config, tokenizer, on_progress)
    batches, held_out = make_batches(config, groups, teachers, tokenizer, on_progress)
    output = prepare_output(config)
    logger.info(
        "%d windows, %d segments, %d parameters", len(batches.windows), len(batches.vectors), model.num_parameters()
    )
    if model.config.projection_dim and not (config.resume and last_checkpoint(output)):
        fit_projection_to(model.to(chosen_device(None, "distill")), batches)
    model.train()
    watch = [_HeldOutLoss(held_out, output / LOG_NAME, config.bf16)] if held_out else []
    result = run_training(
        config, model, batches, distillation_loss, stage="distilling", on_progress=on_progress,
        callbacks=[*watch, *callbacks],
    )  # fmt: skip
    if is_main_process():
        save_model(model, tokenizer, output / "model", dtype=torch.bfloat16 if config.bf16_weights else torch.float32)
    told = {"held_out_loss": watch[0].loss(model)} if watch else {}
    return {**result, "segments": len(batches.vectors), **told}
