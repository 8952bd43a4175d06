"""fft_conv and filter_spectrum against a float64 direct sum, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import m2ops
from m2ops.testing import assert_matches, bound_for, relative_error

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# One, tiny, transforms of one column pass (64, 128, 192, 384), odd, 3 and 5 times a power of two, above a power of two.
LENGTHS = [1, 2, 3, 63, 128, 129, 256, 380, 768, 1000, 1280, 4097]


@pytest.fixture(params=m2ops.available_isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with m2ops.use_isa(request.param):
        yield request.param


def direct(
    u: Tensor, k: Tensor, k_rev: Tensor | None, skip: Tensor | None, pre: Tensor | None, post: Tensor | None
) -> Tensor:
    """The defining sum in float64, term by term (NumPy's convolve knows no FFT); (batch, dim, seqlen)."""
    signal = u.double() if pre is None else u.double() * pre.double()
    taps, before = k.double(), 0
    if k_rev is not None:  # taps of what comes later stand before those of what came, the farthest first
        taps, before = torch.cat([k_rev.double().flip(-1), taps], -1), k_rev.shape[-1]
    sums = [[np.convolve(row, filter_) for row, filter_ in zip(rows, taps, strict=True)] for rows in signal]
    out = torch.from_numpy(np.array(sums))[..., before : before + u.shape[-1]]
    if skip is not None:
        out = out + skip.double()[:, None] * signal
    return out if post is None else out * post.double()


def inputs(dtype: torch.dtype, seqlen: int, dim: int = 3, batch: int = 2) -> dict[str, Any]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    u, pre, post = (torch.randn(batch, dim, seqlen).to(dtype) for _ in range(3))
    return dict(
        u=u, pregate=pre, postgate=post, skip=torch.randn(dim, dtype=wide),
        k=torch.randn(dim, seqlen, dtype=wide), k_rev=torch.randn(dim, seqlen, dtype=wide),
    )  # fmt: skip


def forward_and_backward(x: dict[str, Any], dout: Tensor, layout: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Result ("out") and gradient of every input in `layout`, each with that of torch.fft in float64; all as "bdl"."""

    def turned(t: Tensor) -> Tensor:
        return t.transpose(1, 2) if layout == "bld" and t.dim() == 3 else t

    wide = {n: t.double().requires_grad_() for n, t in x.items()}
    want = m2ops.fft_conv_ref(**wide)
    wanted = [want.detach(), *torch.autograd.grad(want, list(wide.values()), dout.double())]
    leaves = {n: turned(t).contiguous().clone().requires_grad_() for n, t in x.items()}
    out = m2ops.fft_conv(**leaves, layout=layout)
    got = [out.detach(), *torch.autograd.grad(out, list(leaves.values()), turned(dout))]
    return {n: (turned(t), right) for n, t, right in zip(("out", *x), got, wanted, strict=True)}


def exact(x: dict[str, Any]) -> Tensor:
    return direct(x["u"], x["k"], x["k_rev"], x["skip"], x["pregate"], x["postgate"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seqlen", LENGTHS)
def test_fft_conv_matches_the_direct_sum(seqlen: int, dtype: torch.dtype) -> None:
    x = inputs(dtype, seqlen, dim=2 if seqlen > 2000 else 3)
    assert_matches(m2ops.fft_conv(**x), exact(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("seqlen", "dim"), [(1, 1), (5, 16), (100, 17), (300, 35)])
def test_fft_conv_reads_channels_last(seqlen: int, dim: int, dtype: torch.dtype) -> None:
    x = inputs(dtype, seqlen, dim)
    want = exact(x)
    last = {n: x[n].transpose(1, 2).contiguous() for n in ("u", "pregate", "postgate")}
    assert_matches(m2ops.fft_conv(**{**x, **last}, layout="bld").transpose(1, 2), want)


@pytest.mark.parametrize("layout", ["bdl", "bld"])
@pytest.mark.parametrize(("seqlen", "dim"), [(700, 41), (100, 75)])
def test_fft_conv_of_more_channels_than_are_worked_on_together(seqlen: int, dim: int, layout: str) -> None:
    x = inputs(torch.float32, seqlen, dim, batch=3)
    dout = torch.randn(3, dim, seqlen)
    results = forward_and_backward(x, dout, layout)
    assert_matches(results["out"][0], exact(x))
    for name, (grad, right) in results.items():
        assert relative_error(grad, right) < 3e-6, name


@pytest.mark.parametrize("layout", ["bdl", "bld"])
@pytest.mark.parametrize(
    ("seqlen", "dtype"),
    [
        (12300, torch.float32),
        (13000, torch.float64),
        (13000, torch.bfloat16),
        (13000, torch.float16),
        (70000, torch.float32),
    ],
    ids=str,
)
def test_fft_conv_of_rows_that_are_first_split(seqlen: int, dtype: torch.dtype, layout: str) -> None:
    """Lengths with an outer pass, and their gradients; the oracle is torch.fft in float64."""
    x = inputs(dtype, seqlen, dim=2, batch=1)
    results = forward_and_backward(x, torch.randn(1, 2, seqlen).to(dtype), layout)
    assert_matches(*results.pop("out"))
    for grad, right in results.values():
        assert_matches(grad, right, bound=3 * bound_for(right, grad.dtype))


@pytest.mark.parametrize("missing", ["k_rev", "skip", "pregate", "postgate"])
def test_fft_conv_optional_arguments(missing: str) -> None:
    x = inputs(torch.float32, 200)
    x[missing] = None
    assert_matches(m2ops.fft_conv(**x), exact(x))


@pytest.mark.parametrize(("taps", "taps_rev"), [(1, 1), (7, 300), (1000, 2), (256, 256)])
def test_fft_conv_taps_fewer_or_more_than_positions(taps: int, taps_rev: int) -> None:
    x = inputs(torch.float32, 130)
    x["k"], x["k_rev"] = torch.randn(3, taps), torch.randn(3, taps_rev)
    assert_matches(m2ops.fft_conv(**x), exact(x))


def test_fft_conv_strided_inputs() -> None:
    x = inputs(torch.float32, 150, dim=20)
    wide = torch.randn(2, 150, 60)
    x["pregate"], x["u"], x["postgate"] = (t.transpose(1, 2) for t in wide.chunk(3, dim=-1))
    want = exact(x)
    assert_matches(m2ops.fft_conv(**x), want)  # channels contiguous, read as "bdl"
    last = {n: x[n].transpose(1, 2) for n in ("u", "pregate", "postgate")}
    assert_matches(m2ops.fft_conv(**{**x, **last}, layout="bld").transpose(1, 2), want)
    every_other = {**x, "u": torch.randn(2, 40, 300)[:, ::2, ::2]}
    assert_matches(m2ops.fft_conv(**every_other), exact(every_other))


def test_fft_conv_single_channel_of_a_wide_tensor() -> None:
    x = inputs(torch.float32, 300, dim=1)
    want = exact(x)
    wide = torch.randn(2, 300, 5)
    wide[:, :, 2:3] = x["pregate"].transpose(1, 2)
    last = {"u": x["u"].transpose(1, 2), "postgate": x["postgate"].transpose(1, 2), "pregate": wide[:, :, 2:3]}
    assert_matches(m2ops.fft_conv(**{**x, **last}, layout="bld").transpose(1, 2), want)


@pytest.mark.parametrize("seqlen", [1, 100, 256, 700])
def test_filter_spectrum_serves_shorter_sequences(seqlen: int) -> None:
    x = inputs(torch.float32, 700)
    spectrum = m2ops.filter_spectrum(x["k"], x["k_rev"], 700)
    x["u"], x["pregate"], x["postgate"] = (x[n][..., :seqlen] for n in ("u", "pregate", "postgate"))
    out = m2ops.fft_conv(x["u"], spectrum, None, x["skip"], x["pregate"], x["postgate"])
    assert_matches(out, exact(x))


@pytest.mark.parametrize("kernels", ["m2ops", "reference"])
def test_a_spectrum_is_written_some_channels_at_a_time(kernels: str) -> None:
    x = inputs(torch.float32, 300, dim=5)
    end = "" if kernels == "m2ops" else "_ref"
    convolve, transform, empty = (
        getattr(m2ops, f"{name}{end}") for name in ("fft_conv", "filter_spectrum", "empty_spectrum")
    )
    spectrum = empty(5, 300, x["k"])
    spectrum.data.fill_(torch.nan)
    for first, last in ((3, 5), (0, 3)):
        part = transform(x["k"][first:last], x["k_rev"][first:last], 300, out=spectrum.rows(first, last))
        assert part.data.data_ptr() == spectrum.data[first:].data_ptr() and part.dim == last - first
    got = convolve(x["u"], spectrum, None, x["skip"], x["pregate"], x["postgate"])
    assert_matches(got, direct(*(x[name] for name in ("u", "k", "k_rev", "skip", "pregate", "postgate"))))


def test_a_spectrum_is_not_written_where_it_cannot_be() -> None:
    k = torch.randn(4, 100)
    for out in (
        m2ops.empty_spectrum(3, 100, k),
        m2ops.empty_spectrum(4, 200, k),
        m2ops.empty_spectrum(4, 100, k.double()),
    ):
        with pytest.raises(ValueError, match=r"filter_spectrum: out must have \(4, 256\) numbers of torch.float32"):
            m2ops.filter_spectrum(k, None, 100, out=out)
    with pytest.raises(ValueError, match="out cannot be given where a gradient is wanted"):
        m2ops.filter_spectrum(k.requires_grad_(), None, 100, out=m2ops.empty_spectrum(4, 100, k))


def test_filter_spectrum_is_the_same_for_every_instruction_set() -> None:
    x = inputs(torch.float32, 500)
    spectrum = m2ops.filter_spectrum(x["k"], x["k_rev"], 500)
    with m2ops.use_isa("scalar"):
        out = m2ops.fft_conv(x["u"], spectrum, None, x["skip"], x["pregate"], x["postgate"])
    assert_matches(out, exact(x))


@pytest.mark.parametrize("layout", ["bdl", "bld"])
def test_fft_conv_mask_equals_a_shorter_sequence(layout: str) -> None:
    x = inputs(torch.float32, 90)
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[0, 60:] = False
    if layout == "bld":
        for name in ("u", "pregate", "postgate"):
            x[name] = x[name].transpose(1, 2).contiguous()
    out = m2ops.fft_conv(**x, mask=mask, layout=layout)
    if layout == "bld":
        out = out.transpose(1, 2)
        for name in ("u", "pregate", "postgate"):
            x[name] = x[name].transpose(1, 2)
    assert torch.equal(out[0, :, 60:], torch.zeros(3, 30))
    short = {**x, **{n: x[n][:1, :, :60] for n in ("u", "pregate", "postgate")}}
    assert_matches(out[:1, :, :60], exact(short))
    assert_matches(out[1:], exact(x)[1:])


@pytest.mark.parametrize("layout", ["bdl", "bld"])
@pytest.mark.parametrize("with_gates", [True, False])
def test_fft_conv_gradcheck(layout: str, with_gates: bool) -> None:
    shape = (2, 3, 6) if layout == "bdl" else (2, 6, 3)
    u, pre, post = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    k, k_rev = (torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (9, 4))
    skip = torch.randn(3, dtype=torch.float64, requires_grad=True)
    args = (u, k, k_rev, skip, pre, post) if with_gates else (u, k)
    assert torch.autograd.gradcheck(lambda *a: m2ops.fft_conv(*a, layout=layout), args)


@pytest.mark.parametrize(
    ("seqlen", "dtype"),
    [(40, torch.float32), (300, torch.float32), (1000, torch.float32), (120, torch.bfloat16), (200, torch.float16)],
)
def test_fft_conv_gradients_match_the_reference(seqlen: int, dtype: torch.dtype) -> None:
    x = inputs(dtype, seqlen)
    dout = torch.randn_like(x["u"])
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    m2ops.fft_conv(**leaves).backward(dout)
    wide = {n: t.double().requires_grad_() for n, t in x.items()}
    m2ops.fft_conv_ref(**wide).backward(dout.double())
    for name, leaf in leaves.items():
        # Two convolutions and a sum over batch and positions: three times the error of one.
        assert_matches(leaf.grad, wide[name].grad, bound=3 * (1e-6 if leaf.dtype == torch.float32 else 2.5e-3))


def test_fft_conv_is_deterministic_and_overwrites_its_output() -> None:
    x = inputs(torch.float32, 700, dim=33, batch=4)
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    results = []
    for _ in range(3):
        poison = [torch.full_like(x["u"], float("nan")) for _ in range(8)]  # recycled by the allocator
        del poison
        out = m2ops.fft_conv(**leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert all(torch.isfinite(t).all() for t in results[0])


def test_fft_conv_does_not_depend_on_the_number_of_threads() -> None:
    x = inputs(torch.float32, 300, dim=300)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
        out = m2ops.fft_conv(**leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_fft_conv_propagates_non_finite_inputs() -> None:
    x = inputs(torch.float32, 64)
    x["u"][0, 1, 5] = float("nan")
    x["u"][1, 2, 60] = float("inf")
    out = m2ops.fft_conv(**x)
    assert not torch.isfinite(out[0, 1]).any() and not torch.isfinite(out[1, 2]).any()
    assert torch.isfinite(out[0, 0]).all()


@pytest.mark.parametrize("shape", [(0, 3, 10), (2, 0, 10), (2, 3, 0)])
def test_fft_conv_empty(shape: tuple[int, int, int]) -> None:
    out = m2ops.fft_conv(torch.randn(shape), torch.randn(shape[1], 4))
    assert out.shape == shape


def test_ops_pass_opcheck() -> None:
    ops = torch.ops.m2ops
    k = torch.randn(3, 9, requires_grad=True)
    torch.library.opcheck(ops.filter_spectrum.default, (k, torch.randn(3, 5), 256))
    torch.library.opcheck(ops._filter_spectrum_into.default, (k.detach(), torch.randn(3, 5), torch.empty(3, 512)))
    spectrum = ops.filter_spectrum(k.detach(), None, 256).requires_grad_()
    u = torch.randn(2, 3, 20, requires_grad=True)
    torch.library.opcheck(ops.fft_conv.default, (u, spectrum, torch.randn(3), torch.randn(2, 3, 20), None, False))
    torch.library.opcheck(ops.fft_conv.default, (u.detach().transpose(1, 2), spectrum, None, None, None, True))


def test_fft_conv_mask_stops_gates_that_are_not_finite() -> None:
    x = inputs(torch.float32, 40)
    want = exact({**x, **{n: x[n][..., :25] for n in ("u", "pregate", "postgate")}})
    for name in ("u", "pregate", "postgate"):
        x[name][..., 25:] = float("nan")
    mask = (torch.arange(40) < 25).expand(2, 40)
    for function in (m2ops.fft_conv, m2ops.fft_conv_ref):
        leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
        out = function(**leaves, mask=mask)
        assert_matches(out[..., :25], want)
        out.sum().backward()
        for name, leaf in leaves.items():
            assert torch.isfinite(leaf.grad).all(), name


def test_fft_conv_takes_filters_and_skip_of_another_precision() -> None:
    x = inputs(torch.float32, 50)
    wide = {n: x[n].double() for n in ("k", "k_rev", "skip")}
    assert_matches(m2ops.fft_conv(**{**x, **wide}), exact(x))
    spectrum = m2ops.filter_spectrum(wide["k"], wide["k_rev"], 50)
    assert_matches(m2ops.fft_conv(**{**x, "k": spectrum, "k_rev": None, "skip": wide["skip"]}), exact(x))


@pytest.mark.parametrize("of", ["u", "k"])
def test_fft_conv_refuses_second_gradients(of: str) -> None:
    x = {n: t.requires_grad_() for n, t in inputs(torch.float32, 12).items()}
    gradient = torch.autograd.grad(m2ops.fft_conv(**x).square().sum(), x[of], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        gradient.square().sum().backward()


def test_fft_conv_of_no_positions_keeps_the_way_back() -> None:
    u = torch.randn(2, 3, 0, requires_grad=True)
    m2ops.fft_conv(u, torch.randn(3, 4)).sum().backward()
    assert u.grad is not None and u.grad.shape == u.shape
