// Runs CUDA kernels on a CPU, so that their indexing and synchronisation are tested on machines without a GPU.
// The same .cu file is compiled by nvcc, or by g++ with -x c++ -DM2_CUDA_EMULATED and this header in place of the
// CUDA runtime (csrc/cuda/common.cuh chooses). C++17 standard library only. Test: csrc/testing/test_cuda_emulator.cpp.
//
// The blocks of a grid run one after another. The threads of a block are fibers on one OS thread: each runs until its
// next __syncthreads() or its end, in an order drawn anew for every phase from options().seed. A launch throws
// std::runtime_error, naming block, thread and address, when
//   * threads meet at different __syncthreads(), or some have ended while others wait (divergent barrier),
//   * dynamic shared memory is accessed outside of the launch's request, or read before this block wrote it,
//   * two threads touch the same shared word between two barriers and one of them writes (data race); __syncwarp() is a
//     barrier among the 32 threads of its warp, shuffles and matrix products order no memory,
//   * the 32 threads of a warp meet at different operations of the warp, or some of them never come,
//   * shared memory is touched that an asynchronous copy is under way to: it arrives when its thread waits for it, no
//     earlier, and other threads need a barrier after that.
// Shared memory is filled with NaN patterns before each block; an overflowing thread stack hits a guard page; under
// AddressSanitizer "global" memory is ordinary heap memory and therefore checked too.
//
// Negative controls: with M2_EMULATOR_WITHOUT=file:line in the environment the barrier or wait of that place does nothing,
// and the first launch that is found faulty ends the program with its message and status 3.
//
// Rules for a kernel that wants to run here: no <<<>>> and no inline PTX in its file (m2::cuda::launch and wrappers
// in common.cuh and mma.cuh), no static __shared__ arrays (m2::cuda::SharedArray), operations of a warp for all of its
// threads (mask ~0u).
// Not modelled: the memory model below barriers, occupancy, concurrency of blocks. What a kernel costs is asked of its
// machine code: with options().record launches are written down for scripts/gpu_model.py instead of being run.
#pragma once
#if !defined(__x86_64__)
#error "the CUDA emulator switches stacks in x86-64 assembly; on other machines skip the emulated tests"
#endif

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace m2::emulator {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
};

// The pretended device; change it between launches.
struct Options {
  uint64_t seed = 1;  // order in which the threads of a block run
  size_t shared_bytes_per_block = 227 * 1024;  // the most a launch may ask for; H100: 227, A100: 163, RTX 4090: 99 KB
  unsigned threads_per_block = 1024;
  int processors = 2;  // few, so that a block that walks over many rows does so in small tests
  std::string record;  // a file to which launches are written instead of being run, one a line
};

inline Options& options() {
  static thread_local Options instance;
  return instance;
}

// Adds a parameter to those before it as a kernel finds them: at a multiple of its alignment.
template <class T>
void add_parameter(std::vector<unsigned char>& bytes, const T& value) {
  bytes.resize((bytes.size() + alignof(T) - 1) / alignof(T) * alignof(T));
  const auto* first = reinterpret_cast<const unsigned char*>(&value);
  bytes.insert(bytes.end(), first, first + sizeof(T));
}

// Writes a launch to options().record: the kernel's address in its library, blocks, threads, bytes of shared memory and the
// bytes of its parameters, in hexadecimal. scripts/gpu_model.py runs the machine code of that kernel with them.
inline void record_launch(const void* kernel, unsigned blocks, unsigned threads, size_t shared_bytes,
                          const std::vector<unsigned char>& parameters) {
  Dl_info info = {};
  std::FILE* file = std::fopen(options().record.c_str(), "a");
  if (!file || !dladdr(kernel, &info)) throw std::runtime_error("emulator: cannot record a launch in " + options().record);
  const size_t offset = size_t(static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase));
  std::fprintf(file, "%zx %u %u %zu ", offset, blocks, threads, shared_bytes);
  for (const unsigned char byte : parameters) std::fprintf(file, "%02x", byte);
  std::fprintf(file, "\n");
  std::fclose(file);
}

// The barrier that M2_EMULATOR_WITHOUT names; no file if there is none.
struct Site {
  std::string file;
  int line = 0;
};

inline const Site& left_out() {
  static const Site site = [] {
    const char* text = std::getenv("M2_EMULATOR_WITHOUT");
    const std::string name = text ? text : "";
    const size_t colon = name.rfind(':');
    return colon == std::string::npos ? Site{} : Site{"/" + name.substr(0, colon), std::atoi(name.c_str() + colon + 1)};
  }();
  return site;
}

inline bool is_left_out(const char* file, int line) {
  const std::string& wanted = left_out().file;
  if (wanted.empty() || line != left_out().line) return false;
  const std::string path = file;
  return path.size() >= wanted.size() && path.compare(path.size() - wanted.size(), wanted.size(), wanted) == 0;
}

// Switches stacks: pushes the callee-saved registers, stores the stack pointer in *save and continues at `load`.
__attribute__((naked, noinline, no_sanitize("address", "undefined"))) inline void switch_stack(void** /*save*/,
                                                                                              void* /*load*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

// Stacks of equal size, each above a page that faults when touched.
class Stacks {
 public:
  static constexpr size_t kBytes = 128 * 1024;

  explicit Stacks(unsigned count) : page_(size_t(sysconf(_SC_PAGESIZE))), count_(count) {
    void* memory = mmap(nullptr, count_ * pitch(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("emulator: no memory for the stacks of the threads");
    memory_ = static_cast<char*>(memory);
    for (unsigned i = 0; i < count_; ++i) mprotect(memory_ + i * pitch(), page_, PROT_NONE);
  }
  ~Stacks() {
    unpoison();
    munmap(memory_, count_ * pitch());
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  char* bottom(unsigned i) const { return memory_ + i * pitch() + page_; }
  char* top(unsigned i) const { return bottom(i) + kBytes; }

  // Threads never unwind their last frame, so AddressSanitizer's marks of it must be wiped before reuse.
  void unpoison() const {
#ifdef __SANITIZE_ADDRESS__
    for (unsigned i = 0; i < count_; ++i) ASAN_UNPOISON_MEMORY_REGION(bottom(i), kBytes);
#endif
  }

 private:
  size_t pitch() const { return kBytes + page_; }
  size_t page_;
  unsigned count_;
  char* memory_ = nullptr;
};

// One launch: its grid, the block that is running, its shared memory and what each thread of it is doing.
class Launch {
 public:
  Launch(Dim3 grid, Dim3 block, size_t shared_bytes, std::function<void()> kernel)
      : grid_dim(grid), block_dim(block), kernel_(std::move(kernel)), threads_(block.count()), stacks_(block.count()),
        shared_(static_cast<unsigned char*>(std::malloc(std::max<size_t>(shared_bytes, 1))), &std::free),
        shared_bytes_(shared_bytes), words_((shared_bytes + 3) / 4), random_(options().seed) {}

  void run() {
    Launch* const outer = running();
    running() = this;
    for (unsigned z = 0; z < grid_dim.z && error_.empty(); ++z)
      for (unsigned y = 0; y < grid_dim.y && error_.empty(); ++y)
        for (unsigned x = 0; x < grid_dim.x && error_.empty(); ++x) run_block({x, y, z});
    running() = outer;
    if (error_.empty()) return;
    if (left_out().file.empty()) throw std::runtime_error("emulator: " + error_);
    std::printf("emulator: %s\n", error_.c_str());
    std::fflush(stdout);
    std::_Exit(3);
  }

  static Launch*& running() {
    static thread_local Launch* instance = nullptr;
    return instance;
  }

  // What a kernel sees.
  const Dim3 grid_dim, block_dim;
  Dim3 block_index;
  const Dim3& thread_index() const { return threads_[current_].index; }
  void* shared_memory() const { return shared_.get(); }
  size_t shared_bytes() const { return shared_bytes_; }

  void barrier(const char* file, int line) {
    if (is_left_out(file, line)) return;
    Thread& thread = threads_[current_];
    thread.state = State::kWaiting;
    thread.file = file;
    thread.line = line;
    to_scheduler();
  }

  // An operation of the warp: waits until all 32 threads have brought their `in`, then `combine` makes every `out`.
  // With `orders` it is a barrier for the warp's accesses to shared memory too.
  template <class In, class Out>
  Out meet(unsigned mask, const In& in, void (*combine)(const In* const (&)[32], Out* const (&)[32]), const char* file,
           int line, bool orders = false) {
    if (mask != ~0u) fail("operation of a part of a warp");
    Thread& thread = threads_[current_];
    Out out;
    thread.orders = orders;
    thread.state = State::kMeeting;
    thread.file = file;
    thread.line = line;
    thread.in = &in;
    thread.out = &out;
    thread.combine = [](void (*erased)(), const void* const (&ins)[32], void* const (&outs)[32]) {
      const In* typed_in[32];
      Out* typed_out[32];
      for (int lane = 0; lane < 32; ++lane) {
        typed_in[lane] = static_cast<const In*>(ins[lane]);
        typed_out[lane] = static_cast<Out*>(outs[lane]);
      }
      reinterpret_cast<void (*)(const In* const (&)[32], Out* const (&)[32])>(erased)(typed_in, typed_out);
    };
    thread.erased = reinterpret_cast<void (*)()>(combine);
    to_scheduler();
    return out;
  }
  unsigned current_lane() const { return current_ % 32; }

  // Starts to copy 16 bytes, zeros if `from` is null. They arrive when this thread waits for their group.
  void copy_async(size_t offset, const void* from) {
    check_shared(offset, kCopyBytes, true);
    std::memset(shared_.get() + offset, 0xff, kCopyBytes);
    for (size_t i = 0; i < kCopyBytes / 4; ++i) words_[offset / 4 + i].copying = true;
    Thread& thread = threads_[current_];
    thread.copies.push_back({offset, from, thread.copy_groups});
  }
  void end_copy_group() { ++threads_[current_].copy_groups; }
  void wait_for_copies(unsigned pending, const char* file, int line) {
    if (is_left_out(file, line)) return;
    Thread& thread = threads_[current_];
    size_t done = 0;
    for (; done < thread.copies.size() && thread.copies[done].group + pending < thread.copy_groups; ++done) {
      const Copy& copy = thread.copies[done];
      for (size_t i = 0; i < kCopyBytes / 4; ++i) words_[copy.offset / 4 + i].copying = false;
      check_shared(copy.offset, kCopyBytes, true);
      if (copy.from) std::memcpy(shared_.get() + copy.offset, copy.from, kCopyBytes);
      else std::memset(shared_.get() + copy.offset, 0, kCopyBytes);
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + std::ptrdiff_t(done));
  }

  // Called for every access to shared memory, before it happens.
  void check_shared(size_t offset, size_t bytes, bool write) {
    if (offset >= shared_bytes_ || bytes > shared_bytes_ - offset)
      fail("access to shared memory at byte " + std::to_string(int64_t(offset)) + " of " +
           std::to_string(shared_bytes_));
    for (size_t i = offset / 4; i < (offset + bytes + 3) / 4; ++i) check_word(words_[i], i, write);
  }

 private:
  static constexpr size_t kCopyBytes = 16;
  enum class State { kReady, kMeeting, kWaiting, kEnded };

  struct Copy {
    size_t offset;
    const void* from;
    uint64_t group;
  };

  struct Thread {
    Dim3 index;
    State state = State::kReady;
    const char* file = "";
    int line = 0;
    void* stack_pointer = nullptr;
    void* sanitizer_stack = nullptr;
    bool orders = false;    // what it meets at is a barrier
    uint64_t meetings = 0;  // barriers of the warp so far
    std::vector<Copy> copies;  // under way, in order
    uint64_t copy_groups = 0;  // ended so far
    const void* in = nullptr;
    void* out = nullptr;
    void (*combine)(void (*)(), const void* const (&)[32], void* const (&)[32]) = nullptr;
    void (*erased)() = nullptr;
  };

  // Who touched a 4-byte word of shared memory, in which phase (the time between two barriers) and after how many
  // barriers of that thread's warp.
  struct Word {
    uint64_t write_phase = 0, read_phase = 0, write_meeting = 0, read_meeting = 0;
    unsigned writer = 0, reader = 0;
    bool written = false, many_readers = false, many_warps = false, copying = false;
  };

  void run_block(Dim3 index) {
    block_index = index;
    std::memset(shared_.get(), 0xff, shared_bytes_);  // NaN in every floating type
    std::fill(words_.begin(), words_.end(), Word{});
    stacks_.unpoison();
    for (unsigned i = 0; i < threads_.size(); ++i) prepare(i);
    std::vector<unsigned> order(threads_.size());
    std::iota(order.begin(), order.end(), 0u);
    for (bool more = true; more && error_.empty();) {
      ++phase_;
      do {
        std::shuffle(order.begin(), order.end(), random_);
        for (unsigned i : order) {
          if (threads_[i].state == State::kReady) resume(i);
          if (!error_.empty()) return;
        }
      } while (end_of_meetings());
      more = error_.empty() && end_of_phase();
    }
  }

  // A stack whose first switch pops six registers and "returns" into entry(), aligned as after a call.
  void prepare(unsigned i) {
    threads_[i] = Thread{};
    threads_[i].index = {i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y)};
    void** sp = reinterpret_cast<void**>(stacks_.top(i));
    *--sp = nullptr;
    *--sp = reinterpret_cast<void*>(&Launch::entry);
    for (int r = 0; r < 6; ++r) *--sp = nullptr;
    threads_[i].stack_pointer = sp;
  }

  // No thread is ready. Lets the warps that meet go on; true if there was one. A warp of which only some threads meet
  // will never be complete, because the others wait for the whole block or have ended.
  bool end_of_meetings() {
    bool any = false;
    for (size_t first = 0; first < threads_.size(); first += 32) {
      const size_t last = std::min(first + 32, threads_.size());
      size_t meeting = 0;
      for (size_t i = first; i < last; ++i) meeting += threads_[i].state == State::kMeeting;
      if (meeting == 0) continue;
      any = true;
      const Thread& leader = threads_[first];
      for (size_t i = first; i < last; ++i)
        if (threads_[i].state != leader.state || threads_[i].line != leader.line ||
            differ(threads_[i].file, leader.file) || threads_[i].erased != leader.erased)
          return diverged("warp", unsigned(first), unsigned(i));
      if (meeting != 32) {
        error_ = "operation of a warp in a block of " + std::to_string(threads_.size()) + " threads";
        return false;
      }
      const void* in[32];
      void* out[32];
      for (int lane = 0; lane < 32; ++lane) in[lane] = threads_[first + lane].in, out[lane] = threads_[first + lane].out;
      leader.combine(leader.erased, in, out);
      const bool orders = leader.orders;
      for (size_t i = first; i < last; ++i) threads_[i].state = State::kReady, threads_[i].meetings += orders;
    }
    return any;
  }

  bool diverged(const char* what, unsigned first, unsigned other) {
    error_ = std::string("divergent ") + what + " in " + where_block() + ": thread " + std::to_string(first) + " " +
             doing(threads_[first]) + ", thread " + std::to_string(other) + " " + doing(threads_[other]);
    return false;
  }

  // All threads have reached a barrier or their end. True if they go on.
  bool end_of_phase() {
    const Thread& first = threads_.front();
    for (unsigned i = 1; i < threads_.size(); ++i) {
      const Thread& other = threads_[i];
      if (other.state == first.state &&
          (first.state == State::kEnded || (other.line == first.line && !differ(other.file, first.file))))
        continue;
      return diverged("barrier", 0, i);
    }
    for (Thread& thread : threads_)
      if (thread.state == State::kWaiting) thread.state = State::kReady;
    return first.state != State::kEnded;
  }

  // Names of source files, mostly one string.
  static bool differ(const char* a, const char* b) { return a != b && std::strcmp(a, b) != 0; }

  // A sanitizer over it would watch the emulator, at a tenth of the time of all tests.
  __attribute__((no_sanitize("address", "undefined"))) void check_word(Word& word, size_t i, bool write) {
    const auto race = [&](const char* what, unsigned other) {
      fail(std::string("race on shared memory at byte ") + std::to_string(4 * i) + ": " + what + " thread " +
           std::to_string(other) + " since the last barrier");
    };
    const uint64_t meeting = threads_[current_].meetings;
    if (word.copying) fail("shared memory at byte " + std::to_string(4 * i) + " is touched while a copy to it is under way");
    // Ordered before now by a barrier of the warp that both threads belong to.
    const auto ordered = [&](unsigned other, uint64_t then) { return other / 32 == current_ / 32 && then < meeting; };
    if (word.write_phase == phase_ && word.writer != current_ && !ordered(word.writer, word.write_meeting))
      race("also written by", word.writer);
    if (!write && !word.written) fail("shared memory at byte " + std::to_string(4 * i) + " is read before written");
    if (write) {
      if (word.read_phase == phase_ && (word.reader != current_ || word.many_readers) &&
          (word.many_warps || !ordered(word.reader, word.read_meeting)))
        race("also read by", word.reader);
      word.write_phase = phase_;
      word.write_meeting = meeting;
      word.writer = current_;
      word.written = true;
    } else {
      const bool again = word.read_phase == phase_;
      word.many_readers = again && (word.many_readers || word.reader != current_);
      word.many_warps = again && (word.many_warps || word.reader / 32 != current_ / 32);
      word.read_phase = phase_;
      word.read_meeting = meeting;
      word.reader = current_;
    }
  }

  static std::string doing(const Thread& thread) {
    if (thread.state == State::kEnded) return "has ended";
    return std::string("waits at ") + thread.file + ":" + std::to_string(thread.line);
  }
  std::string where_block() const {
    return "block (" + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) + ", " +
           std::to_string(block_index.z) + ")";
  }

  // Ends the launch from inside a thread.
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(where_block() + ", thread " + std::to_string(current_) + ": " + what);
  }

  static void entry() {
    Launch* launch = running();
    launch->arrived(nullptr);
    try {
      launch->kernel_();
    } catch (const std::exception& error) {  // must not leave this stack
      launch->error_ = error.what();
    }
    launch->threads_[launch->current_].state = State::kEnded;
    launch->to_scheduler();
    std::abort();
  }

  void resume(unsigned i) {
    current_ = i;
#ifdef __SANITIZE_ADDRESS__
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, stacks_.bottom(i), Stacks::kBytes);
    switch_stack(&scheduler_, threads_[i].stack_pointer);
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#else
    switch_stack(&scheduler_, threads_[i].stack_pointer);
#endif
  }

  void to_scheduler() {
    Thread& thread = threads_[current_];
#ifdef __SANITIZE_ADDRESS__
    void** keep = thread.state == State::kEnded ? nullptr : &thread.sanitizer_stack;
    __sanitizer_start_switch_fiber(keep, host_bottom_, host_bytes_);
#endif
    switch_stack(&thread.stack_pointer, scheduler_);
    arrived(thread.sanitizer_stack);
  }

  // First thing a thread does on its own stack after a switch.
  void arrived([[maybe_unused]] void* sanitizer_stack) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(sanitizer_stack, &host_bottom_, &host_bytes_);
#endif
  }

  std::function<void()> kernel_;
  std::vector<Thread> threads_;
  Stacks stacks_;
  std::unique_ptr<unsigned char, void (*)(void*)> shared_;
  size_t shared_bytes_;
  std::vector<Word> words_;
  std::mt19937_64 random_;
  uint64_t phase_ = 0;
  unsigned current_ = 0;
  void* scheduler_ = nullptr;
  std::string error_;
  const void* host_bottom_ = nullptr;
  size_t host_bytes_ = 0;
};

}  // namespace m2::emulator

using dim3 = m2::emulator::Dim3;
#define threadIdx (::m2::emulator::Launch::running()->thread_index())
#define blockIdx (::m2::emulator::Launch::running()->block_index)
#define blockDim (::m2::emulator::Launch::running()->block_dim)
#define gridDim (::m2::emulator::Launch::running()->grid_dim)

// The place of the call tells barriers apart, so it is taken as default arguments.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  m2::emulator::Launch::running()->barrier(file, line);
}

inline void __syncwarp(unsigned mask = ~0u, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (m2::emulator::is_left_out(file, line)) return;
  m2::emulator::Launch::running()->meet<char, char>(
      mask, 0, [](const char* const (&)[32], char* const (&out)[32]) { for (char* x : out) *x = 0; }, file, line, true);
}

namespace m2::emulator {

// Every lane receives the value of the lane it names.
template <class T>
T shuffle(unsigned mask, T value, int lane, const char* file, int line) {
  struct In {
    T value;
    int lane;
  };
  return Launch::running()->meet<In, T>(
      mask, {value, lane},
      [](const In* const (&in)[32], T* const (&out)[32]) {
        for (int i = 0; i < 32; ++i) *out[i] = in[in[i]->lane & 31]->value;
      },
      file, line);
}

}  // namespace m2::emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return m2::emulator::shuffle(mask, value, lane, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  return m2::emulator::shuffle(mask, value, int(m2::emulator::Launch::running()->current_lane()) ^ bits, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  const unsigned lane = m2::emulator::Launch::running()->current_lane();
  return m2::emulator::shuffle(mask, value, int(lane + delta < 32 ? lane + delta : lane), file, line);
}

// Sine and cosine of pi x.
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = float(std::sin(3.14159265358979323846 * double(x)));
  *cosine = float(std::cos(3.14159265358979323846 * double(x)));
}

// The few calls of the CUDA runtime that csrc/cuda makes, on ordinary memory.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9
};
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
enum cudaMemcpyKind { cudaMemcpyHostToDevice };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed };
constexpr unsigned cudaStreamNonBlocking = 1;
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "invalid argument";
  }
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const m2::emulator::Options& device = m2::emulator::options();
  return *value = attribute == cudaDevAttrMultiProcessorCount ? device.processors : int(device.shared_bytes_per_block),
         cudaSuccess;
}
// Aligned as on a GPU: how many sectors an access touches depends on it.
inline cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return posix_memalign(pointer, 256, bytes) == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* pointer) { return std::free(pointer), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
