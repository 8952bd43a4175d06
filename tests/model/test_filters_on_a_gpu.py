"""The filter bank on a GPU, without one: tensors without memory, launches counted as torch dispatches them.

The 80M architecture at 32,768 tokens on a device of 80 GB. The tensors say that they are on a CPU, since a torch
without CUDA does not cut those of a GPU; what the bank asks about devices is answered as for one. The arithmetic:
test_filters.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from m2bert.model import filters
from m2bert.model.architecture import Architecture
from m2bert.model.filters import LongConv, cache_budget_bytes, channels_at_once
from m2bert.model.network import M2BertNetwork

SEQLEN = 32768
SPECTRUM_BYTES = 768 * SEQLEN * 8
CUDA = torch.device("cuda", 0)


class Launches(TorchDispatchMode):
    """Names of the operators that launch kernels: not those that make a view or memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name()
        if not (func.is_view or "empty" in name or name.startswith("prim::") or name == "aten::detach"):
            self.names.append(name)
        return out


@contextmanager
def launches() -> Iterator[list[str]]:
    with Launches() as counter:
        yield counter.names


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[M2BertNetwork]:
    """The 80M network on a pretended device of 80 GB."""
    monkeypatch.delenv("M2OPS_SPECTRUM_CACHE_MB", raising=False)
    properties = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(filters, "cache_budget_bytes", lambda device: cache_budget_bytes(CUDA))
    monkeypatch.setattr(filters, "channels_at_once", lambda taps, device: channels_at_once(taps, CUDA))
    monkeypatch.setattr(torch, "equal", lambda a, b: True)  # there are no values to compare; the parameters stay
    with FakeTensorMode(), torch.no_grad():
        yield M2BertNetwork(Architecture(max_position_embeddings=SEQLEN)).eval()


def convolutions(network: M2BertNetwork) -> list[LongConv]:
    return [module for module in network.modules() if isinstance(module, LongConv)]


@pytest.mark.parametrize("pinned", [True, False])
def test_a_filter_takes_few_launches(network: M2BertNetwork, pinned: bool) -> None:
    first, second = convolutions(network)[:2]
    bank = network.filter_bank
    with bank.pin() if pinned else launches():
        bank.filters(first, SEQLEN)  # makes the window that all share
        with launches() as names:
            spectrum, _ = bank.filters(second, SEQLEN)
    assert spectrum.data.shape == (768, 2 * SEQLEN)
    assert names.count("m2ops::filter_spectrum") == 1 and names.count("aten::mm") == 2
    assert len(names) <= 30, names


def test_blocks_of_a_cpu_take_many_launches(network: M2BertNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the counter sees blocks of 64 channels, a quarter of what a CPU has."""
    monkeypatch.setattr("m2bert.model.filters.CUDA_BLOCK_VALUES", 1 << 21)
    with launches() as names:
        network.filter_bank.filters(convolutions(network)[0], SEQLEN)
    assert names.count("m2ops::_filter_spectrum_into") == 12 and len(names) > 80


@pytest.mark.parametrize("call", ["forward", "of an Embedder"])
def test_all_spectra_are_kept(network: M2BertNetwork, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = network.filter_bank if call == "forward" else network.filter_bank.for_one_call()
    ids = torch.zeros(1, SEQLEN, dtype=torch.int64)
    made: list[int] = []
    generate = LongConv.blocks
    monkeypatch.setattr(LongConv, "blocks", lambda conv, *args: made.append(conv.index) or generate(conv, *args))
    for _ in range(2):
        network.states(ids, bank=bank)
    assert made == list(range(24)) and bank.nbytes == 24 * SPECTRUM_BYTES


def test_the_environment_has_the_last_word(network: M2BertNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_budget_bytes(CUDA) == 10**10
    monkeypatch.setenv("M2OPS_SPECTRUM_CACHE_MB", "1024")
    assert cache_budget_bytes(CUDA) == 2**30
    network.states(torch.zeros(1, SEQLEN, dtype=torch.int64))
    assert network.filter_bank.nbytes == 5 * SPECTRUM_BYTES


def test_filters_longer_than_a_gigabyte_are_made_in_blocks() -> None:
    assert channels_at_once(SEQLEN, CUDA) >= 768
    assert channels_at_once(1 << 22, CUDA) == 64
    assert channels_at_once(SEQLEN, torch.device("cpu")) == 256
