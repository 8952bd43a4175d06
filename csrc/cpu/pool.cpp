#include "cpu/pool.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace m2 {
namespace {

constexpr int64_t kHugePage = int64_t{1} << 21, kMegabyte = int64_t{1} << 20, kUsualMegabytes = 1024;

int64_t chosen_megabytes() {
  const char* text = std::getenv("M2OPS_POOL_MB");
  if (!text || !*text) {
    const int64_t memory = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGESIZE));
    return std::min(kUsualMegabytes, memory / 8 / kMegabyte);
  }
  const std::string value(text);
  if (value.size() > 9 || value.find_first_not_of("0123456789") != std::string::npos)
    throw std::invalid_argument("m2ops: M2OPS_POOL_MB must be a number of megabytes, 0 for no pool, got '" + value +
                                "'; unset it for the usual bound");
  return std::stoll(value);
}

struct Block {
  void* data;
  int64_t bytes;
};

void* map_block(int64_t bytes) {
  void* raw = mmap(nullptr, size_t(bytes + kHugePage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const int64_t begin = int64_t(reinterpret_cast<intptr_t>(raw));
  const int64_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, behind = begin + kHugePage - first;
  if (first > begin) munmap(raw, size_t(first - begin));
  void* data = reinterpret_cast<void*>(first);
  if (behind > 0) munmap(static_cast<char*>(data) + bytes, size_t(behind));
#ifdef MADV_HUGEPAGE
  madvise(data, size_t(bytes), MADV_HUGEPAGE);
#endif
  return data;
}

class Pool {
 public:
  std::mutex mutex;

  void* take(int64_t bytes) {
    const int64_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    std::vector<Block> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (limit_ == 0) return nullptr;
      // The smallest that is large enough, and not so large that more than a fifth of it would lie idle.
      auto best = unused_.end();
      for (auto it = unused_.begin(); it != unused_.end(); ++it)
        if (it->bytes >= whole && it->bytes <= whole + whole / 4 && (best == unused_.end() || it->bytes <= best->bytes))  // of equals the last
          best = it;
      if (best != unused_.end()) {
        const Block found = *best;
        unused_.erase(best);
        unused_bytes_ -= found.bytes;
        return use(found);
      }
      // Together no more than was in use at once at some time: what a program needs without a pool.
      most_used_ = std::max(most_used_, used_bytes_ + whole);
      gone = above(most_used_ - used_bytes_ - whole);
    }
    unmap(gone);
    void* data = map_block(whole);  // without the lock: the system may take its time
    if (!data && empty() > 0) data = map_block(whole);
    if (!data) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    return use({data, whole});
  }

  void give(void* data) {
    std::vector<Block> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      const auto found = used_.find(data);
      const Block block{data, found->second};
      used_.erase(found);
      used_bytes_ -= block.bytes;
      unused_.push_back(block);
      unused_bytes_ += block.bytes;
      gone = above(limit_);
    }
    unmap(gone);
  }

  int64_t empty() {
    std::vector<Block> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      gone = above(0);
    }
    return unmap(gone);
  }

  PoolState state() {
    const std::lock_guard<std::mutex> lock(mutex);
    return {used_bytes_, unused_bytes_, limit_};
  }

  void limit(int64_t megabytes) {
    const int64_t bytes = (megabytes < 0 ? chosen_megabytes() : megabytes) * kMegabyte;
    std::vector<Block> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      limit_ = bytes;
      gone = above(limit_);
    }
    unmap(gone);
  }

 private:
  void* use(Block block) {
    used_[block.data] = block.bytes;
    used_bytes_ += block.bytes;
    most_used_ = std::max(most_used_, used_bytes_);
    return block.data;
  }

  // Takes blocks out, those first that have lain longest, until at most `bytes` lie unused.
  std::vector<Block> above(int64_t bytes) {
    std::vector<Block> gone;
    auto it = unused_.begin();
    for (; it != unused_.end() && unused_bytes_ > bytes; ++it) {
      unused_bytes_ -= it->bytes;
      gone.push_back(*it);
    }
    unused_.erase(unused_.begin(), it);
    return gone;
  }

  static int64_t unmap(const std::vector<Block>& blocks) {
    int64_t bytes = 0;
    for (const Block& block : blocks) munmap(block.data, size_t(block.bytes)), bytes += block.bytes;
    return bytes;
  }

  std::unordered_map<void*, int64_t> used_;
  std::vector<Block> unused_;  // the last given back is the last
  int64_t used_bytes_ = 0, unused_bytes_ = 0, most_used_ = 0, limit_ = chosen_megabytes() * kMegabyte;
};

// Never destroyed: tensors may outlive everything else at the end of a process. A fork finds it unlocked.
Pool& pool() {
  static Pool& one = [] -> Pool& {
    Pool* made = new Pool;
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
    return *made;
  }();
  return one;
}

}  // namespace

void* pool_take(int64_t bytes) { return pool().take(bytes); }
void pool_give(void* block) { pool().give(block); }
int64_t pool_empty() { return pool().empty(); }
PoolState pool_state() { return pool().state(); }
void pool_limit(int64_t megabytes) { pool().limit(megabytes); }

}  // namespace m2
