"""Block-diagonal products against torch.bmm and dense products, in the shapes of M2-BERT."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import m2ops
from m2ops import _blockdiag

DIM, INTER, NBLOCKS, TOKENS = 768, 3072, 4, 8192


def bmm_product(x: Tensor, weight: Tensor) -> Tensor:
    """The published code's way: reshape, transpose, bmm, transpose back."""
    blocks = x.view(x.shape[0], weight.shape[0], -1).transpose(0, 1)
    return torch.bmm(blocks, weight.transpose(1, 2)).transpose(0, 1).reshape(x.shape[0], -1)


def bmm_glu(x: Tensor, w_in: Tensor, w_out: Tensor, bias: Tensor) -> Tensor:
    gate, value = bmm_product(x, w_in).chunk(2, dim=-1)
    return bmm_product(F.gelu(gate) * value, w_out) + bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blockdiag_matmul(versus: Callable[..., None], dtype: torch.dtype) -> None:
    x, weight = (
        torch.randn(TOKENS, DIM).to(dtype),
        (torch.randn(NBLOCKS, DIM // NBLOCKS, DIM // NBLOCKS) / 14).to(dtype),
    )
    versus(
        "blockdiag_matmul",
        f"{str(dtype).removeprefix('torch.')}, {TOKENS} tokens, {DIM} -> {DIM}",
        lambda: m2ops.blockdiag_matmul(x, weight),
        {"torch.bmm": lambda: bmm_product(x, weight)},
        exact=m2ops.blockdiag_matmul_ref(x.double(), weight.double()),
        flops=2 * TOKENS * weight.numel() if dtype == torch.float32 else 0.0,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blockdiag_glu(versus: Callable[..., None], dtype: torch.dtype) -> None:
    x, bias = torch.randn(TOKENS, DIM).to(dtype), torch.randn(DIM).to(dtype)
    w_in = (torch.randn(NBLOCKS, 2 * INTER // NBLOCKS, DIM // NBLOCKS) / 14).to(dtype)
    w_out = (torch.randn(NBLOCKS, DIM // NBLOCKS, INTER // NBLOCKS) / 28).to(dtype)
    wide = [t.double() for t in (x, w_in, w_out, bias)]
    versus(
        "blockdiag_glu",
        f"{str(dtype).removeprefix('torch.')}, {TOKENS} tokens, {DIM} -> {INTER}",
        lambda: m2ops.blockdiag_glu(x, w_in, w_out, bias),
        {
            "torch.bmm": lambda: bmm_glu(x, w_in, w_out, bias),
            "products by chunks": lambda: _blockdiag._blockdiag_glu(x, w_in, w_out, bias),
        },
        exact=m2ops.blockdiag_glu_ref(*wide),
        bound=2e-6 if dtype == torch.float32 else 1e-2,
        flops=2 * TOKENS * (w_in.numel() + w_out.numel()) if dtype == torch.float32 else 0.0,
        rounds=7 if dtype == torch.float32 else 3,
    )


@pytest.mark.parametrize(
    ("dtype", "tokens", "dim", "inter"),
    [
        (torch.float32, TOKENS, DIM, INTER),
        (torch.float32, 2048, 384, 1536),  # the mini configuration
        (torch.bfloat16, 2048, 384, 1536),
    ],
    ids=str,
)
def test_blockdiag_glu_training(
    versus: Callable[..., None], dtype: torch.dtype, tokens: int, dim: int, inter: int
) -> None:
    x, dout, bias = (torch.randn(shape).to(dtype) for shape in ((tokens, dim), (tokens, dim), (dim,)))
    w_in = (torch.randn(NBLOCKS, 2 * inter // NBLOCKS, dim // NBLOCKS) / 14).to(dtype)
    w_out = (torch.randn(NBLOCKS, dim // NBLOCKS, inter // NBLOCKS) / 28).to(dtype)
    leaves = [t.requires_grad_() for t in (x, w_in, w_out, bias)]
    wide = [t.detach().double().requires_grad_() for t in leaves]

    @torch.no_grad()
    def by_chunks() -> Tensor:
        m2ops.blockdiag_glu(*leaves)
        grads = _blockdiag._blockdiag_glu_bwd(dout, x, w_in, w_out)
        dout.sum(0)
        return grads[1]

    def gradients(glu: Callable[..., Tensor], inputs: list[Tensor], dout: Tensor) -> Tensor:
        return torch.autograd.grad(glu(*inputs), inputs, dout)[1]

    versus(
        "blockdiag_glu, forward and backward",
        f"{str(dtype).removeprefix('torch.')}, {tokens} tokens, {dim} -> {inter}",
        lambda: gradients(m2ops.blockdiag_glu, leaves, dout),
        {
            "torch.bmm": lambda: gradients(bmm_glu, leaves, dout),
            "backward by chunks": by_chunks,
        },
        exact=gradients(m2ops.blockdiag_glu_ref, wide, dout.double()),
        bound=2e-6 if dtype == torch.float32 else 1e-2,
        flops=2 * tokens * (w_in.numel() + w_out.numel()) * 11 / 3 if dtype == torch.float32 else 0.0,
        rounds=7 if dtype == torch.float32 else 3,
    )


def test_monarch_matmul(versus: Callable[..., None]) -> None:
    x, w1, w2 = torch.randn(TOKENS, 1024), torch.randn(32, 32, 32) / 6, torch.randn(32, 32, 32) / 6
    dense = torch.randn(1024, 1024)
    versus(
        "monarch_matmul",
        f"float32, {TOKENS} tokens, 1024 = 32 x 32",
        lambda: m2ops.monarch_matmul(x, w1, w2),
        {"dense linear": lambda: F.linear(x, dense)},
        exact=m2ops.monarch_matmul_ref(x.double(), w1.double(), w2.double()),
        bound=2e-6,
    )
