"""Random shapes, layouts, types and instruction sets of the operators, and their gradients, against float64.

The references are plain torch, which has their gradients too; the operators have kernels of their own for both.

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
from m2ops.testing import BOUNDS, assert_matches, bound_for

EXAMPLES = int(os.environ.get("M2BERT_PROPERTIES", "60"))
SEED = int(os.environ.get("M2BERT_PROPERTIES_SEED", "22"))
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# A few elements, or sums that cancel, have more than the error of many; zeros and damage are far beyond. Gradients are
# products of what was rounded, and those of weights sums over all tokens. What a gate gives is rounded once more.
SLACK, SLACK_OF_GRADIENTS, SLACK_OF_GATES = 4.0, 12.0, 2.5
NOISE = 1e-13

sizes = st.tuples(
    st.integers(1, 3),
    st.sampled_from([1, 3, 8, 15, 16, 17, 33]),
    st.one_of(st.integers(1, 300), st.sampled_from([511, 512, 513, 1000, 1536])),
)
common = {
    "dtype": st.sampled_from(DTYPES),
    "isa": st.sampled_from(m2ops.available_isas()),
    "step": st.booleans(),
    "threads": st.integers(1, 3),
    "draw": st.integers(0, 2**31 - 1),
}
of_some = {"size": sizes, "layout": st.sampled_from(["bdl", "bld"])}


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


def wide_of(dtype: torch.dtype) -> torch.dtype:
    """What filters and weights of activations of a type have."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ragged(batch: int, seqlen: int, generator: torch.Generator) -> Tensor:
    """A mask (batch, seqlen) whose rows end anywhere, at their beginning too."""
    return torch.arange(seqlen)[None] < torch.randint(0, seqlen + 1, (batch, 1), generator=generator)


def doubled(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in tensors.items()}


def judge(
    operator: Any,
    reference: Any,
    tensors: dict[str, Any],
    isa: str,
    threads: int,
    *,
    slack: float = 1.0,
    same_bits: bool = True,
    **options: Any,
) -> None:
    """Compare value and gradients, of all that is a number; same_bits: those of one thread are those of `threads`."""
    wide = doubled(tensors)
    exact = reference(**wide, **options)
    dout = torch.randn(exact.shape, generator=torch.Generator().manual_seed(threads), dtype=torch.float64)
    dout = dout.to(next(iter(tensors.values())).dtype)
    wanted = gradients_of(reference, wide, dout.double(), options)
    seen = []
    with m2ops.use_isa(isa):
        for count in (threads, 1):
            torch.set_num_threads(count)
            seen.append((operator(**tensors, **options), gradients_of(operator, tensors, dout, options)))
    (out, gradients), (again, gradients_again) = seen
    assert_matches(out, exact, bound=slack * SLACK * bound_for(exact, out.dtype))
    assert gradients.keys() == wanted.keys()
    largest = max(float(want.norm()) for want in wanted.values())
    for name, gradient in gradients.items():
        assert gradient.dtype == tensors[name].dtype
        want = wanted[name]
        if float(want.norm()) <= NOISE * largest:  # 0, but for the rounding of the reference's own transform
            assert float(gradient.double().norm()) <= BOUNDS[gradient.dtype] * largest
            continue
        assert_matches(gradient, want, bound=slack * SLACK_OF_GRADIENTS * bound_for(want, gradient.dtype))
    if same_bits:
        assert torch.equal(out, again)
        assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)


def leaves_of(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same memory, of which gradients are wanted."""
    return {
        name: x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in tensors.items()
    }


def gradients_of(operator: Any, tensors: dict[str, Any], dout: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    leaves = leaves_of(tensors)
    wanted = {name: x for name, x in leaves.items() if isinstance(x, Tensor) and x.requires_grad}
    made = torch.autograd.grad(operator(**leaves, **options), list(wanted.values()), dout, materialize_grads=True)
    return dict(zip(wanted, made, strict=True))


def property_of(*names: str, **extra: Any) -> Any:
    """What the operators share, those of `of_some` that are named, and `extra`, drawn at random."""
    drawn = {**common, **{name: of_some[name] for name in names}, **extra}

    def decorate(test: Any) -> Any:
        quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
        bounded = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=quiet)
        return seed(SEED)(bounded(given(**drawn)(test)))

    return decorate


@property_of("size", "layout", taps=st.integers(1, 400), taps_back=st.integers(0, 400), gates=st.booleans())
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
    generator, wide = torch.Generator().manual_seed(draw), wide_of(dtype)
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


@property_of("size", "layout", width=st.integers(2, 7), masked=st.booleans())
def test_short_conv(
    size: Any, dtype: Any, isa: str, layout: str, step: bool, threads: int, draw: int, width: int, masked: bool
) -> None:
    batch, dim, seqlen = size
    generator, wide = torch.Generator().manual_seed(draw), wide_of(dtype)
    shape = (batch, dim, seqlen) if layout == "bdl" else (batch, seqlen, dim)
    tensors = {
        "x": random_like(shape, dtype, generator, step),
        "weight": random_like((dim, width), wide, generator, False),
        "bias": random_like((dim,), wide, generator, False),
        "mask": ragged(batch, seqlen, generator) if masked else None,
    }
    judge(m2ops.short_conv, m2ops.short_conv_ref, tensors, isa, threads, layout=layout)


@property_of(
    "size",
    width=st.integers(2, 7),
    taps=st.integers(1, 400),
    both_ways=st.booleans(),
    two=st.booleans(),
    masked=st.booleans(),
)
def test_monarch_mixer(
    size: Any,
    dtype: Any,
    isa: str,
    step: bool,
    threads: int,
    draw: int,
    width: int,
    taps: int,
    both_ways: bool,
    two: bool,
    masked: bool,
) -> None:
    batch, dim, seqlen = size
    generator, wide = torch.Generator().manual_seed(draw), wide_of(dtype)

    def filters(suffix: str) -> dict[str, Tensor | None]:
        back = random_like((dim, taps), wide, generator, False) if both_ways else None
        forth, skip = random_like((dim, taps), wide, generator, False), random_like((dim,), wide, generator, False)
        return {"k" + suffix: forth, f"k{suffix}_rev": back, "skip" + suffix: skip}

    tensors = {
        "p": random_like((batch, seqlen, 3 * dim), dtype, generator, step),
        "u": random_like((batch, seqlen, dim), dtype, generator, False),
        "short_weight": random_like((3 * dim, width), wide, generator, False),
        "short_bias": random_like((3 * dim,), wide, generator, False),
        "mask": ragged(batch, seqlen, generator) if masked else None,
        **filters(""),
        **(filters("2") if two else {}),
    }
    judge(m2ops.monarch_mixer, m2ops.monarch_mixer_ref, tensors, isa, threads, slack=SLACK_OF_GATES)


@property_of(
    blocks=st.tuples(st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 4])),
    widths=st.tuples(*3 * [st.sampled_from([1, 2, 3, 8, 16, 17, 33, 48])]),
    tokens=st.sampled_from([1, 2, 3, 17, 191, 192, 193, 1025]),
)
def test_blockdiag_glu(
    dtype: Any, isa: str, step: bool, threads: int, draw: int, blocks: Any, widths: Any, tokens: int
) -> None:
    """The products inherit what torch's promise, which are not the same bits for every number of threads."""
    (inner, outer), (wide_in, hidden, wide_out) = blocks, widths
    generator = torch.Generator().manual_seed(draw)
    channels = 2 * inner * outer * hidden  # of gate and value, so that both numbers of blocks divide them
    tensors = {
        "x": random_like((tokens, inner * wide_in), dtype, generator, step),
        "w_in": random_like((inner, channels // inner, wide_in), dtype, generator, False),
        "w_out": random_like((outer, wide_out, inner * hidden), dtype, generator, False),
        "b_out": random_like((outer * wide_out,), dtype, generator, False),
    }
    judge(
        m2ops.blockdiag_glu, m2ops.blockdiag_glu_ref, tensors, isa, threads, slack=SLACK_OF_GATES, same_bits=False
    )  # fmt: skip
