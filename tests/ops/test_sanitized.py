"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

By hand, since the build takes minutes of CPU time: `M2OPS_SANITIZE=1 python -m pytest tests/ops/test_sanitized.py`. The
tests are those of the operators, on the sizes of test_aarch64.py; the program ends at the first access that is not its
own, which fails the test with its report.
"""

from __future__ import annotations

import os
from itertools import product

import pytest
import test_blockdiag as blockdiag
import test_fft_conv as fft_conv
import test_monarch_mixer as monarch_mixer
import test_short_conv as short_conv
import torch
from aarch64 import Aarch64, sanitized
from native import needs_compiler

import m2ops

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(not os.environ.get("M2OPS_SANITIZE"), reason="a build of minutes, by hand: M2OPS_SANITIZE=1"),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HERE = m2ops.current_isa()


@pytest.mark.parametrize("isa", m2ops.available_isas())
def test_kernels_touch_no_memory_that_is_not_theirs(isa: str) -> None:
    assert b"__asan_report_store" in sanitized().with_name("m2ops").joinpath("libm2ops_kernels.so").read_bytes()
    machine = Aarch64(isa, command=[str(sanitized())])
    with machine:
        for dtype in DTYPES:
            for seqlen in (1, 3, 63, 129, 380, 1280):
                fft_conv.test_fft_conv_matches_the_direct_sum(seqlen, dtype)
            for seqlen, dim in ((5, 16), (100, 17)):
                fft_conv.test_fft_conv_reads_channels_last(seqlen, dim, dtype)
            for layout, (dim, seqlen, width) in product(("bdl", "bld"), ((1, 1, 2), (17, 50, 3), (40, 33, 7))):
                short_conv.test_short_conv_matches_conv1d(layout, dim, seqlen, width, dtype)
            for seqlen in (1, 3, 63, 129):
                monarch_mixer.test_monarch_mixer_at_awkward_lengths_under_a_ragged_mask(seqlen, dtype)
            for seqlen, width in ((2, 7), (33, 2), (150, 3)):
                monarch_mixer.test_monarch_mixer_gradients_match_the_reference(seqlen, width, dtype)
            for tokens in (1, 31, 193):
                blockdiag.test_the_fused_mlp_takes_awkward_sizes(tokens, HERE, dtype)
                blockdiag.test_the_gradient_of_the_fused_mlp_takes_awkward_sizes(tokens, HERE, dtype)
        for seqlen, dtype in product((40, 300, 3100, 12300), (torch.float32, torch.bfloat16)):
            fft_conv.test_fft_conv_of_rows_that_are_first_split(seqlen, dtype, "bdl")
    assert len(machine.calls) > 200
    machine.close()
