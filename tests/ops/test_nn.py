"""The modules hand their parameters to the operators: compared with the references, gradients reach everything."""

from __future__ import annotations

import torch

from m2ops import blockdiag_matmul_ref, fft_conv_ref, short_conv_ref
from m2ops.nn import BlockDiagLinear, LongConv, ShortConv
from m2ops.testing import assert_matches


def test_modules_match_the_references() -> None:
    x = torch.randn(2, 40, 12)
    linear, long_conv, short_conv = BlockDiagLinear(12, 20, 4), LongConv(12, 64), ShortConv(12)
    wide = x.double()
    assert_matches(linear(x), blockdiag_matmul_ref(wide, linear.weight.double(), linear.bias.double()).detach())
    params = (long_conv.k.double(), long_conv.k_rev.double(), long_conv.skip.double())
    assert_matches(long_conv(x), fft_conv_ref(wide, *params, layout="bld").detach())
    params = (short_conv.weight.double(), short_conv.bias.double())
    assert_matches(short_conv(x), short_conv_ref(wide, *params, layout="bld").detach())
    short_conv(long_conv(x)).sum().backward()
    linear(x).sum().backward()
    for module in (linear, long_conv, short_conv):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
