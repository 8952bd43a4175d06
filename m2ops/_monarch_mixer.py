"""The sequence mixer of M2-BERT between its two dense projections: monarch_mixer.

May import the other operators. Test: tests/test_monarch_mixer.py.
"""

from __future__ import annotations

from torch import Tensor

from m2ops._fft_conv import FilterSpectrum, fft_conv_ref
from m2ops._layout import apply_mask
from m2ops._short_conv import short_conv_ref


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
