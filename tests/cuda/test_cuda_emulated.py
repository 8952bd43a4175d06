"""The CUDA boundary and kernels, compiled for the CPU under csrc/testing/cuda_emulator.h: csrc/cuda_ops as
torch.ops.m2ops_emulated on CPU tensors, against float64. The kernels alone: tests/cuda/test_cuda_kernels.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from native import built, needs_emulator
from torch import Tensor

import m2ops
from m2ops._blockdiag import glu_with_kernel

pytestmark = needs_emulator


@pytest.fixture(scope="module")
def ops() -> Any:
    """torch.ops.m2ops_emulated: the CUDA boundary and kernels on CPU tensors."""
    torch.ops.load_library(str(built("libm2ops_emulated.so")))
    return torch.ops.m2ops_emulated


def exact_conv(u: Tensor, k: Tensor, k_rev: Tensor, skip: Tensor, pre: Tensor, post: Tensor) -> Tensor:
    """float64 convolution by FFT of twice the length; (batch, dim, seqlen)."""
    seqlen = u.shape[-1]
    gated = u.double() * pre.double()
    gap = torch.zeros(k.shape[0], 2 * seqlen - k.shape[1] - k_rev.shape[1], dtype=torch.float64)
    kernel = torch.cat([k.double(), gap, k_rev.double().flip(-1)], dim=1)
    spectrum = torch.fft.rfft(gated, n=2 * seqlen) * torch.fft.rfft(kernel)
    y = torch.fft.irfft(spectrum, n=2 * seqlen)[..., :seqlen] + skip.double()[:, None] * gated
    return y * post.double()


BOUNDS = [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 2.5e-3)]


SIZES = [((2, 3, 300), 512), ((1, 2, 5000), 8192), ((1, 1, 9000), 16384), ((1, 1, 20001), 32768)]  # a kernel each


def conv_inputs(dtype: torch.dtype, batch: int, dim: int, seqlen: int, channels_last: bool) -> list[Tensor]:
    """u, k, k_rev, skip, pregate, postgate, dout; every one a view with gaps."""
    wide = torch.randn(batch, 2 * dim, seqlen + 5, 4).to(dtype)
    u, pre, post, dout = (
        wide[:, ::2, 5:, i].transpose(1, 2) if channels_last else wide[:, ::2, 5:, i] for i in range(4)
    )
    k, k_rev = torch.randn(seqlen, dim).T / seqlen**0.5, torch.randn(dim, seqlen)[:, 1:] / seqlen**0.5
    return [u, k, k_rev, torch.randn(dim, 2)[:, 1], pre, post, dout]


@pytest.mark.parametrize(("dtype", "tolerance"), BOUNDS, ids=str)
@pytest.mark.parametrize(("shape", "size"), SIZES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_emulated_fft_conv_and_its_gradients_match_float64(
    ops: Any, channels_last: bool, shape: tuple[int, int, int], size: int, dtype: torch.dtype, tolerance: float
) -> None:
    check_conv(ops, channels_last, shape, size, dtype, tolerance)


@pytest.mark.parametrize(("points", "bounds"), [(2**19, BOUNDS[1]), (2**20, BOUNDS[2]), (2**22, BOUNDS[0])], ids=str)
def test_emulated_fft_conv_of_the_longest_sequences(ops: Any, points: int, bounds: tuple[torch.dtype, float]) -> None:
    """Two and three passes through memory around the rows."""
    check_conv(ops, False, (1, 1, points), points, *bounds)


def check_conv(
    ops: Any, channels_last: bool, shape: tuple[int, int, int], size: int, dtype: torch.dtype, tolerance: float
) -> None:
    """fft_conv and all its gradients are within their bounds, and would not be if they were a hundredth off."""
    *inputs, dout = conv_inputs(dtype, *shape, channels_last)
    u, k, k_rev, skip, pre, post = inputs
    leaves = [x.double().requires_grad_() for x in inputs]
    rows = (lambda x: x.transpose(1, 2)) if channels_last else (lambda x: x)
    exact = rows(exact_conv(*(rows(x) if x.dim() == 3 else x for x in leaves)))
    exact.backward(dout.double())
    spectrum = ops.filter_spectrum(k, k_rev, size)
    out = ops.fft_conv(u, spectrum, skip, pre, post, channels_last)
    assert out.shape == exact.shape and out.is_contiguous() and out.dtype == dtype
    assert not far(out, exact, tolerance) and far(0.99 * out.double(), exact, tolerance)
    du, dspectrum, *rest = ops.fft_conv_bwd(dout, u, spectrum, skip, pre, post, channels_last)
    grads = [du, *ops.filter_spectrum_bwd(dspectrum, k.shape[1], k_rev.shape[1]), *rest]
    # The filter's gradients are float32 whatever u is; tensor cores, up to 16,384 points, multiply float16 for them.
    taps = 1e-3 if dtype != torch.float32 and size <= 16384 else 1e-6
    bounds = [tolerance, taps, taps, 1e-6, tolerance, tolerance]
    for grad, leaf, bound in zip(grads, leaves, bounds, strict=True):
        assert leaf.grad is not None and grad.shape == leaf.shape
        assert not far(grad, leaf.grad, bound) and far(0.99 * grad.double(), leaf.grad, bound)


@pytest.mark.parametrize(("dtype", "tolerance"), BOUNDS, ids=str)
@pytest.mark.parametrize(
    "absent", [("k_rev",), ("skip",), ("pre",), ("post",), ("k_rev", "skip", "pre", "post")], ids=str
)
def test_emulated_fft_conv_without_its_options(
    ops: Any, absent: tuple[str, ...], dtype: torch.dtype, tolerance: float
) -> None:
    u, k, k_rev, skip, pre, post, dout = conv_inputs(dtype, 2, 3, 300, False)
    given = {"k_rev": k_rev, "skip": skip, "pre": pre, "post": post}
    neutral = {name: torch.ones_like(x) if x.dim() == 3 else torch.zeros_like(x) for name, x in given.items()}
    used = {name: neutral[name] if name in absent else x for name, x in given.items()}
    wide = {name: x.double().requires_grad_() for name, x in {"u": u, "k": k, **used}.items()}
    exact = exact_conv(*(wide[name] for name in ("u", "k", "k_rev", "skip", "pre", "post")))
    exact.backward(dout.double())
    some = {name: None if name in absent else x for name, x in given.items()}
    spectrum = ops.filter_spectrum(k, some["k_rev"], 512)
    args = (u, spectrum, some["skip"], some["pre"], some["post"], False)
    assert not far(ops.fft_conv(*args), exact, tolerance) and far(torch.zeros_like(exact), exact, 0.9)
    du, _, dskip, *dgates = ops.fft_conv_bwd(dout, *args)
    grads = {"u": du, "skip": dskip, "pre": dgates[0], "post": dgates[1]}
    for name, grad in grads.items():
        if name in ("pre", "post") and name in absent:
            assert grad.numel() == 0
            continue
        leaf = wide[name].grad
        assert leaf is not None and not far(grad, leaf, 1e-6 if name == "skip" else tolerance)


def test_emulated_boundary_handles_empty_tensors(ops: Any) -> None:
    spectrum = ops.filter_spectrum(torch.randn(3, 7), None, 256)
    for shape in ((0, 3, 9), (2, 3, 0)):
        assert ops.fft_conv(torch.randn(shape), spectrum, None, None, None, False).shape == shape
        du, dspectrum, dskip, *_ = ops.fft_conv_bwd(
            torch.randn(shape), torch.randn(shape), spectrum, *[None] * 3, False
        )
        assert du.shape == shape and torch.equal(dspectrum, torch.zeros(3, 512)) and torch.equal(dskip, torch.zeros(3))
    assert [t.shape for t in ops.filter_spectrum_bwd(torch.zeros(0, 512), 7, 0)] == [(0, 7), (0, 0)]
    assert ops.filter_spectrum(torch.randn(0, 7), None, 256).shape == (0, 512)
    assert torch.equal(ops.filter_spectrum(torch.randn(3, 0), None, 256), torch.zeros(3, 512))


def test_emulated_boundary_passes_opcheck(ops: Any) -> None:
    spectrum = ops.filter_spectrum(torch.randn(3, 7), torch.randn(3, 5), 256)
    args = (torch.randn(2, 3, 9), spectrum, torch.randn(3), None, torch.randn(2, 3, 9), False)
    torch.library.opcheck(ops.fft_conv.default, args, test_utils="test_schema")
    torch.library.opcheck(ops.fft_conv_bwd.default, (args[0], *args), test_utils="test_schema")
    torch.library.opcheck(ops.filter_spectrum_bwd.default, (spectrum, 3, 2), test_utils="test_schema")


@pytest.mark.parametrize("seqlen", [300, 5000, 20001])
def test_emulated_offsets_beyond_32_bits(ops: Any, seqlen: int) -> None:
    """Batch entries more than 2^31 elements apart, in memory of which only they are ever touched."""
    stride, shapes = 2**31 + 64, [*[(2, 3, seqlen)] * 4, (2, 9, 1), (2, 3, 1)]
    memory = torch.empty(stride + 4 * 3 * seqlen + 12, dtype=torch.float16)
    tensors, start = [], 0
    for shape in shapes:
        row = (shape[2], 1) if shape[2] > 1 else (1, 1)
        tensors.append(memory.as_strided(shape, (stride, *row), start).copy_(torch.randn(shape)))
        start += shape[1] * shape[2]
    u, pre, post, dout, p, x = tensors
    k, k_rev, skip = (torch.randn(*s) / seqlen**0.5 for s in ((3, seqlen), (3, seqlen - 1), (3,)))
    leaves = [t.double().requires_grad_() for t in (u, k, k_rev, skip, pre, post)]
    exact = exact_conv(*leaves)
    exact.backward(dout.double())
    spectrum = ops.filter_spectrum(k, k_rev, max(512, 1 << (seqlen - 1).bit_length()))
    assert not far(ops.fft_conv(u, spectrum, skip, pre, post, False), exact, 1e-3)
    du, _, _, *dgates = ops.fft_conv_bwd(dout, u, spectrum, skip, pre, post, False)
    for grad, leaf in zip((du, *dgates), (leaves[0], *leaves[4:]), strict=True):
        assert leaf.grad is not None and not far(grad, leaf.grad, 1e-3)
    weight, bias = torch.randn(3, 3), torch.randn(3)
    wide = [t.double().requires_grad_() for t in (u, weight, bias)]
    short = conv1d(*wide)
    short.backward(dout.double())
    assert not far(ops.short_conv(u, weight, bias, False), short, 1e-3)
    assert wide[0].grad is not None and not far(ops.short_conv_bwd(dout, u, weight, False)[0], wide[0].grad, 1e-3)
    mixed = [p.transpose(1, 2), x.transpose(1, 2), torch.randn(9, 3), None]
    spectrum = ops.filter_spectrum(k[:, :1], None, 256)
    out = ops.monarch_mixer(*mixed, spectrum, skip, None, None, None)
    reference = m2ops.monarch_mixer_ref(*(t if t is None else t.double() for t in mixed), k[:, :1].double(), None, skip)
    assert not far(out, reference, 2e-3)  # six values


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """float64 causal depthwise convolution of (batch, dim, seqlen)."""
    past, dim = weight.shape[1] - 1, x.shape[1]
    padded = F.conv1d(x.double(), weight.double()[:, None], bias.double(), padding=past, groups=dim)
    return padded[..., : x.shape[2]]


def far(got: Tensor, exact: Tensor, tolerance: float) -> bool:
    return float((got.double() - exact.detach()).norm() / exact.detach().norm()) > tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), BOUNDS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_emulated_short_conv_matches_conv1d(
    ops: Any, channels_last: bool, dtype: torch.dtype, tolerance: float
) -> None:
    batch, dim, seqlen, width = 2, 35, 72, 3
    x, dout = (torch.randn(batch, dim, 2 * seqlen).to(dtype)[..., seqlen:] for _ in range(2))
    weight, bias = torch.randn(width, dim).T, torch.randn(dim, 2)[:, 1]
    rows = (lambda y: y.transpose(1, 2)) if channels_last else (lambda y: y)
    out = rows(ops.short_conv(rows(x).contiguous() if channels_last else x, weight, bias, channels_last))
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact = conv1d(*wide)
    exact.backward(dout.double())
    grads = ops.short_conv_bwd(rows(dout), rows(x), weight, channels_last)
    assert out.dtype == dtype and not far(out, exact, tolerance) and far(torch.zeros_like(out), exact, 0.9)
    for grad, leaf, bound in zip((rows(grads[0]), *grads[1:]), wide, (tolerance, 1e-6, 1e-6), strict=True):
        assert leaf.grad is not None and grad.shape == leaf.shape
        assert not far(grad, leaf.grad, bound) and far(0.99 * grad.double(), leaf.grad, bound)


def test_emulated_short_conv_handles_empty_tensors_and_infinities(ops: Any) -> None:
    weight = torch.randn(3, 4)
    for shape in ((0, 3, 9), (2, 3, 0)):
        x = torch.randn(shape)
        assert ops.short_conv(x, weight, None, False).shape == shape
        dx, dweight, dbias = ops.short_conv_bwd(x, x, weight, False)
        assert dx.shape == shape and torch.equal(dweight, torch.zeros(3, 4)) and torch.equal(dbias, torch.zeros(3))
    x = torch.zeros(1, 3, 24)
    x[..., 9] = torch.inf  # reaches positions 9 .. 12 and no others
    out = ops.short_conv(x, torch.ones(3, 4), None, False)
    assert torch.equal(out.isfinite(), torch.tensor([t not in range(9, 13) for t in range(24)]).expand(1, 3, 24))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 2.5e-3)], ids=str)
@pytest.mark.parametrize("blocks", [1, 4])
def test_emulated_blockdiag_glu_matches_products(ops: Any, blocks: int, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(3, 7, 32 * blocks + 8).to(dtype)[..., 8:]  # rows with gaps
    w_in, w_out = torch.randn(blocks, 128, 32).to(dtype), torch.randn(blocks, 24, 64).to(dtype)
    b_out = torch.randn(24 * blocks).to(dtype)
    assert ops.blockdiag_glu_fits(x.reshape(21, -1), w_in, w_out)
    out = glu_with_kernel(ops, x, w_in, w_out, b_out)
    exact = m2ops.blockdiag_glu_ref(*(t.double() for t in (x, w_in, w_out, b_out)))
    assert out.dtype == dtype and out.shape == exact.shape
    assert not far(out, exact, tolerance) and far(0.98 * out.double(), exact, tolerance)


def test_blockdiag_glu_goes_without_the_kernel_where_it_does_not_fit(ops: Any) -> None:
    fits = torch.zeros(2, 32), torch.zeros(1, 128, 32), torch.zeros(1, 24, 64)
    assert not ops.blockdiag_glu_fits(*fits)  # float32
    x, w_in, w_out = (t.half() for t in fits)
    assert ops.blockdiag_glu_fits(x, w_in, w_out)
    assert not ops.blockdiag_glu_fits(torch.zeros(2, 33).half()[:, 1:], w_in, w_out)  # not aligned
    assert not ops.blockdiag_glu_fits(x, w_in[:, :96].contiguous(), w_out[..., :48].contiguous())  # 48 % 32 != 0
    assert glu_with_kernel(ops, x, w_in[:, :96], w_out[..., :48], None).shape == (2, 24)
    with pytest.raises(ValueError, match=r"no kernel for rows .* call blockdiag_glu, which serves all sizes"):
        ops.blockdiag_glu_fused(x, w_in.transpose(1, 2).contiguous().transpose(1, 2), w_out, None)


def test_emulated_short_conv_passes_opcheck(ops: Any) -> None:
    x, weight, bias = torch.randn(2, 5, 9), torch.randn(5, 3), torch.randn(5)
    torch.library.opcheck(ops.short_conv.default, (x, weight, bias, False), test_utils="test_schema")
    torch.library.opcheck(ops.short_conv_bwd.default, (x, x, weight, False), test_utils="test_schema")


@pytest.mark.parametrize(("dtype", "tolerance"), BOUNDS, ids=str)
@pytest.mark.parametrize("seqlen", [1, 200, 700, 5000, 20001])
def test_emulated_monarch_mixer_matches_float64(ops: Any, seqlen: int, dtype: torch.dtype, tolerance: float) -> None:
    batch, dim, width, size = 2, 3, 3, max(256, 1 << (seqlen - 1).bit_length())
    p, u = (torch.randn(batch, seqlen, 2 * n).to(dtype)[..., n:] for n in (3 * dim, dim))
    weight, bias, skips = torch.randn(3 * dim, width), torch.randn(3 * dim), torch.randn(2, dim)
    k, k_rev, k2, k2_rev = torch.randn(4, dim, seqlen) / seqlen**0.5
    mask = torch.arange(seqlen) < torch.tensor([[seqlen], [seqlen // 2 + 1]])
    other = 2 * size if seqlen <= 700 else size  # the two spectra need not be of one size
    first, second = ops.filter_spectrum(k, k_rev, size), ops.filter_spectrum(k2, k2_rev, other)
    for given in (mask, None):
        hidden = p if given is None else p.masked_fill(~given[..., None], torch.nan)  # must not matter
        for residual in (True, False):
            parts = (second, skips[1]) if residual else (None, None)
            out = ops.monarch_mixer(hidden, u, weight, bias, first, skips[0], *parts, given)
            wide = [t.double() for t in (p, u, weight, bias, k, k_rev, skips[0])]
            extra = [t.double() for t in (k2, k2_rev, skips[1])] if residual else [None, None, None]
            exact = m2ops.monarch_mixer_ref(*wide, *extra, given)
            assert out.dtype == dtype and not far(out, exact, tolerance) and far(0.99 * out.double(), exact, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), BOUNDS, ids=str)
@pytest.mark.parametrize("seqlen", [1, 200, 700, 5000, 20001])
def test_emulated_gradients_of_monarch_mixer_match_float64(
    ops: Any, seqlen: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Of views with gaps; what lies under the mask is NaN."""
    batch, dim, width, size = 2, 2, 3, max(256, 1 << (seqlen - 1).bit_length())
    p, u, dout = (torch.randn(batch, seqlen, 2 * n).to(dtype)[..., n:] for n in (3 * dim, dim, dim))
    weight, bias, skips = torch.randn(3 * dim, width), torch.randn(3 * dim), torch.randn(2, dim)
    filters = list(torch.randn(4, dim, seqlen) / seqlen**0.5)
    mask = torch.arange(seqlen) < torch.tensor([[seqlen], [seqlen // 2 + 1]])
    first, second = (ops.filter_spectrum(*pair, size) for pair in (filters[:2], filters[2:]))
    for given, residual in ((mask, True), (None, False)):
        hidden = [x if given is None else x.masked_fill(~given[..., None], torch.nan) for x in (dout, p, u)]
        parts = (second, skips[1]) if residual else (None, None)
        got = ops.monarch_mixer_bwd(*hidden, weight, bias, first, skips[0], *parts, given)
        leaves = [t.double().requires_grad_() for t in (p, u, weight, bias, *filters, *skips)]
        one, two = (*leaves[4:6], leaves[8]), (*leaves[6:8], leaves[9]) if residual else (None, None, None)
        m2ops.monarch_mixer_ref(*leaves[:4], *one, *two, given).backward(dout.double())
        dk = [g for d in (got[4], got[6])[: 1 + residual] for g in ops.filter_spectrum_bwd(d, seqlen, seqlen)]
        wanted = [leaves[0], *leaves[2:6], leaves[8]] + ([leaves[1], *leaves[6:8], leaves[9]] if residual else [])
        found = [got[0], *got[2:4], *dk[:2], got[5]] + ([got[1], *dk[2:], got[7]] if residual else [])
        for grad, leaf in zip(found, wanted, strict=True):
            assert leaf.grad is not None and grad.shape == leaf.shape
            if float(leaf.grad.norm()) == 0:  # filters of one position have nothing to look back on
                assert not grad.any()
                continue
            bound = tolerance if grad.dtype == dtype else 1e-6  # parameters' gradients are float32 whatever u is
            assert not far(grad, leaf.grad, bound) and far(0.99 * grad.double(), leaf.grad, bound)
        assert [x.numel() for x in got[1::5]] == ([u.numel(), second.numel()] if residual else [0, 0])


def mixer_call(seqlen: int, points: int) -> list[Tensor | None]:
    """Arguments of monarch_mixer, one channel."""
    tensors = [torch.randn(2, seqlen, 3), torch.randn(2, seqlen, 1), torch.randn(3, 3), torch.randn(3)]
    return [*tensors, torch.randn(1, 2 * points), torch.randn(1), torch.randn(1, 2 * points), torch.randn(1), None]


def test_emulated_gradients_of_monarch_mixer_of_empty_tensors(ops: Any) -> None:
    for batch, seqlen in ((0, 9), (2, 0)):
        args = mixer_call(seqlen, 256)
        p, u = (x[:batch] for x in args[:2] if x is not None)
        got = ops.monarch_mixer_bwd(u, p, u, *args[2:])
        assert got[0].shape == p.shape and got[1].shape == u.shape
        assert [tuple(x.shape) for x in got[2:]] == [(3, 3), (3,), (1, 512), (1,), (1, 512), (1,)]
        assert not any(x.any() for x in got)


def test_emulated_gradients_of_monarch_mixer_pass_opcheck(ops: Any) -> None:
    args = mixer_call(9, 256)
    torch.library.opcheck(ops.monarch_mixer_bwd.default, (args[1], *args), test_utils="test_schema")


U, K, SPECTRUM = torch.zeros(2, 3, 300), torch.zeros(3, 300), torch.zeros(3, 1024)
BAD_CALLS: dict[str, tuple[Callable[[Any], object], str]] = {  # the call, its message
    "fft_size": (lambda ops: ops.filter_spectrum(K, None, 768), "a power of two from 256 to 4194304, got 768"),
    "k dtype": (lambda ops: ops.filter_spectrum(K.double(), None, 512), "k must be float32 .* got Double"),
    "k shape": (lambda ops: ops.filter_spectrum(K[0], None, 512), r"shape \(dim, taps\), got \(300,\)"),
    "k_rev shape": (lambda ops: ops.filter_spectrum(K, K[:2], 512), r"with dim 3, got \(2, 300\)"),
    "u dtype": (
        lambda ops: ops.fft_conv(U.double(), SPECTRUM, None, None, None, False),
        r"u must be float32, float16 or bfloat16 on CUDA, got Double; convert it with \.float\(\)",
    ),
    "gate dtype": (
        lambda ops: ops.fft_conv(U, SPECTRUM, None, None, U.half(), False),
        r"postgate must have the shape and dtype of u, \(2, 3, 300\) Float, got \(2, 3, 300\) Half",
    ),
    "spectrum dtype": (
        lambda ops: ops.fft_conv(U, SPECTRUM.double(), None, None, None, False),
        r"spectrum must be float32 on CUDA, got Double",
    ),
    "dout": (
        lambda ops: ops.fft_conv_bwd(U.half(), U, SPECTRUM, None, None, None, False),
        r"dout must have the shape and dtype of u",
    ),
    "dspectrum": (lambda ops: ops.filter_spectrum_bwd(SPECTRUM[0], 3, 2), r"shape \(dim, 2 \* fft_size\), got"),
    "u shape": (
        lambda ops: ops.fft_conv(U[0], SPECTRUM, None, None, None, False),
        r"u must have 3 dimensions, got \(3, 300\)",
    ),
    "layout": (
        lambda ops: ops.fft_conv(U, SPECTRUM, None, None, None, True),
        r"spectrum must have shape \(dim, 2 \* fft_size\) with dim 300, got \(3, 1024\)",
    ),
    "gate shape": (
        lambda ops: ops.fft_conv(U, SPECTRUM, None, U[:1], None, False),
        r"pregate must have the shape and dtype of u, \(2, 3, 300\) Float, got \(1, 3, 300\) Float",
    ),
    "skip shape": (
        lambda ops: ops.fft_conv(U, SPECTRUM, K[0], None, None, False),
        r"skip must have shape \(dim,\) = \(3,\), got \(300,\)",
    ),
    "seqlen": (
        lambda ops: ops.fft_conv(torch.zeros(1, 3, 513), SPECTRUM, None, None, None, False),
        "serves at most 512 positions, got seqlen 513; make it with",
    ),
    "alignment": (
        lambda ops: ops.fft_conv(U, torch.zeros(3 * 1024 + 1)[1:].view(3, 1024), None, None, None, False),
        r"8-byte boundary; pass a copy",
    ),
    "mixer dout": (
        lambda ops: ops.monarch_mixer_bwd(U.half(), *mixer_call(300, 512)),
        r"dout must have the shape and dtype of u, \(2, 300, 1\) Float, got \(2, 3, 300\) Half",
    ),
    "mixer p": (
        lambda ops: ops.monarch_mixer_bwd(U, U, *mixer_call(300, 512)[1:]),
        r"p must have shape \(batch, seqlen, 3 \* dim\) and the dtype of u, \(2, 300, 1\), got \(2, 3, 300\)",
    ),
    "short dtype": (
        lambda ops: ops.short_conv(U.double(), K[:, :3], None, False),
        r"x must be float32, float16 or bfloat16 on CUDA, got Double; convert it with \.float\(\)",
    ),
    "short width": (
        lambda ops: ops.short_conv(U, K[:, :8], None, False),
        r"weight must have shape \(dim, width\) with dim 3 and width 2 .. 7, got \(3, 8\)",
    ),
    "short bias": (
        lambda ops: ops.short_conv(U, K[:, :3], K[0], False),
        r"bias must have shape \(dim,\) = \(3,\), got \(300,\)",
    ),
    "short dout": (
        lambda ops: ops.short_conv_bwd(U.half(), U, K[:, :3], False),
        r"dout must have the shape and dtype of x, \(2, 3, 300\)",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_emulated_boundary_names_the_rule(ops: Any, name: str) -> None:
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        call(ops)
