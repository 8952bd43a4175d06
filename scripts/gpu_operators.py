"""The operator checks of scripts/gpu_check.py. Every check raises what is wrong. Test: tests/cuda/test_gpu_check.py.

Against float64 on the same rounded inputs, forward and backward; the same bits in every run; offsets and sizes that 32
bits do not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import m2ops
from m2ops.testing import assert_matches

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LENGTHS = (1, 2, 63, 129, 300, 1000, 2048, 4096, 4097, 8192, 16384, 32768, 65536, 131072, 262144, 524288)
Check = tuple[str, Callable[[], None]]


def random(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values; a view with gaps, so that strides are used."""
    return torch.randn(*shape[:-1], 2 * shape[-1], device=device).to(dtype)[..., shape[-1] :]


def compare(
    op: Callable[..., Tensor],
    ref: Callable[..., Tensor],
    inputs: list[Tensor],
    backward: bool,
    dout: Tensor | None = None,
) -> None:
    """Raise unless `op` matches its reference in float64 on the same rounded inputs, and so do its gradients.

    Inputs and `dout` (random if absent) are used as they lie in memory.
    """
    leaves = [x.detach().requires_grad_(backward) for x in inputs]
    wide = [x.detach().double().requires_grad_(backward) for x in inputs]
    out, exact = op(*leaves), ref(*wide)
    shown = exact.detach()
    coarse = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # two roundings and sums of gradients
    assert_matches(out, shown, bound=None if out.dtype == torch.float32 else coarse[out.dtype])
    if backward:
        dout = random(exact.device, *exact.shape, dtype=out.dtype) if dout is None else dout
        out.backward(dout)
        exact.backward(dout.double())
        for leaf, wanted in zip(leaves, wide, strict=True):
            assert leaf.grad is not None and wanted.grad is not None
            assert_matches(leaf.grad, wanted.grad, bound=coarse[out.dtype])


def long_conv(fft_conv: Callable[..., Tensor], layout: str) -> Callable[..., Tensor]:
    return lambda u, k, k_rev, skip, pre, post: fft_conv(u, k, k_rev, skip, pre, post, layout=layout)


def operator_checks(device: torch.device, lengths: tuple[int, ...]) -> Iterator[Check]:
    """Every operator, dtype, layout and length; forward and backward apart: the one may fail without the other."""
    make = partial(random, device)
    for backward in (False, True):
        way = "backward" if backward else "forward"
        for dtype in DTYPES:
            name = f"{str(dtype).removeprefix('torch.')} {way}"
            for seqlen in lengths:
                for layout, shape in (("bdl", (2, 3, seqlen)), ("bld", (2, seqlen, 3))):
                    taps = [make(3, seqlen) / seqlen**0.5 for _ in range(2)]
                    gates = [make(*shape, dtype=dtype) for _ in range(3)]
                    conv = [gates[0], *taps, make(3), *gates[1:]]
                    ways = long_conv(m2ops.fft_conv, layout), long_conv(m2ops.fft_conv_ref, layout)
                    yield f"fft_conv {layout} {seqlen} {name}", partial(compare, *ways, conv, backward)
                    short = [gates[0], make(3, 3), make(3)]
                    both = partial(m2ops.short_conv, layout=layout), partial(m2ops.short_conv_ref, layout=layout)
                    yield f"short_conv {layout} {seqlen} {name}", partial(compare, *both, short, backward)
                u, p = make(2, seqlen, 4, dtype=dtype), make(2, seqlen, 12, dtype=dtype)
                filters = [make(4, seqlen) / seqlen**0.5 for _ in range(2)]
                mixed = [p, u, make(12, 3), make(12), *filters, make(4), *filters, make(4)]
                mixers = m2ops.monarch_mixer, m2ops.monarch_mixer_ref
                yield f"monarch_mixer {seqlen} {name}", partial(compare, *mixers, mixed, backward)
            for seqlen in sorted({lengths[len(lengths) // 2], lengths[-1]}):
                yield from option_checks(device, dtype, seqlen, backward, name)
            x, w_in, w_out = (make(*s, dtype=dtype) / 4 for s in ((3, 50, 128), (4, 128, 32), (4, 32, 64)))
            glus = m2ops.blockdiag_glu, m2ops.blockdiag_glu_ref
            yield f"blockdiag_glu {name}", partial(compare, *glus, [x, w_in, w_out, w_in[0, :, 0]], backward)
            products = m2ops.blockdiag_matmul, m2ops.blockdiag_matmul_ref
            yield f"blockdiag_matmul {name}", partial(compare, *products, [x, w_in], backward)
            two = m2ops.monarch_matmul, m2ops.monarch_matmul_ref
            yield (
                f"monarch_matmul {name}",
                partial(compare, *two, [x, w_in, w_out[:, :, :1].expand(4, 32, 128)], backward),
            )


def option_checks(device: torch.device, dtype: torch.dtype, seqlen: int, backward: bool, name: str) -> Iterator[Check]:
    """What may be left out, and masks, at one length."""
    make = partial(random, device)
    u, k = make(2, 3, seqlen, dtype=dtype), make(3, seqlen) / seqlen**0.5
    plain = m2ops.fft_conv, m2ops.fft_conv_ref
    yield f"fft_conv {seqlen} causal, no gates, no skip {name}", partial(compare, *plain, [u, k], backward)
    mask = torch.arange(seqlen, device=device) < torch.tensor([[seqlen], [seqlen // 2 + 1]], device=device)
    p, x = make(2, seqlen, 9, dtype=dtype), make(2, seqlen, 3, dtype=dtype)
    inputs = [p, x, make(9, 3), make(9), k, k, make(3), k, k, make(3)]
    masked = partial(m2ops.monarch_mixer, mask=mask), partial(m2ops.monarch_mixer_ref, mask=mask)
    yield f"monarch_mixer {seqlen} masked {name}", partial(compare, *masked, inputs, backward)
    alone = partial(without_u, m2ops.monarch_mixer, x), partial(without_u, m2ops.monarch_mixer_ref, x.double())
    yield f"monarch_mixer {seqlen} one convolution {name}", partial(compare, *alone, [p, *inputs[2:7]], backward)


def without_u(mixer: Callable[..., Tensor], u: Tensor, p: Tensor, *rest: Tensor) -> Tensor:
    """The mixer of arguments that leave out u, which without a second convolution changes nothing."""
    return mixer(p, u, *rest)


def check_repeats(op: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Raise unless three runs give the same bits, in the result and in the gradient of every input."""

    def run() -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = op(*leaves)
        return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    first = run()
    for _ in range(2):
        for number, (one, other) in enumerate(zip(first, run(), strict=True)):
            what = "result" if number == 0 else f"gradient of input {number - 1}"
            assert torch.equal(one, other), f"another {what} in another run"


def repeat_checks(device: torch.device, lengths: tuple[int, ...]) -> Iterator[Check]:
    """Enough rows of few channels that the gradients of filters and weights are summed in parts."""
    make = partial(random, device)
    for dtype in DTYPES:
        for seqlen in lengths:
            name = f"{str(dtype).removeprefix('torch.')}, {seqlen}"
            filters = [make(4, seqlen) / seqlen**0.5 for _ in range(2)]
            u, pre, post = (make(24, 4, seqlen, dtype=dtype) for _ in range(3))
            conv = [u, *filters, make(4), pre, post]
            yield f"the same bits in every run: fft_conv {name}", partial(check_repeats, m2ops.fft_conv, conv)
            short = [u, make(4, 3), make(4)]
            yield f"the same bits in every run: short_conv {name}", partial(check_repeats, m2ops.short_conv, short)
            p, x = make(8, seqlen, 12, dtype=dtype), make(8, seqlen, 4, dtype=dtype)
            mixed = [p, x, make(12, 3), make(12), *filters, make(4), *filters, make(4)]
            yield (
                f"the same bits in every run: monarch_mixer {name}",
                partial(check_repeats, m2ops.monarch_mixer, mixed),
            )


def apart(device: torch.device, stride: int, dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Random tensors of two batch entries, `stride` elements from one entry to the next, in memory that they share."""
    sizes = [torch.Size(shape[1:]).numel() for shape in shapes]
    memory = torch.empty(stride + sum(sizes), device=device, dtype=dtype)
    tensors, start = [], 0
    for shape, size in zip(shapes, sizes, strict=True):
        values = torch.randn(shape, device=device)
        tensors.append(memory.as_strided(shape, (stride, *values.stride()[1:]), start).copy_(values))
        start += size
    return tensors


def check_far_entries(device: torch.device, stride: int, dtype: torch.dtype, seqlen: int) -> None:
    """Every operator on entries `stride` elements apart, forward and backward."""
    rows, wide = (2, 3, seqlen), (2, seqlen, 9)
    u, pre, post, dout, p, x, dmixed, dshort = apart(
        device, stride, dtype, [*[rows] * 4, wide, (2, seqlen, 3), (2, seqlen, 3), wide]
    )
    k = random(device, 3, seqlen) / seqlen**0.5
    skip, weight, bias = (random(device, *shape) for shape in ((3,), (9, 3), (9,)))
    ways = long_conv(m2ops.fft_conv, "bdl"), long_conv(m2ops.fft_conv_ref, "bdl")
    compare(*ways, [u, k, k, skip, pre, post], True, dout)
    both = partial(m2ops.short_conv, layout="bld"), partial(m2ops.short_conv_ref, layout="bld")
    compare(*both, [p, weight, bias], True, dshort)
    mixed = [p, x, weight, bias, k, k, skip, k, k, skip]
    compare(m2ops.monarch_mixer, m2ops.monarch_mixer_ref, mixed, True, dmixed)


def check_many_rows(device: torch.device, rows: int, seqlen: int) -> None:
    """fft_conv of so many rows that results and gradients too lie beyond 2^31 elements; the last row is not zero."""
    u = torch.zeros(rows, 1, seqlen, device=device, dtype=torch.float16)
    dout, k = torch.zeros_like(u), random(device, 1, seqlen) / seqlen**0.5
    u[-1:], dout[-1:] = random(device, 2, 1, seqlen).split(1)
    last, k64 = u[-1:].double().requires_grad_(), k.double().requires_grad_()
    exact = m2ops.fft_conv_ref(last, k64)
    exact.backward(dout[-1:].double())
    u.requires_grad_()
    out = m2ops.fft_conv(u, k.requires_grad_())
    assert_matches(out.detach()[-1:], exact.detach(), bound=3e-3)
    du, dk = torch.autograd.grad(out, (u, k), dout)
    assert last.grad is not None and k64.grad is not None
    assert_matches(du[-1:], last.grad, bound=3e-3)
    # Tensor cores multiply float16 values for it; a CPU computes in float32.
    assert_matches(dk, k64.grad, bound=3e-6 if device.type == "cpu" else 1e-3)


def check_many_elements(device: torch.device, length: int) -> None:
    x = torch.zeros(2, 1, length, device=device, dtype=torch.float16)
    x[1, 0, -20:] = torch.arange(20.0, device=device)
    out = m2ops.short_conv(x, torch.tensor([[1.0, 2.0, 4.0]], device=device))
    wanted = m2ops.short_conv_ref(x[1:, :, -20:].double(), torch.tensor([[1.0, 2.0, 4.0]], device=device).double())
    assert_matches(out[1:, :, -20:], wanted, bound=1e-3)


def large_checks(device: torch.device, tiny: bool) -> Iterator[Check]:
    """Offsets and sizes that 32 bits do not hold; small ones if `tiny`."""
    stride, length, rows = (5000, 128, 3) if tiny else (2**31 + 64, 2**30 + 64, 2**18 + 1)
    for dtype in DTYPES:
        for seqlen in (60, 130) if tiny else (300, 5000, 20000):
            name = f"batch entries {stride:,} elements apart, {str(dtype).removeprefix('torch.')}, {seqlen}"
            yield name, partial(check_far_entries, device, stride, dtype, seqlen)
    yield f"short_conv of {2 * length:,} elements", partial(check_many_elements, device, length)
    seqlen = 256 if tiny else 8192
    yield f"fft_conv of {rows * seqlen:,} elements", partial(check_many_rows, device, rows, seqlen)
