"""Freed memory kept for the next allocation: of large tensors of ours by a pool, of everything by the C library.
Test: tests/ops/test_memory.py.
"""

from __future__ import annotations

from m2ops._library import binding


def empty_pool() -> int:
    """Give the memory that lies unused in the pool back to the system; how many bytes that were.

    Outputs and temporary tensors of 4 MB and more that the operators make on a CPU come from a pool, because the
    system clears every page of fresh memory, which can cost more than the work on it (docs/kernels.md, "Fresh
    memory"). What is freed waits there for the next tensor: at most M2OPS_POOL_MB megabytes (0: no pool), else 1,024
    or an eighth of the machine's memory, whichever is less. What is above it goes back, what has waited longest first;
    used and unused together are never more than was in use at once.
    Such a tensor cannot be resized in place to more than it has. With torch before 2.11, which cannot be told how
    memory of ours is given back, there is no pool.
    """
    return int(binding.pool_empty())


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees instead of giving it back to the system; for good.

    For programs that also make large tensors by other means than our operators, whose pool (:func:`empty_pool`) it
    replaces. The process then keeps the memory of its peak; the first few blocks of a size may still be fresh, as the
    scraps that alignment leaves between blocks fill glibc's own caches before blocks are joined. Call it before the
    first large allocation. Returns whether the C library can do it (glibc); nothing is changed otherwise.
    """
    return bool(binding.keep_freed_memory())
