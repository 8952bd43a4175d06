// Ways to reach memory, good and bad: negative controls of scripts/gpu_model.py, which has to tell them apart.
#include <cstdint>

constexpr int kTurns = 16;

// Neighbouring threads, neighbouring elements; loads of a turn do not wait for each other.
__global__ void plain_kernel(const float* x, float* out) {
  const int first = blockIdx.x * kTurns * blockDim.x + threadIdx.x;
  float kept[kTurns];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) kept[i] = x[first + i * blockDim.x];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) out[first + i * blockDim.x] = 2.0f * kept[i];
}

// The same elements, each thread its own neighbours: every lane of a warp in a sector of its own.
__global__ void scattered_kernel(const float* x, float* out) {
  const int first = (blockIdx.x * blockDim.x + threadIdx.x) * kTurns;
  float kept[kTurns];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) kept[i] = x[first + (i * 5 & 15)];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) out[first + (i * 3 & 15)] = 2.0f * kept[i];
}

// The same elements, in a loop in which every load waits for the one before.
__global__ void serialised_kernel(const float* x, float* out) {
  int at = blockIdx.x * kTurns * blockDim.x + threadIdx.x;
  const int first = at;
#pragma unroll 1
  for (int i = 0; i < kTurns; ++i) {
    const float kept = x[at];
    out[first + i * blockDim.x] = 2.0f * kept;
    at += blockDim.x + (kept == 1e30f);
  }
}

// A tile of 32 columns turned in shared memory; rows of `pitch` floats.
__device__ __forceinline__ void turn(const float* x, float* out, int pitch) {
  extern __shared__ float tile[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * 1024;
#pragma unroll
  for (int i = 0; i < 4; ++i) tile[(4 * warp + i) * pitch + lane] = x[first + (4 * warp + i) * 32 + lane];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) out[first + (4 * warp + i) * 32 + lane] = tile[lane * pitch + 4 * warp + i];
}
__global__ void padded_kernel(const float* x, float* out) { turn(x, out, 33); }
__global__ void conflicting_kernel(const float* x, float* out) { turn(x, out, 32); }

// Stores whose places say what integers came out: of divisions of 32 and 64 bits, signed and not, shifts and masks.
__global__ void integers_kernel(char* out, int a, unsigned b, int64_t c) {
  const int t = int(threadIdx.x) - 16;
  const int64_t wide = int64_t(t) * 1000000007;
  out[0 * 65536 + 32768 + (t * 12345) / a] = 1;
  out[1 * 65536 + unsigned(t * 12345) % b] = 1;
  out[2 * 65536 + 32768 + (t < 0 ? -1 : 1) * (wide / c < 0 ? -(wide / c) : wide / c)] = 1;
  out[3 * 65536 + 32768 + ((t * 777) >> 3)] = 1;
  out[4 * 65536 + (((unsigned(t) << 5) ^ (b & 0xff)) & 0xffff)] = 1;
}
