"""Block-diagonal and Monarch matrix products: blockdiag_matmul, blockdiag_glu, monarch_matmul.

The schemas are in csrc/ops.cpp; these implementations call torch's batched GEMM (already at the limit of the machine
for one product) and serve every device. blockdiag_glu and its gradient are one kernel each on CPUs
(csrc/cpu/blockdiag_glu*.inl behind csrc/blockdiag_glu.cpp), and its forward is one in 16 bits on CUDA
(csrc/cuda/blockdiag_glu.cu), each where it is the faster way.
Test: tests/ops/test_blockdiag.py. Benchmark: benchmarks/bench_blockdiag.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2ops._layout import check_like, check_tensor, check_vector
from m2ops._library import autocast, binding, cuda_loaded, implement, in_forward_mode, refuse_second_gradient, to

# Tokens worked on at a time by blockdiag_glu: the hidden channels of a chunk stay near the cache, and below the size
# from which the C library maps fresh pages for every allocation (measured 3 to 5 times faster than all at once).
CHUNK = 1024
# On a GPU a chunk has to fill it; 16,384 tokens do, and bound the hidden channels (200 MB in 16 bits for inter 3072).
CUDA_CHUNK = 16384
# Widest block, in channels, that the CPU kernel takes: it keeps the channels of a block of 192 tokens in cache.
MAX_KERNEL_WIDTH = 1024


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


def _check_product(op: str, x: Tensor, name: str, weight: Tensor, bias: Tensor | None, bias_name: str) -> None:
    check_tensor(op, "x", x, None, "(..., nblocks * in)")
    check_tensor(op, name, weight, 3, "(nblocks, out, in)")
    check_like(op, name, weight, "x", x)
    width = weight.shape[0] * weight.shape[2]
    if x.dim() < 1 or x.shape[-1] != width:
        raise ValueError(f"{op}: x must have {width} channels (nblocks * in of {name}), got shape {tuple(x.shape)}")
    check_vector(op, bias_name, bias, "(nblocks * out,)", weight.shape[0] * weight.shape[1], "x", x)


def blockdiag_matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Product with a block-diagonal matrix, plus bias.

    Equivalent to::

        torch.cat([x_i @ w_i.T for x_i, w_i in zip(x.chunk(nblocks, -1), weight)], -1) + bias

    Args:
        x: (..., nblocks * in).
        weight: (nblocks, out, in).
        bias: (nblocks * out,) or None.

    Forward-mode derivatives are those of :func:`blockdiag_matmul_ref`, which then computes in its place.

    Returns:
        (..., nblocks * out) in the dtype of x.

    Raises:
        TypeError, ValueError: wrong shape, dtype or device.

    Source: one Monarch factor, arXiv 2310.12109 section 3.
    """
    _check_product("blockdiag_matmul", x, "weight", weight, bias, "bias")
    if in_forward_mode(x, weight, bias):
        return blockdiag_matmul_ref(x, weight, bias)
    return torch.ops.m2ops.blockdiag_matmul(x, weight, bias)


def blockdiag_glu(x: Tensor, w_in: Tensor, w_out: Tensor, b_out: Tensor | None = None) -> Tensor:
    """The dimension mixer of M2-BERT: block-diagonal in, exact GELU gate, block-diagonal out.

    Equivalent to::

        gate, value = blockdiag_matmul(x, w_in).chunk(2, dim=-1)
        out = blockdiag_matmul(F.gelu(gate) * value, w_out, b_out)

    With 4 blocks the gate therefore sees the first half of the channels of x and the value the second half, as in
    the published model.

    Args:
        x: (..., dim).
        w_in: (nblocks, 2 * inter / nblocks, dim / nblocks).
        w_out: (nblocks, dim / nblocks, inter / nblocks).
        b_out: (dim,) or None.

    Forward-mode derivatives are those of :func:`blockdiag_glu_ref`, which then computes in its place.

    Returns:
        (..., nblocks * out) in the dtype of x. The hidden channels are computed again in the backward pass.

    Raises:
        TypeError, ValueError: wrong shape, dtype or device.

    Source: M2-BERT MLP, arXiv 2310.12109 section 5.
    """
    _check_product("blockdiag_glu", x, "w_in", w_in, None, "")
    check_tensor("blockdiag_glu", "w_out", w_out, 3, "(nblocks, out, in)")
    check_like("blockdiag_glu", "w_out", w_out, "x", x)
    hidden, wanted = w_in.shape[0] * w_in.shape[1], 2 * w_out.shape[0] * w_out.shape[2]
    if hidden != wanted:
        raise ValueError(
            f"blockdiag_glu: w_in must give twice the channels that w_out takes ({wanted}), got {hidden} "
            f"from w_in {tuple(w_in.shape)} and w_out {tuple(w_out.shape)}"
        )
    check_vector("blockdiag_glu", "b_out", b_out, "(nblocks * out,)", w_out.shape[0] * w_out.shape[1], "x", x)
    if in_forward_mode(x, w_in, w_out, b_out):
        return blockdiag_glu_ref(x, w_in, w_out, b_out)
    return torch.ops.m2ops.blockdiag_glu(x, w_in, w_out, b_out)


def monarch_matmul(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Product with a Monarch matrix of order 2: block-diagonal, permute, block-diagonal, permute back.

    Equivalent to::

        hidden = blockdiag_matmul(x, w1)                               # (..., r * l)
        hidden = hidden.unflatten(-1, (r, l)).transpose(-1, -2)        # (..., l, r)
        out = blockdiag_matmul(hidden.flatten(-2), w2)                 # (..., l * s)
        out = out.unflatten(-1, (l, s)).transpose(-1, -2).flatten(-2)  # (..., s * l)

    Args:
        x: (..., nblocks1 * in1).
        w1: (nblocks1, out1, in1).
        w2: (l, s, r) with l * r = nblocks1 * out1.

    Forward-mode derivatives are those of :func:`monarch_matmul_ref`, which then computes in its place.

    Returns:
        (..., s * l) in the dtype of x.

    Raises:
        TypeError, ValueError: wrong shape, dtype or device.

    Source: Monarch matrices, arXiv 2310.12109 section 3.
    """
    _check_product("monarch_matmul", x, "w1", w1, None, "")
    check_tensor("monarch_matmul", "w2", w2, 3, "(nblocks, out, in)")
    check_like("monarch_matmul", "w2", w2, "x", x)
    if w2.shape[0] * w2.shape[2] != w1.shape[0] * w1.shape[1]:
        raise ValueError(
            f"monarch_matmul: w2 must take the {w1.shape[0] * w1.shape[1]} channels that w1 gives, "
            f"got w2 of shape {tuple(w2.shape)}"
        )
    if in_forward_mode(x, w1, w2):
        return monarch_matmul_ref(x, w1, w2)
    return torch.ops.m2ops.monarch_matmul(x, w1, w2)


@implement("blockdiag_matmul", "CompositeExplicitAutograd")
def _blockdiag_matmul(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    nblocks, out_size, in_size = weight.shape
    rows = x.reshape(-1, nblocks, in_size)
    out = x.new_empty(rows.shape[0], nblocks, out_size)
    torch.bmm(rows.transpose(0, 1), weight.transpose(1, 2), out=out.transpose(0, 1))
    flat = out.view(*x.shape[:-1], nblocks * out_size)
    return flat if bias is None else flat.add_(bias)


@torch.library.register_fake("m2ops::blockdiag_matmul")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] * weight.shape[1])


def _matmul_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _matmul_backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    dx = torch.ops.m2ops.blockdiag_matmul(dout, weight.transpose(1, 2), None)
    nblocks, out_size, in_size = weight.shape
    rows, drows = x.reshape(-1, nblocks, in_size), dout.reshape(-1, nblocks, out_size)
    dweight = torch.bmm(drows.permute(1, 2, 0), rows.transpose(0, 1))
    return dx, dweight, drows.sum(0).flatten() if ctx.has_bias else None


def _hidden(x: list[Tensor], w_in: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Gate and value channels of the i-th pair of blocks (all of them if there is only one block)."""
    if w_in.shape[0] == 1:
        gate, value = F.linear(x[0], w_in[0]).chunk(2, dim=-1)
        return gate, value
    half = w_in.shape[0] // 2
    return F.linear(x[i], w_in[i]), F.linear(x[i + half], w_in[i + half])


def _chunk(x: Tensor) -> int:
    return CUDA_CHUNK if x.device.type == "cuda" else CHUNK


def _pairs(w_in: Tensor, w_out: Tensor) -> int:
    """Pairs of blocks of w_in that can be worked on apart: each feeds whole blocks of w_out. 0 if they cannot."""
    nblocks = w_in.shape[0]
    pairs = 1 if nblocks == 1 else nblocks // 2
    return pairs if (nblocks == 1 or nblocks % 2 == 0) and w_out.shape[0] % pairs == 0 else 0


@implement("blockdiag_glu", "CompositeExplicitAutograd")
def _blockdiag_glu(x: Tensor, w_in: Tensor, w_out: Tensor, b_out: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    nblocks, size, _ = w_out.shape
    out = x.new_empty(rows.shape[0], nblocks, size)
    pairs = _pairs(w_in, w_out)
    if pairs == 0:
        gate, value = torch.ops.m2ops.blockdiag_matmul(x, w_in, None).chunk(2, dim=-1)
        return torch.ops.m2ops.blockdiag_matmul(F.gelu(gate) * value, w_out, b_out)
    per_pair = nblocks // pairs
    for chunk, out_chunk in zip(rows.split(_chunk(x)), out.split(_chunk(x)), strict=True):
        blocks = list(chunk.chunk(w_in.shape[0], dim=1))
        for i in range(pairs):
            gate, value = _hidden(blocks, w_in, i)
            parts = F.gelu(gate).mul_(value).chunk(per_pair, dim=1)
            for j, part in enumerate(parts, start=i * per_pair):
                out_chunk[:, j] = F.linear(part, w_out[j])
    flat = out.view(*x.shape[:-1], nblocks * size)
    return flat if b_out is None else flat.add_(b_out)


def cpu_kernel_serves(x: Tensor, w_in: Tensor, w_out: Tensor, backward: bool = False) -> bool:
    """Whether the fused CPU kernels are the faster way: they have vectors, and torch no better products of x's dtype.

    They compute 16-bit tensors in float32; a CPU that multiplies 16-bit numbers is faster with torch's products, unless
    the kernel has such products too (bfloat16, forward).
    """
    if max(w_in.shape[2], w_out.shape[1]) > MAX_KERNEL_WIDTH:
        return False
    if x.dtype == torch.bfloat16 and not backward:
        blocks_in, width, in_size = w_in.shape
        if binding.glu_in_pairs(blocks_in, in_size, width, *w_out.shape[1:]):
            return True
    if binding.current_isa() == "scalar":
        return False
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    return not (narrow and binding.has_products(str(x.dtype).removeprefix("torch.")))


@implement("blockdiag_glu", "CPU")
def _blockdiag_glu_cpu(x: Tensor, w_in: Tensor, w_out: Tensor, b_out: Tensor | None) -> Tensor:
    if not cpu_kernel_serves(x, w_in, w_out):
        return _blockdiag_glu(x, w_in, w_out, b_out)
    bias = b_out if b_out is None else b_out.to(x.dtype)
    out = torch.ops.m2ops.blockdiag_glu_tiles(x.reshape(-1, x.shape[-1]), w_in, w_out, bias)
    return out.view(*x.shape[:-1], out.shape[1])


def glu_with_kernel(kernels: Any, x: Tensor, w_in: Tensor, w_out: Tensor, b_out: Tensor | None) -> Tensor:
    """blockdiag_glu by the fused kernel of the namespace `kernels` if it takes these tensors, else by products."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return _blockdiag_glu(x, w_in, w_out, b_out)
    rows, weights = x.reshape(-1, x.shape[-1]), (w_in.contiguous(), w_out.contiguous())
    if not kernels.blockdiag_glu_fits(rows, *weights):
        return _blockdiag_glu(x, w_in, w_out, b_out)
    bias = b_out if b_out is None else b_out.to(x.dtype)
    return kernels.blockdiag_glu_fused(rows, *weights, bias).view(*x.shape[:-1], w_out.shape[0] * w_out.shape[1])


if cuda_loaded:
    implement("blockdiag_glu", "CUDA")(lambda *args: glu_with_kernel(torch.ops.m2ops, *args))


@torch.library.register_fake("m2ops::blockdiag_glu")
def _(x: Tensor, w_in: Tensor, w_out: Tensor, b_out: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], w_out.shape[0] * w_out.shape[1])


@implement("blockdiag_glu_bwd", "CompositeExplicitAutograd")
def _blockdiag_glu_bwd(dout: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pairs = _pairs(w_in, w_out)
    if pairs == 0:
        return _glu_bwd_whole(dout, x, w_in, w_out)
    rows, drows = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
    dx = torch.empty_like(rows, memory_format=torch.contiguous_format)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32  # sums over chunks
    dw_in, dw_out = w_in.new_zeros(w_in.shape, dtype=wide), w_out.new_zeros(w_out.shape, dtype=wide)
    nblocks_in, per_pair = w_in.shape[0], w_out.shape[0] // pairs
    for chunk, dchunk, dx_chunk in zip(*(t.split(_chunk(x)) for t in (rows, drows, dx)), strict=True):
        blocks, dblocks = list(chunk.chunk(nblocks_in, dim=1)), list(dchunk.chunk(w_out.shape[0], dim=1))
        dx_blocks = dx_chunk.chunk(nblocks_in, dim=1)
        for i in range(pairs):
            gate, value = _hidden(blocks, w_in, i)
            active = F.gelu(gate)
            outputs = range(i * per_pair, (i + 1) * per_pair)
            for j, part in zip(outputs, (active * value).chunk(per_pair, dim=1), strict=True):
                dw_out[j] += dblocks[j].t() @ part
            dhidden = torch.cat([dblocks[j] @ w_out[j] for j in outputs], dim=1)
            dvalue = dhidden * active
            dgate = torch.ops.aten.gelu_backward(dhidden.mul_(value), gate)
            if nblocks_in == 1:
                grads = {0: torch.cat([dgate, dvalue], dim=1)}
            else:
                grads = {i: dgate, i + nblocks_in // 2: dvalue}
            for block, grad in grads.items():
                dx_blocks[block].copy_(grad @ w_in[block])
                dw_in[block] += grad.t() @ blocks[block]
    return dx.view(x.shape), dw_in.to(w_in.dtype), dw_out.to(w_out.dtype)


@implement("blockdiag_glu_bwd", "CPU")
def _blockdiag_glu_bwd_cpu(dout: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not cpu_kernel_serves(x, w_in, w_out, True):
        return _blockdiag_glu_bwd(dout, x, w_in, w_out)
    rows, drows = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
    dx, dw_in, dw_out = torch.ops.m2ops.blockdiag_glu_tiles_bwd(drows, rows, w_in, w_out)
    return dx.view(x.shape), dw_in, dw_out


def _glu_bwd_whole(dout: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The general case: blocks of w_in that straddle the halves."""
    matmul = torch.ops.m2ops.blockdiag_matmul
    gate, value = matmul(x, w_in, None).chunk(2, dim=-1)
    active = F.gelu(gate)
    dhidden = matmul(dout, w_out.transpose(1, 2), None)
    dgate = torch.ops.aten.gelu_backward(dhidden * value, gate.contiguous())
    dinner = torch.cat([dgate, dhidden * active], dim=-1)

    def dweight(grad: Tensor, data: Tensor, nblocks: int) -> Tensor:
        left, right = (t.reshape(-1, nblocks, t.shape[-1] // nblocks) for t in (grad, data))
        return torch.bmm(left.permute(1, 2, 0), right.transpose(0, 1))

    dw_in = dweight(dinner, x, w_in.shape[0])
    return matmul(dinner, w_in.transpose(1, 2), None), dw_in, dweight(dout, active * value, w_out.shape[0])


@torch.library.register_fake("m2ops::blockdiag_glu_bwd")
def _(dout: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), w_in.new_empty(w_in.shape), w_out.new_empty(w_out.shape)


def _glu_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, w_in, w_out, b_out = inputs
    ctx.has_bias = b_out is not None
    ctx.save_for_backward(x, w_in, w_out)


def _glu_backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    x, w_in, w_out = ctx.saved_tensors
    dx, dw_in, dw_out = torch.ops.m2ops.blockdiag_glu_bwd(dout, x, w_in, w_out)
    return dx, dw_in, dw_out, dout.reshape(-1, dout.shape[-1]).sum(0) if ctx.has_bias else None


@implement("monarch_matmul", "CompositeImplicitAutograd")
def _monarch_matmul(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    nblocks2, out2, in2 = w2.shape
    hidden = torch.ops.m2ops.blockdiag_matmul(x, w1, None)
    hidden = hidden.unflatten(-1, (in2, nblocks2)).transpose(-1, -2).flatten(-2)
    out = torch.ops.m2ops.blockdiag_matmul(hidden, w2, None)
    return out.unflatten(-1, (nblocks2, out2)).transpose(-1, -2).flatten(-2)


torch.library.register_autograd("m2ops::blockdiag_matmul", _matmul_backward, setup_context=_matmul_setup)
torch.library.register_autograd("m2ops::blockdiag_glu", _glu_backward, setup_context=_glu_setup)
refuse_second_gradient("blockdiag_glu")
for _op in ("blockdiag_matmul", "blockdiag_glu"):
    autocast(_op, lambda dtype, *args: tuple(to(dtype, arg) for arg in args))
