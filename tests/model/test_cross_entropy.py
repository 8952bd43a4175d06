"""Cross-entropy in pieces against torch's in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from m2bert.model import cross_entropy
from m2bert.model.cross_entropy import cross_entropy_sum


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_cross_entropy_matches_float64(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(cross_entropy, "PIECE", 5 * 301)
    logits = (20 * torch.randn(rows, 301)).to(dtype).requires_grad_(True)
    labels = torch.randint(0, 301, (rows,))
    exact = logits.detach().double().requires_grad_(True)
    expected = F.cross_entropy(exact, labels, reduction="sum")
    total = cross_entropy_sum(logits, labels)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    (3 * total).backward()
    (3 * expected).backward()
    assert logits.grad is not None and exact.grad is not None and logits.grad.dtype == dtype
    assert (logits.grad - exact.grad).norm() <= tolerance * exact.grad.norm()
    assert rows == 0 or exact.grad.norm() > 0.1


def test_cross_entropy_passes_gradcheck() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: cross_entropy_sum(x, torch.tensor([0, 3, 8, 3])), (logits,))


def test_cross_entropy_shows_infinite_and_missing_numbers() -> None:
    logits = torch.zeros(2, 5)
    logits[0, 1] = float("nan")
    assert cross_entropy_sum(logits, torch.tensor([0, 1])).isnan()
