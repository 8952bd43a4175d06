"""Depthwise long convolution by FFT, gated and bidirectional: fft_conv, filter_spectrum, FilterSpectrum.

Kernels: csrc/cpu/fft_conv.inl behind csrc/fft_conv.cpp. May import m2ops._library and _layout.
Test: tests/test_fft_conv.py. Benchmark: benchmarks/bench_fft_conv.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from m2ops._layout import apply_mask, compute_dtype


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

    @property
    def nbytes(self) -> int:
        """Bytes of memory the spectrum holds."""
        return self.data.numel() * self.data.element_size()


def filter_spectrum_ref(k: Tensor, k_rev: Tensor | None, seqlen: int) -> FilterSpectrum:
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
    return FilterSpectrum(torch.fft.rfft(kernel), seqlen, reference=True)


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

    signal = rows(apply_mask("fft_conv", u, mask, channels_last))
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
