"""Freed memory kept by the pool and by the C library."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from forking import run_forked

import m2ops
from m2ops._library import binding

# Pages that an allocation of 64 MB touches for the first time, once allocations of that size have settled: how many of
# the first ones find no freed block depends on where the heap happens to start (scraps of alignment fill the caches of
# small blocks, seven of a size, before they are joined to the block they were cut from).
PROGRAM = """
import resource, torch, m2ops
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min([faults() for _ in range(40)][20:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_serves_the_next_allocation() -> None:
    def faults(call: str) -> int:
        return int(run_forked(PROGRAM.format(call=call)).stdout)

    assert faults("assert m2ops.keep_freed_memory() is True") * 10 < faults("") + 10


@pytest.fixture
def pool() -> Iterator[Callable[[int], None]]:
    """The pool, empty, with a bound of its own; afterwards as it was."""
    m2ops.empty_pool()
    yield binding.pool_limit
    binding.pool_limit(-1)
    m2ops.empty_pool()


def made(megabytes: int) -> torch.Tensor:
    """An output of an operator that takes so many megabytes."""
    return m2ops.short_conv(torch.ones(1, megabytes << 8, 1024), torch.ones(1024, 2), None, layout="bld")


def unused() -> int:
    return int(binding.pool_state()[1]) >> 20


def test_memory_of_a_large_output_serves_the_next_one(pool: Callable[[int], None]) -> None:
    pool(100)
    first, second = made(8), made(8)
    places = {first.data_ptr(), second.data_ptr()}
    assert len(places) == 2 and all(place % (2 << 20) == 0 for place in places)  # whole huge pages
    view = first[0, 5:]  # memory is given back when the last view goes
    del first
    assert unused() == 0 and view.eq(2).all()
    del view, second
    assert unused() == 16
    again = made(7)  # a little less is served too
    assert again.data_ptr() in places and again[0, 1:].eq(2).all() and unused() == 8
    assert made(4).data_ptr() not in places  # but not half of it
    assert made(1).data_ptr() % (2 << 20) != 0  # and small ones are the C library's


def test_what_lies_unused_is_bounded_and_given_back_on_request(pool: Callable[[int], None]) -> None:
    pool(20)
    kept = [made(8) for _ in range(4)]
    last = kept[-1].data_ptr()
    while kept:
        del kept[0]
        assert unused() <= 20
    assert unused() == 16 and made(8).data_ptr() == last  # what has waited longest goes first
    assert m2ops.empty_pool() == 16 << 20 and unused() == 0
    pool(0)
    assert made(8)[0, 1:].eq(2).all() and unused() == 0


def test_a_pool_takes_no_more_than_was_in_use_at_once() -> None:
    show = """
import torch, m2ops
from m2ops._library import binding
made = lambda megabytes: m2ops.short_conv(torch.ones(1, megabytes << 8, 1024), torch.ones(1024, 2), None, layout="bld")
kept = [made(8), made(8), made(8)]
kept.clear()
for size in (12, 16, 6, 20, 4):
    part = made(size)
    used, unused, _ = binding.pool_state()
    print(used >> 20, used + unused >> 20)
    del part
"""
    lines = [
        tuple(map(int, line.split())) for line in run_forked(show, env={"M2OPS_POOL_MB": "1024"}).stdout.splitlines()
    ]
    assert [used for used, _ in lines] == [12, 16, 6, 20, 4] and all(total <= 24 for _, total in lines)


def test_many_threads_share_the_pool(pool: Callable[[int], None]) -> None:
    pool(64)

    def work(seed: int) -> bool:
        right = True
        for size in torch.randint(4, 12, (20,), generator=torch.Generator().manual_seed(seed)).tolist():
            mine = made(size).fill_(seed)
            right &= bool(mine.eq(seed).all())  # nobody else has written there
        return right

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
    assert binding.pool_state()[0] == 0 and unused() <= 64


def test_a_variable_bounds_the_pool() -> None:
    show = "import m2ops._library as l; print(l.binding.pool_state()[2] >> 20)"
    assert run_forked(show, env={**os.environ, "M2OPS_POOL_MB": "12"}).stdout.strip() == "12"
    refused = run_forked(show, env={**os.environ, "M2OPS_POOL_MB": "-1"})
    assert (
        refused.returncode != 0
        and "M2OPS_POOL_MB must be a number of megabytes, 0 for no pool, got '-1'" in refused.stderr
    )


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_large_outputs_touch_no_fresh_pages_once_there_are_some(pool: Callable[[int], None]) -> None:
    pool(256)
    u, k, dout = (
        torch.randn(4, 64, 16_384, requires_grad=True),
        torch.randn(64, 16_384, requires_grad=True),
        torch.randn(4, 64, 16_384),
    )

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.autograd.grad(m2ops.fft_conv(u, k), (u, k), dout)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(3)) < 4096 / 4  # of 4 KB; the output alone has 4,096 of them
