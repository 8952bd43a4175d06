"""Depthwise long convolution by FFT, gated and bidirectional: fft_conv, filter_spectrum, FilterSpectrum.

Kernels: csrc/cpu/fft_conv.inl behind csrc/fft_conv.cpp; csrc/cuda/fft_conv*.cu behind csrc/cuda_ops/fft_conv.cpp.
Test: tests/ops/test_fft_conv.py. Benchmark: benchmarks/bench_fft_conv.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from m2ops._layout import (
    apply_mask,
    cast,
    check_layout,
    check_like,
    check_shape,
    check_tensor,
    check_vector,
    compute_dtype,
)
from m2ops._library import autocast, implement, in_forward_mode, refuse_second_gradient, to

MAX_SEQLEN = 1 << 22


@dataclass(frozen=True)
class FilterSpectrum:
    """The transformed filter of :func:`fft_conv`, made by :func:`filter_spectrum` for reuse.

    `data` is opaque: its order belongs to the device (and to the reference) that made it. It serves every
    sequence of at most `max_seqlen` positions.
    """

    data: Tensor
    max_seqlen: int
    reference: bool = False

    @property
    def dim(self) -> int:
        """Number of channels."""
        return self.data.shape[0]

    def rows(self, first: int, last: int) -> FilterSpectrum:
        """That of the channels first .. last, in the same memory."""
        return replace(self, data=self.data[first:last])

    @property
    def nbytes(self) -> int:
        """Bytes of memory the spectrum holds."""
        return self.data.numel() * self.data.element_size()


def filter_spectrum_ref(
    k: Tensor, k_rev: Tensor | None, seqlen: int, *, out: FilterSpectrum | None = None
) -> FilterSpectrum:
    """Plain-torch meaning of :func:`filter_spectrum`: rfft of the two-sided filter, zero-padded to 2*seqlen."""
    dtype = compute_dtype(k.dtype)
    kernel = torch.zeros(k.shape[0], 2 * seqlen, dtype=dtype, device=k.device)
    taps = min(k.shape[1], seqlen)
    kernel[:, :taps] = k[:, :taps].to(dtype)
    if k_rev is not None:
        taps_rev = min(k_rev.shape[1], seqlen - 1)
        reverse = torch.zeros_like(kernel)
        reverse[:, 2 * seqlen - taps_rev :] = k_rev[:, :taps_rev].to(dtype).flip(-1)
        kernel = kernel + reverse
    data = torch.fft.rfft(kernel)
    return FilterSpectrum(data if out is None else out.data.copy_(data), seqlen, reference=True)


def empty_spectrum_ref(dim: int, seqlen: int, like: Tensor) -> FilterSpectrum:
    """That of :func:`empty_spectrum` for :func:`filter_spectrum_ref`."""
    wide = torch.complex128 if compute_dtype(like.dtype) == torch.float64 else torch.complex64
    return FilterSpectrum(like.new_empty(dim, seqlen + 1, dtype=wide), seqlen, reference=True)


def _masked(
    u: Tensor, pregate: Tensor | None, postgate: Tensor | None, mask: Tensor | None, channels_last: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Input and gates with zeros under the mask: 0 times a gate that is not finite would not be 0, nor its gradient."""

    def zeroed(x: Tensor | None) -> Tensor | None:
        return x if x is None else apply_mask("fft_conv", x, mask, channels_last)

    return apply_mask("fft_conv", u, mask, channels_last), zeroed(pregate), zeroed(postgate)


def fft_conv_ref(
    u: Tensor,
    k: Tensor | FilterSpectrum,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
    postgate: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    layout: str = "bdl",
) -> Tensor:
    """Plain-torch meaning of :func:`fft_conv`: zero-padded rfft, product, irfft in float32 (float64 for float64)."""
    channels_last = layout == "bld"
    dtype = compute_dtype(u.dtype)

    def rows(x: Tensor) -> Tensor:
        return (x.transpose(1, 2) if channels_last else x).to(dtype)

    u, pregate, postgate = _masked(u, pregate, postgate, mask, channels_last)
    signal = rows(u)
    if pregate is not None:
        signal = signal * rows(pregate)
    seqlen = signal.shape[-1]
    spectrum = k if isinstance(k, FilterSpectrum) else filter_spectrum_ref(k, k_rev, max(seqlen, 1))
    size = 2 * spectrum.max_seqlen
    out = torch.fft.irfft(torch.fft.rfft(signal, n=size) * spectrum.data, n=size)[..., :seqlen]
    if skip is not None:
        out = out + skip.to(dtype)[:, None] * signal
    if postgate is not None:
        out = out * rows(postgate)
    out = (out.transpose(1, 2) if channels_last else out).to(u.dtype)
    return apply_mask("fft_conv", out, mask, channels_last)


def fft_size(seqlen: int) -> int:
    """Length of the transform that serves `seqlen` positions: 64 * 2^a * {1, 3, 5}.

    The rule of csrc/plan in plain Python, so that torch.compile can trace through it.
    Raises ValueError unless 1 <= seqlen <= 2^22.
    """
    if not 1 <= seqlen <= MAX_SEQLEN:
        raise ValueError(f"fft_conv: seqlen must be between 1 and {MAX_SEQLEN}, got {seqlen}; split longer signals")
    sizes = []
    for size in (64, 192, 320):
        while size < seqlen:
            size *= 2
        sizes.append(size)
    return min(sizes)


def _transform_size(seqlen: int, device: torch.device) -> int:
    """fft_size for the kernels of a device: those for CUDA know powers of two only, so far."""
    return 1 << max(8, (seqlen - 1).bit_length()) if device.type == "cuda" else fft_size(seqlen)


def _check_filter(op: str, name: str, k: Tensor, k_rev: Tensor | None) -> None:
    check_tensor(op, name, k, 2, "(dim, taps)")
    if k_rev is not None:
        check_tensor(op, f"{name}_rev", k_rev, 2, "(dim, taps)")
        check_shape(op, f"{name}_rev", k_rev, "(dim, taps)", (k.shape[0], k_rev.shape[1]))
        check_like(op, f"{name}_rev", k_rev, name, k)


def check_filter_for(
    op: str, name: str, k: Tensor | FilterSpectrum, k_rev: Tensor | None, u: Tensor, dim: int, seqlen: int
) -> None:
    """Raise unless the filter, in time or transformed, serves `seqlen` positions of `dim` channels beside `u`."""
    if not isinstance(k, FilterSpectrum):
        _check_filter(op, name, k, k_rev)
        check_shape(op, name, k, "(dim, taps)", (dim, k.shape[1]))
        check_like(op, name, k, "u", u, dtype=False)
        return
    if k_rev is not None:
        raise ValueError(f"{op}: {name}_rev must be None when {name} is a FilterSpectrum (it holds both), got a tensor")
    if k.reference:
        raise ValueError(f"{op}: {name} is a spectrum of filter_spectrum_ref; make it with filter_spectrum")
    if k.dim != dim or seqlen > k.max_seqlen:
        raise ValueError(
            f"{op}: the spectrum {name} serves dim {k.dim} and up to {k.max_seqlen} positions, got u with dim {dim} "
            f"and {seqlen} positions; make it with filter_spectrum(k, k_rev, {seqlen})"
        )
    check_like(op, name, k.data, "u", u, dtype=False)


def filters_in_time(
    op: str, k: Tensor | FilterSpectrum | None, k_rev: Tensor | None, *others: Tensor | None
) -> tuple[Tensor | None, ...]:
    """All of them as tensors. Raises NotImplementedError for a spectrum where one of `others` has a tangent."""
    if isinstance(k, FilterSpectrum):
        if in_forward_mode(k.data, *others):
            raise NotImplementedError(
                f"{op}: a FilterSpectrum has no forward-mode derivative, got one beside a tangent; pass the filter"
            )
        return others
    return (k, k_rev, *others)


def spectrum_data(k: Tensor | FilterSpectrum, k_rev: Tensor | None, u: Tensor, seqlen: int) -> Tensor:
    """The spectrum that serves `seqlen` positions of `u`, in the dtype `u` is computed in."""
    dtype = compute_dtype(u.dtype)
    if isinstance(k, FilterSpectrum):
        return k.data.to(dtype)
    return torch.ops.m2ops.filter_spectrum(k.to(dtype), cast(dtype, k_rev), _transform_size(seqlen, u.device))


def empty_spectrum(dim: int, seqlen: int, like: Tensor) -> FilterSpectrum:
    """Memory for :func:`filter_spectrum` to write to, some channels at a time; its values are arbitrary.

    Args:
        dim: number of channels.
        seqlen: largest number of positions the spectrum must serve, in positions.
        like: (any shape) a filter, whose device it has and whose computing dtype.

    Raises:
        ValueError: seqlen outside 1 .. 2^22.
    """
    size = _transform_size(fft_size(seqlen), like.device)
    return FilterSpectrum(torch.ops.m2ops._empty_spectrum(like.to(compute_dtype(like.dtype)), dim, size), size)


def filter_spectrum(
    k: Tensor, k_rev: Tensor | None, seqlen: int, *, out: FilterSpectrum | None = None
) -> FilterSpectrum:
    """Transform a filter once, for reuse by :func:`fft_conv` at every length up to `seqlen`.

    Args:
        k: (dim, taps), lags 0, 1, ...; taps beyond the transform length have no effect.
        k_rev: (dim, taps), lags -1, -2, ...; None for a causal filter.
        seqlen: largest number of positions the spectrum must serve, in positions.
        out: where to write it, of dim channels: :func:`empty_spectrum` or rows of one. Not differentiable then.

    Returns:
        FilterSpectrum in float32 (float64 for float64 filters), 8 bytes per channel and transform point; `out` if
        there is one. Differentiable with respect to `k` and `k_rev`.

    Raises:
        TypeError, ValueError: wrong shape, dtype or device; seqlen outside 1 .. 2^22; an `out` of another size, or
            while gradients are recorded.

    Source: right-angle convolution, docs/kernels.md.
    """
    _check_filter("filter_spectrum", "k", k, k_rev)
    dtype = compute_dtype(k.dtype)
    size = _transform_size(fft_size(seqlen), k.device)
    if in_forward_mode(k, k_rev):
        raise NotImplementedError(
            "filter_spectrum: it has no forward-mode derivative, got a filter with a tangent; give it to fft_conv"
        )
    if out is None:
        return FilterSpectrum(torch.ops.m2ops.filter_spectrum(k.to(dtype), cast(dtype, k_rev), size), size)
    want, got = (k.shape[0], 2 * size), tuple(out.data.shape)
    if got != want or out.data.dtype != dtype or out.reference or not out.data.is_contiguous():
        raise ValueError(
            f"filter_spectrum: out must have {want} numbers of {dtype} in rows that lie together, got {got} of "
            f"{out.data.dtype}; make it with empty_spectrum({k.shape[0]}, {seqlen}, k)"
        )
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (k, k_rev)):
        raise ValueError(
            "filter_spectrum: out cannot be given where a gradient is wanted; leave it away, or use no_grad()"
        )
    torch.ops.m2ops._filter_spectrum_into(k.to(dtype), cast(dtype, k_rev), out.data)
    return out


def _check_conv(
    u: Tensor, k: Tensor | FilterSpectrum, k_rev: Tensor | None, skip: Tensor | None, layout: str
) -> tuple[bool, int]:
    channels_last = check_layout("fft_conv", layout)
    axes = "(batch, seqlen, dim)" if channels_last else "(batch, dim, seqlen)"
    check_tensor("fft_conv", "u", u, 3, axes)
    dim, seqlen = (u.shape[2], u.shape[1]) if channels_last else (u.shape[1], u.shape[2])
    check_filter_for("fft_conv", "k", k, k_rev, u, dim, seqlen)
    check_vector("fft_conv", "skip", skip, "(dim,)", dim, "u", u)
    return channels_last, seqlen


def fft_conv(
    u: Tensor,
    k: Tensor | FilterSpectrum,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
    postgate: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    layout: str = "bdl",
) -> Tensor:
    """Depthwise long convolution, gated and bidirectional, in O(seqlen log seqlen).

    With g = u * pregate, per channel::

        y[t] = sum_{s <= t} k[t - s] g[s] + sum_{s > t} k_rev[s - t - 1] g[s] + skip g[t]
        out = y * postgate

    Equivalent to (causal case)::

        n = 2 * seqlen
        y = torch.fft.irfft(torch.fft.rfft(u * pregate, n) * torch.fft.rfft(k, n), n)[..., :seqlen]
        out = (y + skip[:, None] * u * pregate) * postgate

    Args:
        u: (batch, dim, seqlen), or (batch, seqlen, dim) with layout="bld"; float32, bfloat16, float16 or float64.
        k: (dim, taps), or a FilterSpectrum that serves seqlen. Any number of taps.
        k_rev: (dim, taps_rev) or None (causal). Lag 0 belongs to k alone.
        skip: (dim,) or None.
        pregate: shape and dtype of u, or None.
        postgate: the same.
        mask: (batch, seqlen) bool, True at real tokens. Others contribute nothing and give 0.
        layout: "bdl" or "bld".

    Returns:
        Tensor of the shape and dtype of u. Computed in float32 (float64 for float64): relative L2 error below 1e-6
        for float32, rounding of the output for bfloat16 and float16, 1e-12 for float64. On CUDA, 16-bit tensors of up
        to 4,096 positions are transformed with float16 operands and float32 sums, safe for any range of values: errors
        within 2.5e-3 and 1e-3 for filters that do not cancel nearly all of their input.

    Forward-mode derivatives are those of :func:`fft_conv_ref`, which then computes in its place.

    Raises:
        TypeError, ValueError: wrong shape, dtype, device or layout, with the remedy.
        NotImplementedError: forward-mode derivatives with a FilterSpectrum.

    Source: long convolution of the M2-BERT sequence mixer, arXiv 2402.07440; right-angle convolution, docs/kernels.md.
    """
    channels_last, seqlen = _check_conv(u, k, k_rev, skip, layout)
    for name, gate in (("pregate", pregate), ("postgate", postgate)):
        if gate is not None:
            check_tensor("fft_conv", name, gate, 3, "of u")
            check_shape("fft_conv", name, gate, "of u", u.shape)
            check_like("fft_conv", name, gate, "u", u)
    dtype = compute_dtype(u.dtype)
    u, pregate, postgate = _masked(u, pregate, postgate, mask, channels_last)
    if seqlen == 0:
        return u.clone()
    if in_forward_mode(*filters_in_time("fft_conv", k, k_rev, u, skip, pregate, postgate)):
        return fft_conv_ref(u, k, k_rev, skip, pregate, postgate, mask, layout=layout)
    data = spectrum_data(k, k_rev, u, seqlen)
    out = torch.ops.m2ops.fft_conv(u, data, cast(dtype, skip), pregate, postgate, channels_last)
    return apply_mask("fft_conv", out, mask, channels_last)


@torch.library.register_fake("m2ops::filter_spectrum")
def _(k: Tensor, k_rev: Tensor | None, fft_size: int) -> Tensor:
    return k.new_empty(k.shape[0], 2 * fft_size)


@implement("_empty_spectrum", "CompositeExplicitAutograd")
def _empty_spectrum(like: Tensor, dim: int, fft_size: int) -> Tensor:
    return like.new_empty(dim, 2 * fft_size)


@implement("_filter_spectrum_into", "CompositeExplicitAutograd")
def _filter_spectrum_into(k: Tensor, k_rev: Tensor | None, out: Tensor) -> None:
    out.copy_(torch.ops.m2ops.filter_spectrum(k, k_rev, out.shape[1] // 2))


@torch.library.register_fake("m2ops::_empty_spectrum")
def _(like: Tensor, dim: int, fft_size: int) -> Tensor:
    return like.new_empty(dim, 2 * fft_size)


@torch.library.register_fake("m2ops::_filter_spectrum_into")
def _(k: Tensor, k_rev: Tensor | None, out: Tensor) -> None:
    return None


@torch.library.register_fake("m2ops::filter_spectrum_bwd")
def _(dspectrum: Tensor, taps: int, taps_rev: int) -> tuple[Tensor, Tensor]:
    return dspectrum.new_empty(dspectrum.shape[0], taps), dspectrum.new_empty(dspectrum.shape[0], taps_rev)


@torch.library.register_fake("m2ops::fft_conv")
def _(u: Tensor, spectrum: Tensor, skip: Any, pregate: Any, postgate: Any, channels_last: bool) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.register_fake("m2ops::fft_conv_bwd")
def _(
    dout: Tensor, u: Tensor, spectrum: Tensor, skip: Any, pregate: Any, postgate: Any, channels_last: bool
) -> tuple[Tensor, ...]:
    dim = spectrum.shape[0]
    dpre, dpost = (u.new_empty(0 if gate is None else u.shape) for gate in (pregate, postgate))
    return u.new_empty(u.shape), spectrum.new_empty(spectrum.shape), spectrum.new_empty(dim), dpre, dpost


def _spectrum_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    k, k_rev, _ = inputs
    ctx.taps, ctx.taps_rev = k.shape[1], None if k_rev is None else k_rev.shape[1]


def _spectrum_backward(ctx: Any, dspectrum: Tensor) -> tuple[Any, ...]:
    dk, dk_rev = torch.ops.m2ops.filter_spectrum_bwd(dspectrum, ctx.taps, ctx.taps_rev or 0)
    return dk, None if ctx.taps_rev is None else dk_rev, None


def _conv_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    u, spectrum, skip, pregate, postgate, ctx.channels_last = inputs
    ctx.save_for_backward(u, spectrum, skip, pregate, postgate)


def _conv_backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    u, spectrum, skip, pregate, postgate = ctx.saved_tensors
    grads = torch.ops.m2ops.fft_conv_bwd(dout, u, spectrum, skip, pregate, postgate, ctx.channels_last)
    wanted = (u, spectrum, skip, pregate, postgate)
    return (*(g if x is not None and need else None
              for g, x, need in zip(grads, wanted, ctx.needs_input_grad, strict=False)), None)  # fmt: skip


torch.library.register_autograd("m2ops::filter_spectrum", _spectrum_backward, setup_context=_spectrum_setup)
torch.library.register_autograd("m2ops::fft_conv", _conv_backward, setup_context=_conv_setup)
refuse_second_gradient("fft_conv")
refuse_second_gradient("filter_spectrum")
# Under autocast activations take the low precision, filters and spectra stay float32.
autocast("filter_spectrum", lambda dtype, k, k_rev, size: (to(torch.float32, k), to(torch.float32, k_rev), size))
autocast(
    "fft_conv",
    lambda dtype, u, spectrum, skip, pre, post, last: (
        to(dtype, u),
        spectrum,
        skip,
        to(dtype, pre),
        to(dtype, post),
        last,
    ),
)
