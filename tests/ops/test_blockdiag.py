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


def glu_inputs(
    nblocks: int, nblocks_out: int, dtype: torch.dtype, tokens: int = 50, inter: int = 48, dim: int = 24
) -> list[Tensor]:
    w_in = torch.randn(nblocks, 2 * inter // nblocks, dim // nblocks) / 5
    w_out = torch.randn(nblocks_out, dim // nblocks_out, inter // nblocks_out) / 5
    return [t.to(dtype) for t in (torch.randn(2, tokens, dim), w_in, w_out, torch.randn(dim))]


def glu_exact(x: Tensor, w_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    gate, value = (x.double() @ dense(w_in).t()).chunk(2, dim=-1)
    return (F.gelu(gate) * value) @ dense(w_out).t() + b_out.double()


ISAS = m2ops.available_isas()
BLOCKS = [(4, 4), (1, 1), (2, 4), (3, 3), (4, 2), (6, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("nblocks", "nblocks_out"), BLOCKS)
def test_blockdiag_glu_matches_dense_matrices(nblocks: int, nblocks_out: int, dtype: torch.dtype) -> None:
    args = glu_inputs(nblocks, nblocks_out, dtype)
    assert_matches(m2ops.blockdiag_glu(*args), glu_exact(*args), bound=GLU_BOUNDS[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("nblocks", "nblocks_out"), BLOCKS)
def test_the_fused_mlp_matches_dense_matrices(nblocks: int, nblocks_out: int, isa: str, dtype: torch.dtype) -> None:
    """Every way the blocks can lie, whatever path this machine prefers."""
    x, *weights = glu_inputs(nblocks, nblocks_out, dtype, tokens=17)
    with m2ops.use_isa(isa):
        out = torch.ops.m2ops.blockdiag_glu_tiles(x.flatten(0, 1), *weights)
    assert_matches(out, glu_exact(x, *weights).flatten(0, 1), bound=GLU_BOUNDS[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 7, 31, 193, 401])
def test_the_fused_mlp_takes_awkward_sizes(tokens: int, isa: str, dtype: torch.dtype) -> None:
    """Tiles, panels, registers and chunks of hidden channels that end early; rows and weights with strides."""
    in_size, inter, out_size = 13, 101, 19
    x = torch.randn(tokens, 2 * 2 * in_size)[:, ::2].to(dtype)
    w_in = (torch.randn(2, in_size, inter) / in_size**0.5).to(dtype).transpose(1, 2)
    w_out = (torch.randn(1, out_size, inter) / inter**0.5).to(dtype)
    exact = m2ops.blockdiag_glu_ref(x.double(), w_in.double(), w_out.double())
    wide = torch.zeros(tokens, 2 * in_size + 3, dtype=dtype)
    wide[:, : 2 * in_size] = x
    with m2ops.use_isa(isa):
        for rows in (x, wide[:, : 2 * in_size]):
            out = torch.ops.m2ops.blockdiag_glu_tiles(rows, w_in, w_out, None)
            assert_matches(out, exact, bound=GLU_BOUNDS[dtype])


def gelu_by_kernel(gate: Tensor) -> Tensor:
    """The gate of the fused MLP alone: the value channel is 1, all weights are 1."""
    x = torch.stack([gate, torch.ones_like(gate)], dim=1)
    weights = torch.ones(2, 1, 1, dtype=gate.dtype), torch.ones(1, 1, 1, dtype=gate.dtype)
    return torch.ops.m2ops.blockdiag_glu_tiles(x, *weights, None)[:, 0]


@pytest.mark.parametrize("isa", ISAS)
def test_the_gate_of_the_fused_mlp_is_the_exact_gelu(isa: str) -> None:
    gate = torch.cat([torch.linspace(-12, 12, 240_001), torch.logspace(-30, 30, 1001), -torch.logspace(-30, 30, 1001)])
    wide = gate.double()
    exact = wide * torch.special.ndtr(wide)
    with m2ops.use_isa(isa):
        out = gelu_by_kernel(gate).double()
        # The distribution function within 1e-7, then one rounding of the product.
        assert ((out - exact).abs() <= 1e-7 * wide.abs() + 2**-24 * exact.abs()).all()
        torch.testing.assert_close(gelu_by_kernel(wide), exact, rtol=1e-14, atol=1e-15)
        odd = gelu_by_kernel(torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0]))
    assert odd[0].isnan() and odd[1] == float("inf") and odd[2].isnan() and odd[3] == 0
    assert ((F.gelu(gate, approximate="tanh") - exact).abs() > 1e-7 * wide.abs() + 2**-24 * exact.abs()).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fused_mlp_gives_the_same_bits_on_any_number_of_threads_and_tokens(dtype: torch.dtype) -> None:
    x, *weights = glu_inputs(4, 4, dtype, tokens=300)
    rows = x.flatten(0, 1)
    once = torch.ops.m2ops.blockdiag_glu_tiles(rows, *weights)
    torch.set_num_threads(3)
    assert torch.equal(torch.ops.m2ops.blockdiag_glu_tiles(rows, *weights), once)
    assert torch.equal(torch.ops.m2ops.blockdiag_glu_tiles(rows[5:9], *weights), once[5:9])
    damaged = rows.clone()
    damaged[3] = float("nan")
    out = torch.ops.m2ops.blockdiag_glu_tiles(damaged, *weights)
    assert out[3].isnan().all() and torch.equal(out[4:], once[4:])


def glu_gradients(dout: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor, ...]:
    """Exact gradients of x (tokens, dim) and both weights, by dense matrices in float64."""
    wide = [t.double().requires_grad_() for t in (x, w_in, w_out)]
    out = glu_exact(*wide, torch.zeros(dout.shape[-1]))
    return torch.autograd.grad(out, wide, dout.double())


def assert_gradients_match(grads: tuple[Tensor, ...], exact: tuple[Tensor, ...], bound: float) -> None:
    for grad, wanted in zip(grads, exact, strict=True):
        assert_matches(grad, wanted, bound=bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("nblocks", "nblocks_out"), BLOCKS)
def test_the_gradient_of_the_fused_mlp_matches_dense_matrices(
    nblocks: int, nblocks_out: int, isa: str, dtype: torch.dtype
) -> None:
    """Every way the blocks can lie, whatever path this machine prefers."""
    x, w_in, w_out, _ = glu_inputs(nblocks, nblocks_out, dtype, tokens=17)
    rows, dout = x.flatten(0, 1), torch.randn(34, 24).to(dtype)
    with m2ops.use_isa(isa):
        grads = torch.ops.m2ops.blockdiag_glu_tiles_bwd(dout, rows, w_in, w_out)
    assert_gradients_match(grads, glu_gradients(dout, rows, w_in, w_out), GLU_BOUNDS[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 7, 31, 193, 401])
def test_the_gradient_of_the_fused_mlp_takes_awkward_sizes(tokens: int, isa: str, dtype: torch.dtype) -> None:
    """Tiles, rows, strips and chunks of hidden channels that end early; rows with strides, or one number for all."""
    in_size, inter, out_size = 13, 101, 19
    x = torch.randn(tokens, 2 * 2 * in_size)[:, ::2].to(dtype)
    w_in = (torch.randn(2, in_size, inter) / in_size**0.5).to(dtype).transpose(1, 2)
    w_out = (torch.randn(1, out_size, inter) / inter**0.5).to(dtype)
    wide = torch.randn(tokens, out_size + 3).to(dtype)
    with m2ops.use_isa(isa):
        for dout in (wide[:, :out_size], torch.ones(1, 1, dtype=dtype).expand(tokens, out_size)):
            grads = torch.ops.m2ops.blockdiag_glu_tiles_bwd(dout, x, w_in, w_out)
            assert_gradients_match(grads, glu_gradients(dout, x, w_in, w_out), GLU_BOUNDS[dtype])


@pytest.mark.parametrize("isa", ISAS)
def test_the_gradient_of_the_fused_mlp_sums_many_tokens_within_its_bound(isa: str) -> None:
    x, w_in, w_out, _ = glu_inputs(4, 4, torch.float32, tokens=5000)
    rows, dout = x.flatten(0, 1) + 0.5, torch.randn(10_000, 24) + 0.5  # sums that grow with the tokens
    with m2ops.use_isa(isa):
        grads = torch.ops.m2ops.blockdiag_glu_tiles_bwd(dout, rows, w_in, w_out)
    assert_gradients_match(grads, glu_gradients(dout, rows, w_in, w_out), GLU_BOUNDS[torch.float32])


def slope_by_kernel(gate: Tensor) -> Tensor:
    """The derivative of the gate alone: value, weights and the gradient of the output are 1."""
    x = torch.stack([gate, torch.ones_like(gate)], dim=1)
    weights = torch.ones(2, 1, 1, dtype=gate.dtype), torch.ones(1, 1, 1, dtype=gate.dtype)
    return torch.ops.m2ops.blockdiag_glu_tiles_bwd(torch.ones_like(gate)[:, None], x, *weights)[0][:, 0]


@pytest.mark.parametrize("isa", ISAS)
def test_the_derivative_of_the_gate_is_that_of_the_exact_gelu(isa: str) -> None:
    gate = torch.cat([torch.linspace(-12, 12, 240_001), torch.logspace(-30, 30, 1001), -torch.logspace(-30, 30, 1001)])
    wide = gate.double()
    exact = torch.special.ndtr(wide) + wide * torch.exp(-wide.square() / 2) / (2 * torch.pi) ** 0.5
    with m2ops.use_isa(isa):
        assert ((slope_by_kernel(gate).double() - exact).abs() <= 2e-7).all()
        torch.testing.assert_close(slope_by_kernel(wide), exact, rtol=1e-14, atol=1e-15)
        for dtype in (torch.float32, torch.float64):
            odd = slope_by_kernel(torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0], dtype=dtype))
            assert odd[0].isnan() and odd[1:].tolist() == [1.0, 0.0, 0.5]
    tanh = torch.autograd.grad(F.gelu(wide.requires_grad_(), approximate="tanh").sum(), wide)[0]
    assert ((tanh - exact).abs() > 2e-7).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_of_the_fused_mlp_has_the_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    x, w_in, w_out, _ = glu_inputs(4, 2, dtype, tokens=1500)
    rows, dout = x.flatten(0, 1), torch.randn(3000, 24).to(dtype)
    op = torch.ops.m2ops.blockdiag_glu_tiles_bwd
    once = op(dout, rows, w_in, w_out)
    torch.set_num_threads(3)
    assert all(map(torch.equal, op(dout, rows, w_in, w_out), once))
    assert torch.equal(op(dout[5:9], rows[5:9], w_in, w_out)[0], once[0][5:9])
    damaged = rows.clone()
    damaged[3] = float("nan")
    dx, *dweights = op(dout, damaged, w_in, w_out)
    assert dx[3].isnan().all() and torch.equal(dx[4:], once[0][4:]) and all(dw.isnan().any() for dw in dweights)


def test_the_fused_mlp_refuses_what_it_cannot_read() -> None:
    x, w_in, w_out, bias = glu_inputs(4, 4, torch.float32)
    fused, rows = torch.ops.m2ops.blockdiag_glu_tiles, x.flatten(0, 1)
    for args in ((x, w_in, w_out, bias), (rows, w_in.double(), w_out, bias), (rows, w_in[:2], w_out, bias),
                 (rows, w_in, w_out[:, :, :3], bias), (rows, w_in, w_out, bias[:3])):  # fmt: skip
        with pytest.raises(RuntimeError, match="blockdiag_glu: "):
            fused(*args)
    backward, dout = torch.ops.m2ops.blockdiag_glu_tiles_bwd, torch.zeros(100, 24)
    for args in ((dout[:99], rows, w_in, w_out), (dout[:, :23], rows, w_in, w_out), (dout.double(), rows, w_in, w_out),
                 (dout, rows, w_in[:2], w_out)):  # fmt: skip
        with pytest.raises(RuntimeError, match="blockdiag_glu: "):
            backward(*args)


@pytest.mark.skipif(ISAS == ["scalar"], reason="needs a CPU with vectors")
def test_the_fused_mlp_is_used_where_it_is_the_faster_way(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w_in, w_out, _ = glu_inputs(4, 4, torch.float32)
    serves = _blockdiag.cpu_kernel_serves
    assert serves(x, w_in, w_out) and serves(x.double(), w_in, w_out)
    in_pairs = _blockdiag.binding.glu_in_pairs(4, 6, 24, 6, 12)
    assert serves(x.bfloat16(), w_in, w_out) == (in_pairs or not _blockdiag.binding.has_products("bfloat16"))
    assert serves(x.bfloat16(), w_in, w_out, True) != _blockdiag.binding.has_products("bfloat16")
    assert not serves(x, torch.zeros(1, 2, 4096), w_out)
    with m2ops.use_isa("scalar"):
        assert not serves(x, w_in, w_out)
    backward, dout = torch.ops.m2ops.blockdiag_glu_bwd, torch.randn_like(x)
    fused, grads = m2ops.blockdiag_glu(x, w_in, w_out), backward(dout, x, w_in, w_out)
    tiles = torch.ops.m2ops.blockdiag_glu_tiles_bwd(dout.flatten(0, 1), x.flatten(0, 1), w_in, w_out)
    assert torch.equal(grads[0].flatten(0, 1), tiles[0]) and all(map(torch.equal, grads[1:], tiles[1:]))
    monkeypatch.setattr(_blockdiag, "cpu_kernel_serves", lambda *_: False)
    assert_matches(m2ops.blockdiag_glu(x, w_in, w_out), fused.double())
    products = backward(dout, x, w_in, w_out)
    assert not all(map(torch.equal, products, grads))
    assert_gradients_match(products, tuple(grad.double() for grad in grads), GLU_BOUNDS[torch.float32])


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "products"])
@pytest.mark.parametrize(("nblocks", "nblocks_out"), BLOCKS)
def test_blockdiag_glu_gradcheck(nblocks: int, nblocks_out: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blockdiag, "cpu_kernel_serves", lambda *_: fused)
    monkeypatch.setattr(_blockdiag, "CHUNK", 2)
    args = [t.requires_grad_() for t in glu_inputs(nblocks, nblocks_out, torch.float64, tokens=2, inter=12, dim=12)]
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
    dx, *dweights = torch.ops.m2ops.blockdiag_glu_bwd(torch.zeros(2, 0, 24), x, w_in, w_out)
    assert dx.shape == x.shape and not any(dw.any() for dw in dweights)
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
