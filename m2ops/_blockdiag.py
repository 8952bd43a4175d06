"""Block-diagonal and Monarch matrix products: blockdiag_matmul, blockdiag_glu, monarch_matmul.

The schemas are in csrc/ops.cpp; these implementations call torch's batched GEMM (already at the limit of the
machine for one product) and serve every device. May import m2ops._library and _layout.
Test: tests/test_blockdiag.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor





def blockdiag_matmul_ref(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Plain-torch meaning of :func:`blockdiag_matmul`."""
    blocks = x.unflatten(-1, (weight.shape[0], weight.shape[2]))
    out = torch.einsum("...ni,noi->...no", blocks, weight).flatten(-2)
    return out if bias is None else out + bias


def blockdiag_glu_ref(x: Tensor, w_in: Tensor, w_out: Tensor, b_out: Tensor | None = None) -> Tensor:
    """Plain-torch meaning of :func:`blockdiag_glu`."""
    gate, value = blockdiag_matmul_ref(x, w_in).chunk(2, dim=-1)
    return blockdiag_matmul_ref(F.gelu(gate) * value, w_out, b_out)


def monarch_matmul_ref(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Plain-torch meaning of :func:`monarch_matmul`."""
    nblocks2, _, in2 = w2.shape
    hidden = blockdiag_matmul_ref(x, w1).unflatten(-1, (in2, nblocks2)).transpose(-1, -2).flatten(-2)
    out = blockdiag_matmul_ref(hidden, w2).unflatten(-1, (nblocks2, w2.shape[1]))
    return out.transpose(-1, -2).flatten(-2)
