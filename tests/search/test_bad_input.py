"""Wrong shapes, dtypes, devices and layouts: one clear sentence each, saying the rule and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import m2ops

U, K = torch.randn(2, 3, 8), torch.randn(3, 8)
MIXER: dict[str, Any] = dict(
    p=torch.randn(2, 8, 9),
    u=torch.randn(2, 8, 3),
    short_weight=torch.randn(9, 3),
    short_bias=None,
    k=K,
    k_rev=K,
    skip=None,
)

CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: m2ops.fft_conv([1.0], K), TypeError, "fft_conv: u must be a torch.Tensor"),
    (lambda: m2ops.fft_conv(U[0], K), ValueError, "u must have shape (batch, dim, seqlen), got (3, 8)"),
    (lambda: m2ops.fft_conv(U.int(), K), TypeError, "got torch.int32; convert it with .float()"),
    (lambda: m2ops.fft_conv(U, K[:2]), ValueError, "k must have shape (dim, taps) = (3, 8), got (2, 8)"),
    (lambda: m2ops.fft_conv(U, K, K[:2]), ValueError, "k_rev must have shape (dim, taps) = (3, 8), got (2, 8)"),
    (lambda: m2ops.fft_conv(U, K, K.double()), TypeError, "k_rev must have the dtype of k"),
    (lambda: m2ops.fft_conv(U, K, skip=torch.randn(4)), ValueError, "skip must have shape (dim,) = (3,), got (4,)"),
    (lambda: m2ops.fft_conv(U, K, pregate=U[:1]), ValueError, "pregate must have shape of u"),
    (lambda: m2ops.fft_conv(U, K, postgate=U.bfloat16()), TypeError, "postgate must have the dtype of u"),
    (lambda: m2ops.fft_conv(U, K.to("meta")), ValueError, "k must be on the device of u (cpu), got meta"),
    (
        lambda: m2ops.fft_conv(U, K, skip=torch.randn(3, device="meta")),
        ValueError,
        "skip must be on the device of u (cpu), got meta",
    ),
    (
        lambda: m2ops.fft_conv(U, K, mask=torch.ones(2, 8, dtype=torch.bool, device="meta")),
        ValueError,
        "mask must be on the device of",
    ),
    (lambda: m2ops.fft_conv(U, K, layout="lbd"), ValueError, "layout must be 'bdl'"),
    (lambda: m2ops.fft_conv(U, K, mask=torch.ones(2, 8)), TypeError, "mask must be a bool tensor"),
    (
        lambda: m2ops.fft_conv(U, K, mask=torch.ones(2, 7, dtype=torch.bool)),
        ValueError,
        "mask must have shape (batch, seqlen)",
    ),
    (
        lambda: m2ops.fft_conv(torch.randn(2, 3, 300), m2ops.filter_spectrum(K, None, 8)),
        ValueError,
        "filter_spectrum(k, k_rev, 300)",
    ),
    (
        lambda: m2ops.fft_conv(U, m2ops.filter_spectrum(K, None, 8), K),
        ValueError,
        "k_rev must be None when k is a FilterSpectrum",
    ),
    (lambda: m2ops.fft_conv(U, m2ops.filter_spectrum_ref(K, None, 8)), ValueError, "make it with filter_spectrum"),
    (lambda: m2ops.filter_spectrum(K, None, 0), ValueError, "seqlen must be between 1 and"),
    (lambda: m2ops.short_conv(U, torch.randn(3, 9)), ValueError, "width must be 2 .. 7, got 9"),
    (
        lambda: m2ops.short_conv(U, torch.randn(4, 3)),
        ValueError,
        "weight must have shape (dim, width) = (3, 3), got (4, 3)",
    ),
    (lambda: m2ops.short_conv(U, torch.randn(3, 3), torch.randn(2)), ValueError, "bias must have shape (dim,) = (3,)"),
    (
        lambda: m2ops.short_conv(U, torch.randn(3, 3), torch.randn(3, device="meta")),
        ValueError,
        "short_conv: bias must be on the device of x (cpu), got meta",
    ),
    (
        lambda: m2ops.blockdiag_matmul([1.0], torch.randn(2, 3, 4)),
        TypeError,
        "blockdiag_matmul: x must be a torch.Tensor of shape (..., nblocks * in), got list",
    ),
    (
        lambda: m2ops.blockdiag_matmul(torch.ones(2, 8).int(), torch.randn(2, 3, 4)),
        TypeError,
        "x must be float32, bfloat16, float16 or float64, got torch.int32",
    ),
    (
        lambda: m2ops.blockdiag_matmul(torch.randn(2, 8), torch.randn(2, 3, 4).bfloat16()),
        TypeError,
        "weight must have the dtype of x (torch.float32), got torch.bfloat16",
    ),
    (
        lambda: m2ops.blockdiag_matmul(torch.randn(2, 8), torch.randn(2, 3, 4), torch.randn(6, device="meta")),
        ValueError,
        "bias must be on the device of x (cpu), got meta",
    ),
    (
        lambda: m2ops.blockdiag_glu(torch.randn(2, 8), torch.randn(2, 6, 4), torch.randn(2, 4, 3, device="meta")),
        ValueError,
        "w_out must be on the device of x (cpu), got meta",
    ),
    (
        lambda: m2ops.monarch_matmul(torch.randn(2, 8), torch.randn(2, 6, 4), torch.randn(2, 4, 6).double()),
        TypeError,
        "w2 must have the dtype of x (torch.float32), got torch.float64",
    ),
    (lambda: m2ops.blockdiag_matmul(torch.randn(2, 7), torch.randn(2, 3, 4)), ValueError, "x must have 8 channels"),
    (
        lambda: m2ops.blockdiag_matmul(torch.randn(2, 8), torch.randn(2, 3, 4), torch.randn(5)),
        ValueError,
        "bias must have shape (nblocks * out,) = (6,)",
    ),
    (
        lambda: m2ops.blockdiag_glu(torch.randn(2, 8), torch.randn(2, 6, 4), torch.randn(2, 4, 5)),
        ValueError,
        "w_in must give twice the channels that w_out takes (20), got 12",
    ),
    (
        lambda: m2ops.monarch_matmul(torch.randn(2, 8), torch.randn(2, 6, 4), torch.randn(2, 4, 5)),
        ValueError,
        "w2 must take the 12 channels",
    ),
    (
        lambda: m2ops.monarch_mixer(**{**MIXER, "p": torch.randn(2, 8, 6)}),
        ValueError,
        "p must have shape (batch, seqlen, 3 * dim) = (2, 8, 9)",
    ),
    (
        lambda: m2ops.monarch_mixer(**{**MIXER, "short_weight": torch.randn(9, 8)}),
        ValueError,
        "width of short_weight must be 2 .. 7",
    ),
    (
        lambda: m2ops.monarch_mixer(**{**MIXER, "k": K[:2], "k_rev": None}),
        ValueError,
        "k must have shape (dim, taps) = (3, 8)",
    ),
    (
        lambda: m2ops.monarch_mixer(**MIXER, mask=torch.ones(3, 8, dtype=torch.bool)),
        ValueError,
        "mask must have shape (batch, seqlen) = (2, 8)",
    ),
    (
        lambda: m2ops.monarch_mixer(**{**MIXER, "short_bias": torch.randn(8)}),
        ValueError,
        "monarch_mixer: short_bias must have shape (3 * dim,) = (9,), got (8,)",
    ),
    (
        lambda: m2ops.monarch_mixer(**{**MIXER, "skip": torch.randn(4)}),
        ValueError,
        "monarch_mixer: skip must have shape (dim,) = (3,), got (4,)",
    ),
    (
        lambda: m2ops.monarch_mixer(**{**MIXER, "k": K.to("meta"), "k_rev": None}),
        ValueError,
        "monarch_mixer: k must be on the device of u (cpu), got meta",
    ),
    (
        lambda: m2ops.monarch_mixer(**{**MIXER, "k": m2ops.filter_spectrum_ref(K, None, 8), "k_rev": None}),
        ValueError,
        "k is a spectrum of filter_spectrum_ref; make it with filter_spectrum",
    ),
    (
        lambda: m2ops.monarch_mixer(**MIXER, k2_rev=K),
        ValueError,
        "k2_rev and skip2 must be None when k2 is",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), CASES, ids=[case[2][:40] for case in CASES])
def test_bad_input_is_refused_with_a_sentence(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


def direct_mixer(**wrong: Any) -> Any:
    given = dict(
        p=torch.randn(2, 8, 9), u=torch.randn(2, 8, 3), short_weight=torch.randn(9, 3), short_bias=None,
        spectrum=torch.randn(3, 512), skip=None, spectrum2=None, skip2=None, mask=None,
    )  # fmt: skip
    return torch.ops.m2ops.monarch_mixer(*(given | wrong).values())


DIRECT: list[Callable[[], Any]] = [
    lambda: torch.ops.m2ops.fft_conv(U, torch.randn(2, 512), None, None, None, False),
    lambda: torch.ops.m2ops.fft_conv(U, torch.randn(3, 8), None, None, None, False),
    lambda: torch.ops.m2ops.fft_conv(U, torch.randn(3, 512), torch.randn(2), None, None, False),
    lambda: torch.ops.m2ops.fft_conv(U, torch.randn(3, 512), None, U[:1], None, False),
    lambda: torch.ops.m2ops.fft_conv(U, torch.randn(3, 514), None, None, None, False),
    lambda: torch.ops.m2ops.fft_conv_bwd(U[:1], U, torch.randn(3, 512), None, None, None, False),
    lambda: torch.ops.m2ops.filter_spectrum(K, K[:1], 256),
    lambda: torch.ops.m2ops.filter_spectrum(K, None, 255),
    lambda: torch.ops.m2ops.filter_spectrum_bwd(torch.randn(3, 513), 4, 2),
    lambda: torch.ops.m2ops.short_conv(U, torch.randn(3, 8), None, False),
    lambda: torch.ops.m2ops.short_conv(U, torch.randn(2, 3), None, False),
    lambda: torch.ops.m2ops.short_conv(U.long(), torch.randn(3, 3), None, False),
    lambda: direct_mixer(p=torch.randn(2, 8, 8)),
    lambda: direct_mixer(p=torch.randn(2, 8, 9).double()),
    lambda: direct_mixer(short_weight=torch.randn(9, 8)),
    lambda: direct_mixer(short_weight=torch.randn(9, 3).double()),
    lambda: direct_mixer(short_bias=torch.randn(8)),
    lambda: direct_mixer(spectrum=torch.randn(2, 512)),
    lambda: direct_mixer(spectrum=torch.randn(3, 8)),
    lambda: direct_mixer(spectrum=torch.randn(3, 514)),
    lambda: direct_mixer(skip=torch.randn(2)),
    lambda: direct_mixer(spectrum2=torch.randn(3, 8)),
    lambda: direct_mixer(skip2=torch.randn(2)),
    lambda: direct_mixer(mask=torch.ones(8, 2, dtype=torch.bool)),
    lambda: direct_mixer(mask=torch.ones(2, 8)),
]


@pytest.mark.parametrize("call", DIRECT)
def test_direct_calls_never_read_memory_they_do_not_own(call: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        call()


def test_the_direct_call_of_the_mixer_is_right_without_its_mistake() -> None:
    assert direct_mixer().shape == (2, 8, 3)
