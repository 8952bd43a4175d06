// The emulator must run correct kernels and reject faulty ones: each kernel below makes one mistake.
// Prints a line per check and a summary; exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/cuda/test_cuda_kernels.py.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/common.cuh"
#include "../cuda/mma.cuh"

namespace {

using m2::cuda::SharedArray;

constexpr int kThreads = 64;
constexpr size_t kBytes = kThreads * sizeof(float);

__global__ void reverse(const float* x, float* out) {
  const SharedArray<float> shared;
  const int i = int(threadIdx.x), start = int(blockIdx.x * blockDim.x);
  shared.store(i, x[start + i]);
  __syncthreads();
  out[start + i] = shared.load(int(blockDim.x) - 1 - i);
}

__global__ void reverse_without_barrier(const float* x, float* out) {
  const SharedArray<float> shared;
  const int i = int(threadIdx.x);
  shared.store(i, x[i]);
  out[i] = shared.load(kThreads - 1 - i);
}

__global__ void overwrite_while_read(const float* x, float* out) {
  const SharedArray<float> shared;
  const int i = int(threadIdx.x);
  shared.store(i, x[i]);
  __syncthreads();
  out[i] = shared.load(kThreads - 1 - i);
  shared.store(i, out[i]);
}

__global__ void two_writers(const float* x, float*) { SharedArray<float>().store(int(threadIdx.x) / 2, x[0]); }

__global__ void past_the_end(const float*, float* out) { out[0] = SharedArray<float>().load(kThreads); }

__global__ void before_the_start(const float*, float* out) { out[0] = SharedArray<float>().load(-1); }

__global__ void never_written(const float*, float* out) { out[threadIdx.x] = SharedArray<float>().load(3); }

// Block 0 fills the shared memory that block 1 reads.
__global__ void left_by_another_block(const float* x, float* out) {
  const SharedArray<float> shared;
  const int i = int(threadIdx.x);
  if (blockIdx.x == 0) shared.store(i, x[i]);
  else out[i] = shared.load(i);
}

__global__ void some_end_early(const float*, float*) {
  if (threadIdx.x < 8) return;
  __syncthreads();
}

__global__ void two_barriers(const float*, float*) {
  if (threadIdx.x < 8) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

// Sum of the warp in every thread, by two kinds of shuffles.
__global__ void sum_warp(const float* x, float* out) {
  float sum = x[threadIdx.x];
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(~0u, sum, bits);
  out[threadIdx.x] = __shfl_sync(~0u, sum + __shfl_down_sync(~0u, sum, 1), int(threadIdx.x) % 32);
}

__global__ void reverse_warp(const float* x, float* out) {
  const SharedArray<float> shared;
  const int i = int(threadIdx.x);
  shared.store(i, x[i]);
  __syncwarp();
  out[i] = shared.load(i ^ 31);
  __syncwarp();
  shared.store(i, 0.0f);
}

__global__ void warp_barrier_between_warps(const float* x, float* out) {
  const SharedArray<float> shared;
  const int i = int(threadIdx.x);
  shared.store(i, x[i]);
  __syncwarp();
  out[i] = shared.load(kThreads - 1 - i);
}

// Matrix products and shuffles wait for the warp but order no memory.
__global__ void shuffle_as_a_barrier(const float* x, float* out) {
  const SharedArray<float> shared;
  const int i = int(threadIdx.x);
  shared.store(i, x[i]);
  const float other = __shfl_xor_sync(~0u, x[i], 1);
  out[i] = shared.load(i ^ 31) + other;
}

// Copies, four values a thread of the first quarter and zeros by every second one, read by others: right as <0, true, true>.
template <int kPending, bool kEnded, bool kBarrier>
__global__ void reverse_copies(const float* x, float* out) {
  const SharedArray<float> shared;
  const int i = int(threadIdx.x), lanes = kThreads / 4;
  if (i < lanes) {
    shared.copy_async(4 * i, x + 4 * i, i % 2 == 0);
    if (kEnded) m2::cuda::end_copy_group();
    m2::cuda::wait_for_copies<kPending>();
  }
  if (kBarrier) __syncthreads();
  out[i] = shared.load(kThreads - 1 - i);
}

// Waits for the first of two groups and reads what the second brings.
__global__ void wait_for_another_group(const float* x, float* out) {
  const SharedArray<float> shared;
  if (threadIdx.x != 0) return;
  for (int group = 0; group < 2; ++group) {
    shared.copy_async(4 * group, x + 4 * group, true);
    m2::cuda::end_copy_group();
  }
  m2::cuda::wait_for_copies<1>();
  out[0] = shared.load(0) + shared.load(4);
}

__global__ void copy_over_what_is_read(const float* x, float* out) {
  const SharedArray<float> shared;
  const int i = int(threadIdx.x);
  shared.store(i, x[i]);
  __syncthreads();
  out[i] = shared.load(kThreads - 1 - i);
  if (i < kThreads / 4) shared.copy_async(4 * i, x + 4 * i, true);
}

__global__ void part_of_a_warp(const float* x, float* out) {
  if (threadIdx.x % 2) return;
  out[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 2);
}

__global__ void half_a_mask(const float* x, float* out) { out[0] = __shfl_sync(0xffffu, x[0], 0); }

// One 16x8x16 product a warp: a[16][16], b[16][8] behind each other in x, c[16][8] out.
template <bool kBfloat>
__global__ void multiply_matrices(const float* x, float* out) {
  const int row = int(threadIdx.x) / 4, pair = int(threadIdx.x) % 4 * 2;
  const float* y = x + 256;
  const auto pack = [](float low, float high) {
    return kBfloat ? m2::cuda::pack_bfloat(low, high) : m2::cuda::pack_half(low, high);
  };
  uint32_t a[4], b[2];
  for (int r = 0; r < 4; ++r) {
    const float* from = x + (row + r % 2 * 8) * 16 + pair + r / 2 * 8;
    a[r] = pack(from[0], from[1]);
  }
  for (int r = 0; r < 2; ++r) b[r] = pack(y[(pair + 8 * r) * 8 + row], y[(pair + 8 * r + 1) * 8 + row]);
  float c[4] = {};
  if (kBfloat) m2::cuda::mma_bfloat(c, a, b);
  else m2::cuda::mma_half(c, a, b);
  for (int r = 0; r < 4; ++r) out[(row + r / 2 * 8) * 8 + pair + r % 2] = c[r];
}

// Matrices whose entry in row r, column c of matrix i is 64 i + 8 r + c, transposed on the way from shared memory.
__global__ void transpose_matrices(const float*, float* out) {
  const m2::cuda::SharedArray<uint32_t> words;
  const int lane = int(threadIdx.x);
  for (int j = 0; j < 4; ++j) words.store(4 * lane + j, uint32_t(8 * lane + 2 * j) | uint32_t(8 * lane + 2 * j + 1) << 16);
  __syncthreads();
  const m2::cuda::Quad quad = m2::cuda::load_transposed(words, 4 * lane);
  for (int i = 0; i < 4; ++i)
    for (int half = 0; half < 2; ++half) out[(4 * lane + i) * 2 + half] = float(quad.words[i] >> 16 * half & 0xffff);
}

__global__ void last_writer(const float*, float* out) { out[0] = float(threadIdx.x); }

__global__ void indices(float* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.count() + thread] += float(block * blockDim.count() + thread);
}

using Kernel = void (*)(const float*, float*);

int failures = 0;

void report(bool passed, const std::string& what) {
  std::printf("%s  %s\n", passed ? "ok  " : "FAIL", what.c_str());
  if (!passed) ++failures;
}

// What the emulator says about a kernel; empty if nothing.
std::string complaint(Kernel kernel) {
  std::vector<float> x(2 * kThreads, 1.0f), out(2 * kThreads);
  try {
    m2::cuda::launch(kernel, 2, kThreads, kBytes, nullptr, static_cast<const float*>(x.data()), out.data());
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

void expect(Kernel kernel, const std::string& part, const std::string& what) {
  const std::string said = complaint(kernel);
  report(said.find(part) != std::string::npos, what + (said.empty() ? ": nothing noticed" : ": " + said));
}

void check_correct_kernel() {
  std::vector<float> x(3 * kThreads), out(3 * kThreads);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i);
  const cudaError_t error =
      m2::cuda::launch(&reverse, 3, kThreads, kBytes, nullptr, static_cast<const float*>(x.data()), out.data());
  bool right = error == cudaSuccess;
  for (int b = 0; b < 3; ++b)
    for (int i = 0; i < kThreads; ++i) right = right && out[b * kThreads + i] == x[b * kThreads + kThreads - 1 - i];
  report(right, "a correct kernel runs");
}

void check_indices() {
  const dim3 grid = {2, 3, 4}, block = {4, 3, 2};
  std::vector<float> out(grid.count() * block.count());
  m2::emulator::Launch(grid, block, 0, [&] { indices(out.data()); }).run();
  bool right = true;
  for (size_t i = 0; i < out.size(); ++i) right = right && out[i] == float(i);
  report(right, "every thread of every block runs once, in three dimensions");
}

void check_order() {
  std::vector<float> last;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    m2::emulator::options().seed = seed;
    float x = 0, out = 0;
    m2::cuda::launch(&last_writer, 1, kThreads, 0, nullptr, static_cast<const float*>(&x), &out);
    last.push_back(out);
  }
  m2::emulator::options() = {};
  bool varies = false;
  for (float thread : last) varies = varies || thread != last.front();
  report(varies, "the seed changes the order of the threads");
}

void check_warps() {
  std::vector<float> x(kThreads), out(kThreads);
  for (int i = 0; i < kThreads; ++i) x[i] = float(i);
  const float* in = x.data();
  m2::cuda::launch(&sum_warp, 1, kThreads, 0, nullptr, in, out.data());
  report(out[0] == 2 * 496 && out[31] == 2 * 496 && out[32] == 2 * 1520, "shuffles exchange the values of a warp");
  m2::cuda::launch(&reverse_warp, 1, kThreads, kBytes, nullptr, in, out.data());
  report(out[0] == 31 && out[32] == 63, "a barrier of a warp orders its accesses to shared memory");
}

void check_copies() {
  std::vector<float> x(kThreads), out(kThreads), exact(kThreads);
  for (int i = 0; i < kThreads; ++i) x[i] = float(i + 1);
  for (int i = 0; i < kThreads; ++i) exact[kThreads - 1 - i] = i / 4 % 2 == 0 ? x[i] : 0.0f;
  m2::cuda::launch(&reverse_copies<0, true, true>, 1, kThreads, kBytes, nullptr, static_cast<const float*>(x.data()),
                   out.data());
  report(out == exact, "asynchronous copies arrive, zeros where nothing is copied");
}

void check_matrices() {
  std::vector<float> x(256 + 128), exact(128), out(128);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 37 % 101) - 50) / 16;  // exact in both 16-bit types
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j)
      for (int k = 0; k < 16; ++k) exact[i * 8 + j] += x[i * 16 + k] * x[256 + k * 8 + j];
  const float* in = x.data();
  m2::cuda::launch(&multiply_matrices<false>, 1, 32, 0, nullptr, in, out.data());
  report(out == exact, "a matrix product of float16 operands");
  std::fill(out.begin(), out.end(), 0.0f);
  m2::cuda::launch(&multiply_matrices<true>, 1, 32, 0, nullptr, in, out.data());
  report(out == exact, "a matrix product of bfloat16 operands");
  out.assign(256, 0.0f), exact.assign(256, 0.0f);
  m2::cuda::launch(&transpose_matrices, 1, 32, 512, nullptr, in, out.data());
  for (int lane = 0; lane < 32; ++lane)  // as PTX has it: rows 2 t and 2 t + 1 of column g
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half)
        exact[size_t(lane * 4 + i) * 2 + half] = float(64 * i + 8 * (lane % 4 * 2 + half) + lane / 4);
  report(out == exact, "matrices of shared memory are transposed");
}

// 16-bit values: every one survives the way to float32 and back, and float32 is rounded to the nearest, ties to even.
void check_conversions() {
  bool same = true;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float half = m2::cuda::half_to_float(uint16_t(bits)), bfloat = m2::cuda::bfloat_to_float(uint16_t(bits));
    if (half == half) same = same && m2::cuda::float_to_half(half) == bits;
    if (bfloat == bfloat) same = same && m2::cuda::float_to_bfloat(bfloat) == bits;
  }
  report(same, "16-bit values survive conversion to float32 and back");
  report(m2::cuda::float_to_half(1.0f + 1.0f / 2048) == 0x3c00 && m2::cuda::float_to_half(1.0f + 3.0f / 2048) == 0x3c02,
         "float16 ties go to even");
  report(m2::cuda::float_to_bfloat(1.0f + 1.0f / 256) == 0x3f80 && m2::cuda::float_to_bfloat(1.0f + 3.0f / 256) == 0x3f82,
         "bfloat16 ties go to even");
  const float nan = m2::cuda::bfloat_to_float(m2::cuda::float_to_bfloat(m2::cuda::half_to_float(0x7e00)));
  report(nan != nan && m2::cuda::float_to_half(1e6f) == 0x7c00, "NaN stays NaN, too large for float16 is infinite");
}

void check_launch_limits() {
  const float x = 0;
  float out = 0;
  const auto launch = [&](unsigned threads, size_t bytes) {
    return m2::cuda::launch(&last_writer, 1, threads, bytes, nullptr, &x, &out);
  };
  report(launch(2048, 0) == cudaErrorInvalidConfiguration, "too many threads a block are refused");
  report(launch(kThreads, 300 * 1024) == cudaErrorInvalidConfiguration, "too much shared memory is refused");
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines reach a pipe before a crash
  check_correct_kernel();
  check_indices();
  check_order();
  check_launch_limits();
  check_warps();
  check_copies();
  check_matrices();
  check_conversions();
  expect(&reverse_without_barrier, "is read before written", "missing barrier after writing");
  expect(&overwrite_while_read, "race on shared memory", "missing barrier after reading");
  expect(&two_writers, "race on shared memory", "two threads write one word");
  expect(&past_the_end, "at byte 256 of 256", "access past the end of shared memory");
  expect(&before_the_start, "at byte -4 of 256", "access before the start of shared memory");
  expect(&never_written, "is read before written", "shared memory that nobody wrote");
  expect(&left_by_another_block, "block (1, 0, 0)", "shared memory left by another block");
  expect(&some_end_early, "divergent barrier", "some threads end before a barrier");
  expect(&two_barriers, "divergent barrier", "threads wait at different barriers");
  expect(&warp_barrier_between_warps, "shared memory", "a barrier of a warp orders nothing between warps");
  expect(&shuffle_as_a_barrier, "shared memory", "a shuffle orders no memory");
  expect(&reverse_copies<0, true, false>, "shared memory", "copies waited for, no barrier");
  expect(&reverse_copies<1, true, true>, "copy to it is under way", "a wait that lets the last group be under way");
  expect(&reverse_copies<0, false, true>, "copy to it is under way", "a wait for copies whose group was not ended");
  expect(&wait_for_another_group, "copy to it is under way", "a wait for the first of two groups");
  expect(&copy_over_what_is_read, "race on shared memory", "a copy over what other threads read");
  expect(&part_of_a_warp, "divergent warp", "some threads of a warp miss a shuffle");
  expect(&half_a_mask, "part of a warp", "a shuffle of half a warp");
  report(complaint(&reverse).empty(), "a correct kernel still runs after the faulty ones");
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
