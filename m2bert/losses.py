"""Losses of retrieval training on query and document vectors.

Every loss takes queries (nq, dim) and documents (nd, dim), un-normalised, of which document i < nq is the positive
of query i and the rest are extra negatives. Queries and documents are embedded separately, so that neither is
padded to the other's length. May import torch and m2bert.errors. Test: tests/test_losses.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from m2bert.errors import M2BertError

MNRL_SCALE = 20.0


def cosine_matrix(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosines (nq, nd) in float32. Raises M2BertError when the shapes do not fit."""
    if queries.dim() != 2 or documents.dim() != 2 or queries.shape[1] != documents.shape[1]:
        raise M2BertError(
            f"cosine_matrix: queries (nq, dim) and documents (nd, dim) must have the same dim, got "
            f"{tuple(queries.shape)} and {tuple(documents.shape)}"
        )
    # Out of autocast: bfloat16 has three digits, too few for a temperature of 1/20.
    with torch.autocast(queries.device.type, enabled=False):
        return F.normalize(queries.float(), dim=-1) @ F.normalize(documents.float(), dim=-1).T


def _check_positives(who: str, queries: Tensor, documents: Tensor) -> None:
    if len(queries) == 0 or len(documents) < len(queries):
        raise M2BertError(
            f"{who}: needs a positive document for each of at least one query, got {len(queries)} queries and "
            f"{len(documents)} documents"
        )


def orthogonal_projection(queries: Tensor, documents: Tensor) -> Tensor:
    """Orthogonal projection loss: mean squared distance of cosines from 1 (positives) and 0 (all others).

    Positives and negatives weigh the same in total, as in the paper's recipe, which repeats the positive once per
    negative; a batch of one query is enough. Source: arXiv 2402.07440, section 4.3. -> scalar float32.
    """
    _check_positives("orthogonal_projection", queries, documents)
    cosines = cosine_matrix(queries, documents)
    positive = torch.eye(*cosines.shape, dtype=torch.bool, device=cosines.device)
    loss = (cosines[positive] - 1).square().mean()
    if cosines.shape[1] == 1:
        return loss
    return 0.5 * loss + 0.5 * cosines[~positive].square().mean()


def multiple_negatives_ranking(queries: Tensor, documents: Tensor, scale: float = MNRL_SCALE) -> Tensor:
    """MNRL: cross-entropy of each query's positive among all documents, of `scale` times the cosines. -> scalar."""
    _check_positives("multiple_negatives_ranking", queries, documents)
    scores = scale * cosine_matrix(queries, documents)
    return F.cross_entropy(scores, torch.arange(len(queries), device=scores.device))


def symmetric_ranking(queries: Tensor, documents: Tensor, scale: float = MNRL_SCALE) -> Tensor:
    """Mean of MNRL from queries to documents and from the positive documents back to the queries. -> scalar."""
    forward = multiple_negatives_ranking(queries, documents, scale)
    return 0.5 * (forward + multiple_negatives_ranking(documents[: len(queries)], queries, scale))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "opl": orthogonal_projection,
    "mnrl": multiple_negatives_ranking,
    "mnrl-symmetric": symmetric_ranking,
}
