"""Summed cross-entropy over a large vocabulary, worked on in pieces that stay in the cache: cross_entropy_sum.

Test: tests/model/test_cross_entropy.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits worked on at a time: 2 MB in float32. All at once, the C library maps fresh pages for every intermediate
# result, which costs several times the arithmetic (2,400 x 16,384 bfloat16 logits, one thread, forward and
# backward: 340 ms at once, 105 ms in pieces).
PIECE = 1 << 19


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over rows of the cross-entropy of `logits (n, vocab)` against `labels (n,)` int64; a scalar.

    Computed in float32 (float64 for float64) whatever the dtype of the logits.
    """
    if logits.device.type != "cpu":
        return F.cross_entropy(logits.float(), labels, reduction="sum")
    total: Tensor = _CrossEntropySum.apply(logits, labels)
    return total


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        normalisers = logits.new_empty(logits.shape[0], dtype=dtype)
        total = logits.new_zeros((), dtype=dtype)
        for piece, norm, label in _pieces(logits, normalisers, labels):
            scores = piece.to(dtype, copy=True)
            picked = scores.gather(1, label[:, None]).squeeze(1)
            largest = scores.amax(dim=1)
            norm.copy_(scores.sub_(largest[:, None]).exp_().sum(dim=1).log_().add_(largest))
            total += (norm - picked).sum()
        ctx.save_for_backward(logits, normalisers, labels)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor, None]:
        logits, normalisers, labels = ctx.saved_tensors
        dlogits = torch.empty_like(logits)
        pieces = zip(_pieces(logits, normalisers, labels), _rows(dlogits, logits.shape[1]), strict=True)
        for (piece, norm, label), dpiece in pieces:
            probabilities = piece.to(norm.dtype, copy=True).sub_(norm[:, None]).exp_()
            probabilities.scatter_add_(1, label[:, None], -torch.ones_like(norm)[:, None])
            torch.mul(probabilities, dtotal, out=probabilities)
            dpiece.copy_(probabilities)
        return dlogits, None


def _rows(x: Tensor, vocab: int) -> tuple[Tensor, ...]:
    return x.split(max(PIECE // vocab, 1))


def _pieces(logits: Tensor, normalisers: Tensor, labels: Tensor) -> Any:
    vocab = logits.shape[1]
    return zip(_rows(logits, vocab), _rows(normalisers, vocab), _rows(labels, vocab), strict=True)
