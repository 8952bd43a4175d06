"""Distillation of a short-context teacher into a long-context encoder: `m2bert distill`.

The teacher reads a text segment by segment; the student reads it whole, and the mean of its token states over every
segment is drawn to the teacher's vector of that segment (the prototype loss of arXiv 2402.07440, section 4.3, for
every stretch of a text instead of its beginning). The mean over a document is then what the teacher would make of all
of it.
Test: tests/train/test_distill.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2bert.data.examples import SpecialIds, special_ids
from m2bert.data.pairs import load_pairs
from m2bert.data.segments import SegmentBatches, Window, choose_windows, segment_bounds, windows_of
from m2bert.data.tokens import load_tokens
from m2bert.errors import M2BertError
from m2bert.train.budget import OnProgress, Progress, is_main_process
from m2bert.train.losses import prototype, ranking_agreement
from m2bert.train.pretrain import model_config
from m2bert.train.settings import DistillConfig
from m2bert.train.trainer import load_run_tokenizer, prepare_output, run_training

logger = logging.getLogger(__name__)


def load_windows(config: DistillConfig, tokenizer: Any, on_progress: OnProgress | None) -> list[Window]:
    """The windows of text that the settings choose, the same for the same settings and files."""

    def report(documents: int, tokens: int) -> None:
        if on_progress is not None:
            on_progress(Progress("tokenising", step=documents, tokens=tokens))

    cache = config.cache or str(Path(config.output) / "cache")
    groups: dict[str, list[Window]] = {}
    if config.data:
        store = load_tokens(config.data, tokenizer, cache, on_progress=report, who="distill")
        groups |= windows_of(store, config.window_tokens)
    if config.pairs or config.loco:
        data = load_pairs(config.pairs, config.loco, tokenizer, cache, on_progress=report, who="distill")
        documents = windows_of(data.documents, config.window_tokens)
        queries = windows_of(data.queries, config.window_tokens, is_query=True)
        groups |= {f"documents/{name}": windows for name, windows in documents.items()}
        groups |= {f"queries/{name}": windows for name, windows in queries.items()}
    return choose_windows(groups, config.text_tokens, config.weights, config.seed)


def open_teacher(config: DistillConfig) -> Any:
    """The teacher, with its vectors kept in the run's cache, so that an interrupted run goes on."""
    from m2bert.encoders.cache import CachedEncoder
    from m2bert.encoders.opening import open_encoder

    cache = config.cache or str(Path(config.output) / "cache")
    encoder = open_encoder(config.teacher)
    return CachedEncoder(encoder, Path(cache) / "teacher", f"overflow={getattr(encoder, 'overflow', 'truncate')}")


def teacher_vectors(
    teacher: Any, windows: Sequence[Window], tokenizer: Any, segment_tokens: int, on_progress: OnProgress | None = None
) -> NDArray[np.float32]:
    """The teacher's unit vectors (segments, dim) of all segments of `windows`, queries as queries."""
    parts = []
    for window in windows:
        bounds = segment_bounds(len(window.ids), segment_tokens)
        parts += [(window.ids[a:b], window.is_query) for a, b in pairwise(bounds)]
    texts = tokenizer.batch_decode([ids.tolist() for ids, _ in parts])
    # In order of length, so that the teacher's batches hold little padding.
    order = np.argsort([len(ids) for ids, _ in parts], kind="stable")
    vectors: NDArray[np.float32] | None = None
    total, before = sum(len(ids) for ids, _ in parts), 0
    for is_query in (True, False):
        chosen = [int(number) for number in order if parts[number][1] == is_query]
        if not chosen:
            continue
        tokens = sum(len(parts[number][0]) for number in chosen)
        report = _reporter(on_progress, before, tokens, total)
        rows = _encode(teacher, [texts[number] for number in chosen], is_query, report)
        vectors = np.empty((len(parts), rows.shape[1]), dtype=np.float32) if vectors is None else vectors
        vectors[chosen] = rows
        before += tokens
    assert vectors is not None
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise M2BertError("distill: the teacher's vectors must be finite and not zero, got others; use another teacher")
    return vectors / norms


def _encode(teacher: Any, texts: list[str], is_query: bool, report: Callable[[int, int], None]) -> NDArray[np.float32]:
    if is_query:
        return np.asarray(teacher.encode(texts, progress=report), dtype=np.float32)
    made = teacher.encode_documents(texts, progress=report)
    lost = sum(document.num_truncated > 0 for document in made)
    if lost:
        logger.warning("the teacher did not read all of %d of %d segments; lower segment_tokens", lost, len(made))
    return np.stack([document.vector for document in made])


def _reporter(on_progress: OnProgress | None, before: int, tokens: int, total: int) -> Callable[[int, int], None]:
    stage = f"the teacher reads {total / 1e6:.1f}M tokens"

    def report(done: int, of: int) -> None:
        if on_progress is not None:
            read = before + tokens * done // max(of, 1)
            on_progress(Progress(stage, fraction=read / max(total, 1), tokens=read))

    return report


def vocabulary_vectors(teacher: Any, tokenizer: Any, std: float) -> Tensor:
    """The teacher's vectors (pieces, dim) float32 of all pieces read as texts, centred, of standard deviation `std`.

    A mean of such rows is a crude embedding of a text already, which a student that starts near the identity has from
    its first step on.
    """
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    vectors = torch.from_numpy(np.array(teacher.encode([piece.removeprefix("##") for piece in pieces])))
    vectors = vectors.float() - vectors.float().mean(dim=0)
    return vectors * (std / vectors.std())


def new_student(config: DistillConfig, teacher: Any, tokenizer: Any, ids: SpecialIds) -> Any:
    """A new encoder of the settings' size whose word embeddings are the teacher's vectors of the pieces."""
    from m2bert.model.modeling import M2BertModel

    torch.manual_seed(config.seed)
    model = M2BertModel(model_config(config.preset, config.model, ids.vocab_size, "distill"))
    rows: Tensor = model.embeddings.word_embeddings.weight
    vectors = vocabulary_vectors(teacher, tokenizer, model.config.initializer_range)
    _check_dim(model, vectors.shape[1])
    own = torch.as_tensor([number for number in range(len(vectors)) if number not in ids.unmaskable])
    with torch.no_grad():
        rows[own] = vectors[own]
    return model


def _check_dim(model: Any, dim: int) -> None:
    if model.config.hidden_size != dim:
        raise M2BertError(
            f"distill: the student must have the teacher's {dim} channels, got {model.config.hidden_size}; "
            f"set hidden_size or choose another teacher"
        )


def segment_sums(states: Tensor, weights: Tensor, segment_ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Sums (segments, dim) of each segment's states (batch, seqlen, dim) times weights (batch, seqlen), and of weights.

    segment_ids (batch, seqlen) int64, -1 where a token belongs to none. The sums of weights are (segments,).
    """
    inside = segment_ids >= 0
    owners, own = segment_ids[inside], weights[inside]
    sums = states.new_zeros(segments, states.shape[-1]).index_add(0, owners, states[inside] * own[:, None])
    return sums, own.new_zeros(segments).index_add(0, owners, own)


def distillation_loss(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Prototype loss of segments and of whole windows, and the agreement of the rankings. -> scalar float32."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    teacher, windows = inputs["teacher"], inputs["window_ids"]
    encoder: Any = getattr(model, "module", model)  # inside of the wrapper of several processes
    with torch.autocast(states.device.type, enabled=False):
        weights = encoder.pooling_weights(states, ids, mask)
        sums, shares = segment_sums(states, weights, inputs["segment_ids"], len(teacher))
        size = len(ids), teacher.shape[1]
        # A window's vector is the sum of its segments': their weights, the lengths under a plain mean, count in both.
        whole = sums.new_zeros(size).index_add(0, windows, sums)
        wanted = teacher.new_zeros(size).index_add(0, windows, teacher * shares.detach()[:, None])
        return prototype(sums, teacher) + prototype(whole, wanted) + ranking_agreement(sums, teacher)


def distill(config: DistillConfig, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Train a student on a teacher's vectors and save it in the folder `model` of `config.output`.

    Continues from the newest complete checkpoint in `config.output` when there is one. Returns steps, tokens,
    seconds, tokens_per_second, segments. Raises M2BertError for settings, data or models that do not fit.
    """
    from m2bert.model.checkpoints import load_model, save_model, with_pooling

    config.check()
    tokenizer = load_run_tokenizer(config, "distill")
    ids = special_ids(tokenizer)
    teacher = open_teacher(config)
    if config.init:
        model, _ = load_model(config.init)
    else:
        model = new_student(config, teacher, tokenizer, ids)
    with_pooling(model, config.pooling)
    if config.window_tokens + 2 > model.config.max_position_embeddings:
        raise M2BertError(
            f"distill: window_tokens + 2 must be within the student's {model.config.max_position_embeddings} "
            f"positions, got {config.window_tokens}; lower it"
        )
    windows = load_windows(config, tokenizer, on_progress)
    vectors = teacher_vectors(teacher, windows, tokenizer, config.segment_tokens, on_progress)
    _check_dim(model, vectors.shape[1])
    batches = SegmentBatches(
        windows, vectors, ids, segment_tokens=config.segment_tokens, batch_tokens=config.batch_tokens, seed=config.seed
    )
    output = prepare_output(config)
    logger.info("%d windows, %d segments, %d parameters", len(windows), len(vectors), model.num_parameters())
    model.train()
    result = run_training(config, model, batches, distillation_loss, stage="distilling", on_progress=on_progress)
    if is_main_process():
        save_model(model, tokenizer, output / "model", dtype=torch.bfloat16 if config.bf16_weights else torch.float32)
    return {**result, "segments": len(vectors)}
