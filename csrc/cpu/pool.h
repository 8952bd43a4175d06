// Memory of large tensors, kept for the next ones: the kernel clears each page of fresh memory on first use, which can cost
// more than the work on it (docs/kernels.md, "Fresh memory"). Blocks are whole huge pages. No torch here.
// Test: tests/ops/test_memory.py.
#pragma once
#include <cstdint>

namespace m2 {

// Tensors of at least so many bytes are worth a block. Smaller ones the C library itself keeps.
constexpr int64_t kPooledBytes = int64_t{4} << 20;

// A block of at least `bytes`, uninitialised, aligned to a huge page; null where the pool is off (M2OPS_POOL_MB=0) or the
// system has no more memory. Any thread may give back what another took.
void* pool_take(int64_t bytes);
void pool_give(void* block);

// Gives all that lies unused back to the system; how many bytes that were.
int64_t pool_empty();

// Bytes in use, bytes that lie unused, and the most that may lie unused.
struct PoolState {
  int64_t used, unused, limit;
};
PoolState pool_state();

// The most that may lie unused, in MB; what is above it is given back. Below 0: as M2OPS_POOL_MB says, else 1,024 or an
// eighth of the machine's memory, whichever is less. Throws std::invalid_argument for what M2OPS_POOL_MB may not be.
void pool_limit(int64_t megabytes);

}  // namespace m2
