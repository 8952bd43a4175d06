"""Modules that own the parameters of one operator each.
Test: tests/ops/test_nn.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from m2ops._blockdiag import blockdiag_matmul
from m2ops._fft_conv import fft_conv
from m2ops._short_conv import short_conv


class BlockDiagLinear(nn.Module):
    """Linear layer with a block-diagonal matrix: weight (nblocks, out / nblocks, in / nblocks).

    Raises ValueError if nblocks does not divide both sizes.
    """

    def __init__(self, in_features: int, out_features: int, nblocks: int, bias: bool = True) -> None:
        super().__init__()
        if in_features % nblocks or out_features % nblocks:
            raise ValueError(
                f"BlockDiagLinear: nblocks must divide in_features and out_features, "
                f"got {nblocks} for {in_features} and {out_features}"
            )
        self.weight = nn.Parameter(torch.empty(nblocks, out_features // nblocks, in_features // nblocks))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.normal_(self.weight, std=math.sqrt(nblocks / (3 * in_features)))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return blockdiag_matmul(x, self.weight, self.bias)


class LongConv(nn.Module):
    """Depthwise long convolution with explicit taps: `k` (dim, max_seqlen), `k_rev` where bidirectional, `skip`."""

    def __init__(self, dim: int, max_seqlen: int, bidirectional: bool = True) -> None:
        super().__init__()
        std = 1 / math.sqrt(max_seqlen)
        self.k = nn.Parameter(torch.randn(dim, max_seqlen) * std)
        self.k_rev = nn.Parameter(torch.randn(dim, max_seqlen) * std) if bidirectional else None
        self.skip = nn.Parameter(torch.randn(dim))

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """u (batch, seqlen, dim) -> the same shape."""
        return fft_conv(u, self.k, self.k_rev, self.skip, mask=mask, layout="bld")


class ShortConv(nn.Module):
    """Depthwise causal convolution: weight (dim, width), bias (dim,)."""

    def __init__(self, dim: int, width: int = 3) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(dim, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (batch, seqlen, dim) -> the same shape."""
        return short_conv(x, self.weight, self.bias, mask, layout="bld")
