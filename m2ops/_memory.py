"""Freed memory kept by the C library for the next allocation.
Test: tests/ops/test_memory.py.
"""

from __future__ import annotations

from m2ops._library import binding


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees instead of giving it back to the system; for good.

    Where large tensors come and go, fresh pages can cost more than the work on them (docs/kernels.md, "Fresh memory").
    The process then keeps the memory of its peak; the first few blocks of a size may still be fresh, as the scraps that
    alignment leaves between blocks fill glibc's own caches before blocks are joined. Call it before the first large
    allocation. Returns whether the C library can do it (glibc); nothing is changed otherwise.
    """
    return bool(binding.keep_freed_memory())
