"""Random shapes, layouts, types and instruction sets of the operators against their references in float64.

M2BERT_PROPERTIES=2000 M2BERT_PROPERTIES_SEED=7 python -m pytest -s tests/ops/test_properties.py     a campaign
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import m2ops
from m2ops.testing import assert_matches, bound_for

EXAMPLES = int(os.environ.get("M2BERT_PROPERTIES", "60"))
SEED = int(os.environ.get("M2BERT_PROPERTIES_SEED", "22"))
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# A few elements, or sums that cancel, have more than the error of many; zeros and damage are far beyond.
SLACK = 4.0

sizes = st.tuples(
    st.integers(1, 3),
    st.sampled_from([1, 3, 8, 15, 16, 17, 33]),
    st.one_of(st.integers(1, 300), st.sampled_from([511, 512, 513, 1000, 1536])),
)
common = {
    "size": sizes,
    "dtype": st.sampled_from(DTYPES),
    "isa": st.sampled_from(m2ops.available_isas()),
    "layout": st.sampled_from(["bdl", "bld"]),
    "step": st.booleans(),
    "threads": st.integers(1, 3),
    "draw": st.integers(0, 2**31 - 1),
}


@pytest.fixture(scope="module", autouse=True)
def told() -> None:
    print(f"tests/ops/test_properties.py: {EXAMPLES} examples of each, seed {SEED}", file=sys.stderr)


def random_like(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, step: bool) -> Tensor:
    """Normal numbers; `step`: every second element of memory whose others are NaN."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if not step:
        return values
    wide = torch.full((*shape[:-1], 2 * shape[-1]), torch.nan, dtype=dtype)
    wide[..., ::2] = values
    return wide[..., ::2]


def doubled(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in tensors.items()}


def judge(operator: Any, reference: Any, tensors: dict[str, Any], isa: str, threads: int, **options: Any) -> None:
    torch.set_num_threads(threads)
    with m2ops.use_isa(isa):
        out = operator(**tensors, **options)
        torch.set_num_threads(1)
        assert torch.equal(out, operator(**tensors, **options))  # the same bits for every number of threads
    exact = reference(**doubled(tensors), **options)
    assert_matches(out, exact, bound=SLACK * bound_for(exact, out.dtype))


def property_of(**extra: Any) -> Any:
    def decorate(test: Any) -> Any:
        quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
        bounded = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=quiet)
        return seed(SEED)(bounded(given(**common, **extra)(test)))

    return decorate


@property_of(taps=st.integers(1, 400), taps_back=st.integers(0, 400), gates=st.booleans())
def test_fft_conv(
    size: Any,
    dtype: Any,
    isa: str,
    layout: str,
    step: bool,
    threads: int,
    draw: int,
    taps: int,
    taps_back: int,
    gates: bool,
) -> None:
    batch, dim, seqlen = size
    generator, wide = torch.Generator().manual_seed(draw), torch.float64 if dtype == torch.float64 else torch.float32
    shape = (batch, dim, seqlen) if layout == "bdl" else (batch, seqlen, dim)
    tensors = {
        "u": random_like(shape, dtype, generator, step),
        "k": random_like((dim, taps), wide, generator, False),
        "k_rev": random_like((dim, taps_back), wide, generator, False) if taps_back else None,
        "pregate": random_like(shape, dtype, generator, False) if gates else None,
        "postgate": random_like(shape, dtype, generator, step) if gates else None,
        "skip": random_like((dim,), wide, generator, False),
    }
    judge(m2ops.fft_conv, m2ops.fft_conv_ref, tensors, isa, threads, layout=layout)


@property_of(width=st.integers(2, 7), masked=st.booleans())
def test_short_conv(
    size: Any, dtype: Any, isa: str, layout: str, step: bool, threads: int, draw: int, width: int, masked: bool
) -> None:
    batch, dim, seqlen = size
    generator, wide = torch.Generator().manual_seed(draw), torch.float64 if dtype == torch.float64 else torch.float32
    shape = (batch, dim, seqlen) if layout == "bdl" else (batch, seqlen, dim)
    lengths = torch.randint(0, seqlen + 1, (batch, 1), generator=generator)
    tensors = {
        "x": random_like(shape, dtype, generator, step),
        "weight": random_like((dim, width), wide, generator, False),
        "bias": random_like((dim,), wide, generator, False),
        "mask": torch.arange(seqlen)[None] < lengths if masked else None,
    }
    judge(m2ops.short_conv, m2ops.short_conv_ref, tensors, isa, threads, layout=layout)
