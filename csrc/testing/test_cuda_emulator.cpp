// The emulator must run correct kernels and reject faulty ones: each kernel below makes one mistake.
// Prints a line per check and a summary; exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/test_cuda_emulated.py.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/common.cuh"

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
  expect(&reverse_without_barrier, "is read before written", "missing barrier after writing");
  expect(&overwrite_while_read, "race on shared memory", "missing barrier after reading");
  expect(&two_writers, "race on shared memory", "two threads write one word");
  expect(&past_the_end, "at byte 256 of 256", "access past the end of shared memory");
  expect(&before_the_start, "at byte -4 of 256", "access before the start of shared memory");
  expect(&never_written, "is read before written", "shared memory that nobody wrote");
  expect(&left_by_another_block, "block (1, 0, 0)", "shared memory left by another block");
  expect(&some_end_early, "divergent barrier", "some threads end before a barrier");
  expect(&two_barriers, "divergent barrier", "threads wait at different barriers");
  report(complaint(&reverse).empty(), "a correct kernel still runs after the faulty ones");
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
