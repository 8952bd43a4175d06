"""Forward-mode derivatives: those of finite differences, or a refusal by name, never a silent zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import m2ops

F64 = torch.float64
# torch's own rules of forward mode are scripts, which torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def case(name: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """An operator of tensors alone, and float64 arguments for it."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64)

    cases: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "fft_conv": (
            lambda u, k, k_rev, skip, pre: m2ops.fft_conv(u, k, k_rev, skip, pre),
            (random(2, 4, 9), random(4, 9), random(4, 5), random(4), random(2, 4, 9)),
        ),
        "short_conv": (m2ops.short_conv, (random(2, 4, 9), random(4, 3), random(4))),
        "blockdiag_matmul": (m2ops.blockdiag_matmul, (random(3, 8), random(2, 5, 4), random(10))),
        "blockdiag_glu": (m2ops.blockdiag_glu, (random(3, 8), random(2, 12, 4), random(2, 4, 6), random(8))),
        "monarch_matmul": (m2ops.monarch_matmul, (random(3, 8), random(2, 6, 4), random(3, 2, 4))),
        "monarch_mixer": (
            m2ops.monarch_mixer,
            (
                random(2, 7, 12),
                random(2, 7, 4),
                random(12, 3),
                random(12),
                *(random(4, n) for n in (7, 7)),
                random(4),
                random(4, 7),
                random(4, 7),
                random(4),
            ),
        ),
    }
    return cases[name]


@pytest.mark.parametrize(
    "name", ["fft_conv", "short_conv", "blockdiag_matmul", "blockdiag_glu", "monarch_matmul", "monarch_mixer"]
)
def test_directional_derivatives_are_those_of_differences(name: str) -> None:
    operator, arguments = case(name)
    for place in range(len(arguments)):  # a tangent of each argument alone

        def along(x: Tensor, place: int = place) -> Tensor:
            return operator(*arguments[:place], x, *arguments[place + 1 :])

        x, direction, step = arguments[place], torch.randn_like(arguments[place]), 1e-6
        value, derivative = torch.func.jvp(along, (x,), (direction,))
        wanted = (along(x + step * direction) - along(x - step * direction)) / (2 * step)
        assert wanted.norm() > 0.1
        torch.testing.assert_close(derivative, wanted, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(value, along(x), rtol=1e-10, atol=1e-10)


def test_a_kept_spectrum_is_refused_beside_a_tangent() -> None:
    u, k = torch.randn(2, 4, 9), torch.randn(4, 9)
    spectrum = m2ops.filter_spectrum(k, None, 9)
    with pytest.raises(NotImplementedError, match=r"^fft_conv: a FilterSpectrum has no forward-mode derivative"):
        torch.func.jvp(lambda x: m2ops.fft_conv(x, spectrum), (u,), (u,))
    with pytest.raises(NotImplementedError, match=r"^filter_spectrum: it has no forward-mode derivative"):
        torch.func.jvp(lambda x: m2ops.filter_spectrum(x, None, 9).data, (k,), (k,))
