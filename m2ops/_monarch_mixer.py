"""The sequence mixer of M2-BERT between its two dense projections: monarch_mixer.

May import the other operators. Test: tests/test_monarch_mixer.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m2ops._fft_conv import FilterSpectrum, fft_conv_ref, filter_spectrum
from m2ops._layout import apply_mask, check_like, check_mask, check_shape, check_tensor, compute_dtype
from m2ops._library import implement
from m2ops._short_conv import WIDTHS, short_conv_ref


def monarch_mixer_ref(
    p: Tensor,
    u: Tensor,
    short_weight: Tensor,
    short_bias: Tensor | None,
    k: Tensor | FilterSpectrum,
    k_rev: Tensor | None,
    skip: Tensor | None,
    k2: Tensor | FilterSpectrum | None = None,
    k2_rev: Tensor | None = None,
    skip2: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Plain-torch meaning of :func:`monarch_mixer`."""
    mixed = short_conv_ref(p, short_weight, short_bias, mask, layout="bld")
    x1, x2, v = apply_mask("monarch_mixer", mixed, mask, True).chunk(3, dim=-1)
    out = fft_conv_ref(v, k, k_rev, skip, pregate=x1, postgate=x2, mask=mask, layout="bld")
    if k2 is None:
        return out
    return out + fft_conv_ref(u, k2, k2_rev, skip2, mask=mask, layout="bld")


def _spectrum(name: str, k: Tensor | FilterSpectrum, k_rev: Tensor | None, dim: int, seqlen: int) -> Tensor:
    if isinstance(k, FilterSpectrum):
        if k_rev is not None:
            raise ValueError(f"monarch_mixer: {name}_rev must be None when {name} is a FilterSpectrum, got a tensor")
        if k.reference or k.dim != dim or k.max_seqlen < seqlen:
            raise ValueError(
                f"monarch_mixer: {name} must be a spectrum of filter_spectrum for dim {dim} and {seqlen} positions, "
                f"got dim {k.dim}, up to {k.max_seqlen} positions"
            )
        return k.data
    check_tensor("monarch_mixer", name, k, 2, "(dim, taps)")
    check_shape("monarch_mixer", name, k, "(dim, taps)", (dim, k.shape[1]))
    return filter_spectrum(k, k_rev, max(seqlen, 1)).data


def monarch_mixer(
    p: Tensor,
    u: Tensor,
    short_weight: Tensor,
    short_bias: Tensor | None,
    k: Tensor | FilterSpectrum,
    k_rev: Tensor | None,
    skip: Tensor | None,
    k2: Tensor | FilterSpectrum | None = None,
    k2_rev: Tensor | None = None,
    skip2: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The sequence mixer of M2-BERT between its two dense projections.

    Equivalent to::

        x1, x2, v = short_conv(p, short_weight, short_bias, layout="bld").chunk(3, dim=-1)
        out = fft_conv(v, k, k_rev, skip, pregate=x1, postgate=x2, layout="bld")
        out = out + fft_conv(u, k2, k2_rev, skip2, layout="bld")     # residual long convolution, if k2 is given

    Args:
        p: (batch, seqlen, 3 * dim), the projected input; channels in the order x1, x2, v.
        u: (batch, seqlen, dim), the layer's input, dtype of p.
        short_weight: (3 * dim, width), width 2 .. 7. short_bias: (3 * dim,) or None.
        k, k_rev: (dim, taps) filters of the gated convolution, or a FilterSpectrum and None. skip: (dim,) or None.
        k2, k2_rev, skip2: the same for the residual long convolution of u; k2 None leaves it out.
        mask: (batch, seqlen) bool, True at real tokens. Others contribute nothing to any position and give 0.

    Returns:
        (batch, seqlen, dim) in the dtype of p.

    Raises:
        TypeError, ValueError: wrong shape, dtype, device.

    Source: Monarch Mixer, arXiv 2310.12109; residual long convolution and order of the channels: M2-BERT.
    """
    check_tensor("monarch_mixer", "p", p, 3, "(batch, seqlen, 3 * dim)")
    check_tensor("monarch_mixer", "u", u, 3, "(batch, seqlen, dim)")
    batch, seqlen, dim = u.shape
    check_shape("monarch_mixer", "p", p, "(batch, seqlen, 3 * dim)", (batch, seqlen, 3 * dim))
    check_like("monarch_mixer", "p", p, "u", u)
    check_tensor("monarch_mixer", "short_weight", short_weight, 2, "(3 * dim, width)")
    check_shape("monarch_mixer", "short_weight", short_weight, "(3 * dim, width)", (3 * dim, short_weight.shape[1]))
    if short_weight.shape[1] not in WIDTHS:
        raise ValueError(f"monarch_mixer: width of short_weight must be 2 .. 7, got {short_weight.shape[1]}")
    if seqlen == 0:
        return torch.zeros_like(u)
    dtype = compute_dtype(u.dtype)
    spectrum = _spectrum("k", k, k_rev, dim, seqlen)
    spectrum2 = None if k2 is None else _spectrum("k2", k2, k2_rev, dim, seqlen)
    check_mask("monarch_mixer", mask, batch, seqlen)

    def wide(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(dtype)

    return torch.ops.m2ops.monarch_mixer(
        p, u, short_weight.to(dtype), wide(short_bias), spectrum, wide(skip), spectrum2, wide(skip2), mask
    )


@implement("monarch_mixer", "CompositeImplicitAutograd")
def _monarch_mixer(
    p: Tensor,
    u: Tensor,
    short_weight: Tensor,
    short_bias: Tensor | None,
    spectrum: Tensor,
    skip: Tensor | None,
    spectrum2: Tensor | None,
    skip2: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    ops = torch.ops.m2ops
    mixed = ops.short_conv(apply_mask("monarch_mixer", p, mask, True), short_weight, short_bias, True)
    x1, x2, v = mixed.chunk(3, dim=-1)
    # The bias of the short convolution makes padded positions non-zero again; zero what enters and what leaves.
    out = ops.fft_conv(apply_mask("monarch_mixer", v, mask, True), spectrum, skip, x1, x2, True)
    if spectrum2 is not None:
        out = out + ops.fft_conv(apply_mask("monarch_mixer", u, mask, True), spectrum2, skip2, None, None, True)
    return apply_mask("monarch_mixer", out, mask, True)
