"""The sequence mixer of M2-BERT between its two dense projections: monarch_mixer.

Kernels: csrc/cpu/monarch_mixer.inl behind csrc/monarch_mixer.cpp; csrc/cuda/monarch_mixer*.cu behind
csrc/cuda_ops/monarch_mixer.cpp.
Test: tests/ops/test_monarch_mixer.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2ops._fft_conv import FilterSpectrum, check_filter_for, fft_conv_ref, filters_in_time, spectrum_data
from m2ops._layout import (
    apply_mask,
    cast,
    check_like,
    check_mask,
    check_shape,
    check_tensor,
    check_vector,
    compute_dtype,
)
from m2ops._library import autocast, implement, in_forward_mode, refuse_second_gradient, to
from m2ops._short_conv import MAX_WIDTH, MIN_WIDTH, short_conv_ref


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


def _check_inputs(
    p: Tensor, u: Tensor, short_weight: Tensor, short_bias: Tensor | None, mask: Tensor | None
) -> tuple[int, int]:
    """Raise unless the activations and the short convolution fit; (dim, seqlen)."""
    check_tensor("monarch_mixer", "p", p, 3, "(batch, seqlen, 3 * dim)")
    check_tensor("monarch_mixer", "u", u, 3, "(batch, seqlen, dim)")
    batch, seqlen, dim = u.shape
    check_shape("monarch_mixer", "p", p, "(batch, seqlen, 3 * dim)", (batch, seqlen, 3 * dim))
    check_like("monarch_mixer", "p", p, "u", u)
    check_tensor("monarch_mixer", "short_weight", short_weight, 2, "(3 * dim, width)")
    check_shape("monarch_mixer", "short_weight", short_weight, "(3 * dim, width)", (3 * dim, short_weight.shape[1]))
    check_like("monarch_mixer", "short_weight", short_weight, "u", u, dtype=False)
    if not MIN_WIDTH <= short_weight.shape[1] <= MAX_WIDTH:
        raise ValueError(f"monarch_mixer: width of short_weight must be 2 .. 7, got {short_weight.shape[1]}")
    check_vector("monarch_mixer", "short_bias", short_bias, "(3 * dim,)", 3 * dim, "u", u)
    check_mask("monarch_mixer", mask, batch, seqlen)
    return dim, seqlen


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
        short_weight: (3 * dim, width), width 2 .. 7.
        short_bias: (3 * dim,) or None.
        k: (dim, taps) filter of the gated convolution, or a FilterSpectrum.
        k_rev: (dim, taps) or None; None with a FilterSpectrum.
        skip: (dim,) or None.
        k2: as k, for the residual long convolution of u; None leaves it out.
        k2_rev: as k_rev, with k2.
        skip2: as skip, with k2.
        mask: (batch, seqlen) bool, True at real tokens. Others contribute nothing to any position and give 0.

    Returns:
        (batch, seqlen, dim) in the dtype of p.

    Forward-mode derivatives are those of :func:`monarch_mixer_ref`, which then computes in its place.

    Raises:
        TypeError, ValueError: wrong shape, dtype, device.
        NotImplementedError: forward-mode derivatives with a FilterSpectrum.

    Source: Monarch Mixer, arXiv 2310.12109; residual long convolution and order of the channels: M2-BERT.
    """
    dim, seqlen = _check_inputs(p, u, short_weight, short_bias, mask)
    if k2 is None and (k2_rev is not None or skip2 is not None):
        raise ValueError("monarch_mixer: k2_rev and skip2 must be None when k2 is, got a tensor; pass k2 with them")
    for suffix, filters, reverse, factor in (("", k, k_rev, skip), ("2", k2, k2_rev, skip2)):
        if filters is not None:
            check_filter_for("monarch_mixer", "k" + suffix, filters, reverse, u, dim, seqlen)
        check_vector("monarch_mixer", "skip" + suffix, factor, "(dim,)", dim, "u", u)
    if seqlen == 0:
        return u + p[..., :dim]  # empty, with the gradients' way back
    rest = (p, u, short_weight, short_bias, skip, skip2)
    if in_forward_mode(
        *(x for f, r in ((k, k_rev), (k2, k2_rev)) for x in filters_in_time("monarch_mixer", f, r, *rest))
    ):
        return monarch_mixer_ref(p, u, short_weight, short_bias, k, k_rev, skip, k2, k2_rev, skip2, mask)
    dtype = compute_dtype(u.dtype)
    spectrum = spectrum_data(k, k_rev, u, seqlen)
    spectrum2 = None if k2 is None else spectrum_data(k2, k2_rev, u, seqlen)
    short = short_weight.to(dtype), cast(dtype, short_bias)
    factors = cast(dtype, skip), cast(dtype, skip2)
    return torch.ops.m2ops.monarch_mixer(p, u, *short, spectrum, factors[0], spectrum2, factors[1], mask)


# The composition of the other operators, in the computing precision: what devices without a kernel of their own run.
@implement("monarch_mixer", "CompositeExplicitAutograd")
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
    ops, dtype = torch.ops.m2ops, u.dtype
    p, u = p.to(spectrum.dtype), u.to(spectrum.dtype)
    x1, x2, v = _gates_and_value(p, short_weight, short_bias, mask)
    out = ops.fft_conv(v, spectrum, skip, x1, x2, True)
    if spectrum2 is not None:
        out = out + ops.fft_conv(apply_mask("monarch_mixer", u, mask, True), spectrum2, skip2, None, None, True)
    return apply_mask("monarch_mixer", out, mask, True).to(dtype)


def _gates_and_value(
    p: Tensor, short_weight: Tensor, short_bias: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    mixed = torch.ops.m2ops.short_conv(apply_mask("monarch_mixer", p, mask, True), short_weight, short_bias, True)
    x1, x2, v = mixed.chunk(3, dim=-1)
    # The bias of the short convolution makes padded positions non-zero again.
    return x1, x2, apply_mask("monarch_mixer", v, mask, True)


@implement("monarch_mixer_bwd", "CompositeExplicitAutograd")
def _monarch_mixer_bwd(
    dout: Tensor,
    p: Tensor,
    u: Tensor,
    short_weight: Tensor,
    short_bias: Tensor | None,
    spectrum: Tensor,
    skip: Tensor | None,
    spectrum2: Tensor | None,
    skip2: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, ...]:
    ops, dtype = torch.ops.m2ops, u.dtype
    dout, p, u = (apply_mask("monarch_mixer", x, mask, True).to(spectrum.dtype) for x in (dout, p, u))
    x1, x2, v = _gates_and_value(p, short_weight, short_bias, mask)
    dv, dspectrum, dskip, dx1, dx2 = ops.fft_conv_bwd(dout, v, spectrum, skip, x1, x2, True)
    dmixed = torch.cat([dx1, dx2, apply_mask("monarch_mixer", dv, mask, True)], dim=-1)
    dp, dweight, dbias = ops.short_conv_bwd(dmixed, p, short_weight, True)
    first = apply_mask("monarch_mixer", dp, mask, True).to(dtype)
    if spectrum2 is None:
        nothing = [t.new_empty(0) for t in (first, dspectrum, dskip)]
        return first, nothing[0], dweight, dbias, dspectrum, dskip, *nothing[1:]
    du, *second, _, _ = ops.fft_conv_bwd(dout, u, spectrum2, skip2, None, None, True)
    return first, apply_mask("monarch_mixer", du, mask, True).to(dtype), dweight, dbias, dspectrum, dskip, *second


@torch.library.register_fake("m2ops::monarch_mixer")
def _(
    p: Tensor, u: Tensor, short_weight: Tensor, short_bias: Any, spectrum: Tensor, skip: Any, spectrum2: Any, *rest: Any
) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.register_fake("m2ops::monarch_mixer_bwd")
def _(
    dout: Tensor, p: Tensor, u: Tensor, short_weight: Tensor, short_bias: Any, spectrum: Tensor, skip: Any,
    spectrum2: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    dim = spectrum.shape[0]
    dshort = short_weight.new_empty(short_weight.shape), short_weight.new_empty(3 * dim)
    first = spectrum.new_empty(spectrum.shape), spectrum.new_empty(dim)
    if spectrum2 is None:
        return p.new_empty(p.shape), u.new_empty(0), *dshort, *first, spectrum.new_empty(0), spectrum.new_empty(0)
    second = spectrum.new_empty(spectrum2.shape), spectrum.new_empty(dim)
    return p.new_empty(p.shape), u.new_empty(u.shape), *dshort, *first, *second


def _setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    inputs = ctx.saved_tensors
    grads = torch.ops.m2ops.monarch_mixer_bwd(dout, *inputs)
    residual = inputs[6] is not None
    used = (True, residual, *(x is not None for x in inputs[2:6]), residual, residual and inputs[7] is not None)
    return (*(g if need and use else None
              for g, need, use in zip(grads, ctx.needs_input_grad, used, strict=False)), None)  # fmt: skip


torch.library.register_autograd("m2ops::monarch_mixer", _backward, setup_context=_setup)
refuse_second_gradient("monarch_mixer")
# Under autocast activations take the low precision; weights, filters and spectra stay float32.
autocast("monarch_mixer", lambda dtype, p, u, *rest: (to(dtype, p), to(dtype, u), *rest))
