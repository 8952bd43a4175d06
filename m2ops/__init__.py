"""Operators of Monarch Mixer models on kernels for CPU and CUDA, each with a plain-torch reference (`_ref`).

`from m2ops import monarch_mixer` is the front door. Public names only.
"""

from __future__ import annotations

from m2ops._blockdiag import (
    blockdiag_glu,
    blockdiag_glu_ref,
    blockdiag_matmul,
    blockdiag_matmul_ref,
    monarch_matmul,
    monarch_matmul_ref,
)
from m2ops._fft_conv import (
    FilterSpectrum,
    empty_spectrum,
    empty_spectrum_ref,
    fft_conv,
    fft_conv_ref,
    fft_size,
    filter_spectrum,
    filter_spectrum_ref,
)
from m2ops._isa import available_isas, current_isa, use_isa
from m2ops._memory import empty_pool, keep_freed_memory
from m2ops._monarch_mixer import monarch_mixer, monarch_mixer_ref
from m2ops._plans import FftPlan, SearchedPlan, fft_plan, search_fft_plans, use_kept_plans
from m2ops._short_conv import short_conv, short_conv_ref

__version__ = "0.1.0"
use_kept_plans()
del use_kept_plans
__all__ = [
    "FftPlan",
    "FilterSpectrum",
    "SearchedPlan",
    "available_isas",
    "blockdiag_glu",
    "blockdiag_glu_ref",
    "blockdiag_matmul",
    "blockdiag_matmul_ref",
    "current_isa",
    "empty_pool",
    "empty_spectrum",
    "empty_spectrum_ref",
    "fft_conv",
    "fft_conv_ref",
    "fft_plan",
    "fft_size",
    "filter_spectrum",
    "filter_spectrum_ref",
    "keep_freed_memory",
    "monarch_matmul",
    "monarch_matmul_ref",
    "monarch_mixer",
    "monarch_mixer_ref",
    "search_fft_plans",
    "short_conv",
    "short_conv_ref",
    "use_isa",
]
