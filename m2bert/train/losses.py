"""Losses of retrieval training on scores, and of distillation on vectors.

Every retrieval loss takes the scores (nq, nd) of queries and documents, cosines or a mean of them
(m2bert.train.scores); document i < nq is the positive of query i and the rest are extra negatives. `ignored` (nq, nd)
bool marks pairs that are neither, because the document answers that query too.
Test: tests/train/test_losses.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from m2bert.errors import M2BertError
from m2bert.train.settings import RANKING_SCALE


def cosine_matrix(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosines (nq, nd) of vectors (nq, dim) and (nd, dim) in float32, or float64 of such.

    Raises M2BertError when the shapes do not fit.
    """
    if queries.dim() != 2 or documents.dim() != 2 or queries.shape[1] != documents.shape[1]:
        raise M2BertError(
            f"cosine_matrix: queries (nq, dim) and documents (nd, dim) must have the same dim, got "
            f"{tuple(queries.shape)} and {tuple(documents.shape)}"
        )
    # Out of autocast: bfloat16 has three digits, too few for a temperature of 1/20.
    with torch.autocast(queries.device.type, enabled=False):
        queries, documents = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (queries, documents))
        return F.normalize(queries, dim=-1) @ F.normalize(documents, dim=-1).T


def _check_positives(who: str, scores: Tensor) -> None:
    if scores.dim() != 2 or not 0 < scores.shape[0] <= scores.shape[1]:
        raise M2BertError(
            f"{who}: needs scores (queries, documents) with a positive document for each of at least one query, got "
            f"{tuple(scores.shape)}"
        )


def _own_and_others(scores: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
    """Masks (nq, nd) bool of each query's own positive and of what counts as its negatives."""
    own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    return own, ~own if ignored is None else ~own & ~ignored


def orthogonal_projection(scores: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Orthogonal projection loss: mean squared distance of scores from 1 (positives) and 0 (all others).

    Positives and negatives weigh the same in total, as in the paper's recipe, which repeats the positive once per
    negative; a batch of one query is enough. Source: arXiv 2402.07440, section 4.3. -> scalar float32.
    """
    _check_positives("orthogonal_projection", scores)
    own, others = _own_and_others(scores, ignored)
    loss = (scores[own] - 1).square().mean()
    if not others.any():
        return loss
    return 0.5 * loss + 0.5 * scores[others].square().mean()


def multiple_negatives_ranking(
    scores: Tensor, ignored: Tensor | None = None, *, scale: float = RANKING_SCALE
) -> Tensor:
    """MNRL: cross-entropy of each query's positive among all documents, of `scale` times the scores. -> scalar."""
    _check_positives("multiple_negatives_ranking", scores)
    own, others = _own_and_others(scores, ignored)
    logits = (scale * scores).masked_fill(~(own | others), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(scores), device=scores.device))


def symmetric_ranking(scores: Tensor, ignored: Tensor | None = None, *, scale: float = RANKING_SCALE) -> Tensor:
    """Mean of MNRL from queries to documents and from the positive documents back to the queries. -> scalar."""
    forward = multiple_negatives_ranking(scores, ignored, scale=scale)
    positives = slice(len(scores))
    mirrored = None if ignored is None else ignored[:, positives].T
    return 0.5 * (forward + multiple_negatives_ranking(scores[:, positives].T, mirrored, scale=scale))


def cosent(scores: Tensor, ignored: Tensor | None = None, *, scale: float = RANKING_SCALE) -> Tensor:
    """CoSENT: log(1 + sum of exp(scale (negative - positive))) over all positive and negative scores of the batch.

    Ranks every positive pair above every negative one, those of other queries included. -> scalar float32.
    """
    _check_positives("cosent", scores)
    own, others = _own_and_others(scores, ignored)
    if not others.any():
        return (0.0 * scores).sum()
    logits = scale * scores
    return F.softplus(logits[others].logsumexp(dim=0) + (-logits[own]).logsumexp(dim=0))


def prototype(students: Tensor, teachers: Tensor) -> Tensor:
    """Prototype loss: mean of 1 - cosine of each row of `students (n, dim)` and the same row of `teachers`.

    Source: arXiv 2402.07440, section 4.3, written there as the similarity that is to be maximised. -> scalar float32.
    """
    return (1 - F.cosine_similarity(students.float(), teachers.float(), dim=-1)).mean()


def ranking_agreement(students: Tensor, teachers: Tensor, *, scale: float = RANKING_SCALE) -> Tensor:
    """How differently students (n, dim) rank the teachers (n, dim) than the teachers rank each other.

    The mean Kullback-Leibler divergence, in nats, of the softmax over `scale` times the cosines; 0 where
    students equal teachers. Cosines alone leave near neighbours alike; this tells them apart. -> scalar float32.
    """
    wanted = (scale * cosine_matrix(teachers, teachers)).log_softmax(dim=1)
    found = (scale * cosine_matrix(students, teachers)).log_softmax(dim=1)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


LOSSES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "opl": orthogonal_projection,
    "mnrl": multiple_negatives_ranking,
    "mnrl-symmetric": symmetric_ranking,
    "cosent": cosent,
}
