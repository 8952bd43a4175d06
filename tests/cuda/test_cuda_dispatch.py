"""What a CUDA tensor meets in m2ops, without a GPU: every operator is registered, and fake tensors on device cuda get
results of the right shape, dtype and device. The arithmetic: test_cuda_emulated.py, test_cuda_kernels.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import m2ops

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SCHEMAS = re.findall(r'm\.def\("(\w+)\(', (CSRC / "ops.cpp").read_text(encoding="utf-8"))
BOUNDARIES = "".join(path.read_text(encoding="utf-8") for path in (CSRC / "cuda_ops").glob("*.cpp"))
IN_CUDA_LIBRARY = set(re.findall(r'm\.impl\("(\w+)"', BOUNDARIES))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeTensorMode():
        yield


def registered(op: str, key: str) -> bool:
    """Whether a call of the operator with that dispatch key finds a kernel, its own or a composition."""
    return bool(torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"m2ops::{op}", key))


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=dtype)


def same(out: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return (out.shape, out.dtype, out.device.type) == (torch.Size(shape), dtype, "cuda")


@pytest.mark.parametrize("op", SCHEMAS)
def test_every_operator_serves_cuda(op: str) -> None:
    assert op in IN_CUDA_LIBRARY or registered(op, "CUDA")
    assert registered(op, "AutogradCUDA") and registered(op, "Meta")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"m2ops::{op}", "CPU") or registered(op, "CPU")


def test_registration_is_told_from_its_absence() -> None:
    """Negative control: no kernel of ours serves another kind of device that has no composition."""
    assert not registered("short_conv", "XPU") and registered("blockdiag_matmul", "XPU")


# Not what others call (`_name`), with tensors of the right type.
@pytest.mark.parametrize(
    "op", [op for op in SCHEMAS if op[0] != "_" and not op.endswith("_bwd") and op != "monarch_matmul"]
)
def test_autocast_has_a_rule_for_cuda(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"m2ops::{op}", "AutocastCUDA")


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_of_cuda_tensors(dtype: torch.dtype) -> None:
    x, w_in, w_out = (tensor(*shape, dtype=dtype) for shape in ((2, 5, 16), (4, 24, 4), (4, 4, 12)))
    assert same(m2ops.blockdiag_matmul(x, w_in), (2, 5, 96), dtype)
    assert same(m2ops.blockdiag_glu(x, w_in, w_out), (2, 5, 16), dtype)
    assert same(m2ops.monarch_matmul(x, w_in, tensor(12, 3, 8, dtype=dtype)), (2, 5, 36), dtype)
    grads = torch.ops.m2ops.blockdiag_glu_bwd(x, x, w_in, w_out)
    for grad, shape in zip(grads, (x.shape, w_in.shape, w_out.shape), strict=True):
        assert same(grad, shape, dtype)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolutions_of_cuda_tensors(dtype: torch.dtype) -> None:
    u = tensor(2, 7, 4, dtype=dtype)
    k, weight = tensor(4, 7), tensor(12, 3)
    p = tensor(2, 7, 12, dtype=dtype)
    assert same(m2ops.short_conv(p, weight, None, layout="bld"), (2, 7, 12), dtype)
    assert same(m2ops.fft_conv(u, k, k, layout="bld"), (2, 7, 4), dtype)
    assert same(m2ops.monarch_mixer(p, u, weight, None, k, k, None, k, k, None), (2, 7, 4), dtype)
    dx, dweight, dbias = torch.ops.m2ops.short_conv_bwd(p, p, weight, True)
    assert same(dx, (2, 7, 12), dtype) and same(dweight, (12, 3), torch.float32) and same(dbias, (12,), torch.float32)


MIXED: dict[str, Callable[[], object]] = {
    "blockdiag_glu": lambda: m2ops.blockdiag_glu(tensor(2, 16), torch.empty(4, 24, 4), tensor(4, 4, 12)),
    "short_conv": lambda: m2ops.short_conv(tensor(2, 16, 5), torch.empty(16, 3)),
    "monarch_mixer": lambda: m2ops.monarch_mixer(
        tensor(2, 7, 12), tensor(2, 7, 4), torch.empty(12, 3), None, tensor(4, 7), None, None
    ),
}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("op", MIXED)
def test_weights_left_on_the_cpu_are_named(op: str) -> None:
    with pytest.raises(ValueError, match=rf"{op}: \w+ must be on the device of \w+ \(cuda:0\), got cpu"):
        MIXED[op]()
