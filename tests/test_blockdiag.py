"""blockdiag_matmul, blockdiag_glu and monarch_matmul against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import m2ops
from m2ops import _blockdiag
from m2ops.testing import assert_matches

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# A product of rounded numbers whose hidden values are rounded as well: four roundings instead of one.
GLU_BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def dense(weight: Tensor) -> Tensor:
    return torch.block_diag(*weight.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "weight"), [((5, 12), (4, 7, 3)), ((2, 9, 6), (1, 5, 6)), ((3, 2, 4, 10), (5, 1, 2))]
)
def test_blockdiag_matmul_matches_a_dense_matrix(
    shape: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, w = torch.randn(shape).to(dtype), torch.randn(weight).to(dtype)
    bias = torch.randn(weight[0] * weight[1]).to(dtype)
    exact = x.double() @ dense(w).t()
    assert_matches(m2ops.blockdiag_matmul(x, w), exact)
    assert_matches(m2ops.blockdiag_matmul(x, w, bias), exact + bias.double(), bound=2 * GLU_BOUNDS[dtype])


def glu_inputs(nblocks: int, nblocks_out: int, dtype: torch.dtype, tokens: int = 50) -> list[Tensor]:
    inter, dim = 48, 24
    w_in = torch.randn(nblocks, 2 * inter // nblocks, dim // nblocks) / 5
    w_out = torch.randn(nblocks_out, dim // nblocks_out, inter // nblocks_out) / 5
    return [t.to(dtype) for t in (torch.randn(2, tokens, dim), w_in, w_out, torch.randn(dim))]


def glu_exact(x: Tensor, w_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    gate, value = (x.double() @ dense(w_in).t()).chunk(2, dim=-1)
    return (F.gelu(gate) * value) @ dense(w_out).t() + b_out.double()


BLOCKS = [(4, 4), (1, 1), (2, 4), (3, 3), (4, 2), (6, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("nblocks", "nblocks_out"), BLOCKS)
def test_blockdiag_glu_matches_dense_matrices(nblocks: int, nblocks_out: int, dtype: torch.dtype) -> None:
    args = glu_inputs(nblocks, nblocks_out, dtype)
    assert_matches(m2ops.blockdiag_glu(*args), glu_exact(*args), bound=GLU_BOUNDS[dtype])


@pytest.mark.parametrize(("nblocks", "nblocks_out"), BLOCKS)
def test_blockdiag_glu_gradcheck(nblocks: int, nblocks_out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blockdiag, "CHUNK", 2)
    args = [t.requires_grad_() for t in glu_inputs(nblocks, nblocks_out, torch.float64, tokens=2)]
    assert torch.autograd.gradcheck(m2ops.blockdiag_glu, args)


def test_products_gradcheck() -> None:
    x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 6), (2, 4, 3), (8,)))
    w2 = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(m2ops.blockdiag_matmul, (x, w, b))
    assert torch.autograd.gradcheck(m2ops.monarch_matmul, (x, w, w2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_monarch_matmul_matches_its_dense_matrix(dtype: torch.dtype) -> None:
    w1, w2 = torch.randn(3, 4, 2).to(dtype), torch.randn(6, 5, 2).to(dtype)  # 6 -> 12 -> 30
    x = torch.randn(7, 6).to(dtype)
    matrix = torch.zeros(30, 6, dtype=torch.float64)
    for column in range(6):  # the definition, index by index
        block, inner = divmod(column, 2)
        for j in range(4):
            hidden = block * 4 + j
            r, l = divmod(hidden, 6)  # noqa: E741
            for s in range(5):
                matrix[s * 6 + l, column] += w1[block, j, inner].double() * w2[l, s, r].double()
    assert_matches(m2ops.monarch_matmul(x, w1, w2), x.double() @ matrix.t(), bound=2 * GLU_BOUNDS[dtype])


# opcheck itself reads .grad of the intermediate tensors of a composite operator.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_products_pass_opcheck() -> None:
    ops = torch.ops.m2ops
    x, w_in, w_out, bias = (t.requires_grad_() for t in glu_inputs(4, 4, torch.float32))
    torch.library.opcheck(ops.blockdiag_matmul.default, (x, w_in, None))
    torch.library.opcheck(ops.blockdiag_glu.default, (x, w_in, w_out, bias))
    torch.library.opcheck(ops.monarch_matmul.default, (x, w_in, torch.randn(8, 3, 12, requires_grad=True)))


def test_products_take_an_empty_batch() -> None:
    x, w_in, w_out, bias = glu_inputs(4, 4, torch.float32, tokens=0)
    assert m2ops.blockdiag_glu(x, w_in, w_out, bias).shape == (2, 0, 24)
    assert m2ops.blockdiag_matmul(x, w_in).shape == (2, 0, 96)


def test_products_of_one_vector_have_gradients() -> None:
    x, w_in, w_out, bias = (t.requires_grad_() for t in glu_inputs(4, 4, torch.float64))
    row = x.detach()[0, 0].clone().requires_grad_()
    wide_bias = torch.randn(96, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(m2ops.blockdiag_matmul, (row, w_in, wide_bias))
    assert torch.autograd.gradcheck(m2ops.blockdiag_glu, (row, w_in, w_out, bias))


def test_glu_gradient_has_the_strides_its_fake_promises() -> None:
    x, w_in, w_out, dout = (*glu_inputs(4, 4, torch.float32)[:3], torch.randn(2, 50, 24))
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # rows are a view of it, channels not contiguous
    op = torch.ops.m2ops.blockdiag_glu_bwd.default
    torch.library.opcheck(op, (dout, turned, w_in, w_out), test_utils=["test_schema", "test_faketensor"])


def test_second_gradients_are_exact_or_refused() -> None:
    x, w_in, w_out, bias = (t.requires_grad_() for t in glu_inputs(4, 4, torch.float64, tokens=1))
    assert torch.autograd.gradgradcheck(m2ops.blockdiag_matmul, (x, w_in))
    gradient = torch.autograd.grad(m2ops.blockdiag_glu(x, w_in, w_out, bias).sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        gradient.square().sum().backward()
