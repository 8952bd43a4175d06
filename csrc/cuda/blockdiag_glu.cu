// The gated block-diagonal MLP in one kernel on tensor cores, organised as attention is. Interface: blockdiag_glu.h.
// Compiled by nvcc, or by g++ under the emulator. Test: ../testing/test_blockdiag_glu_cuda.cpp.
//
// A block owns up to 128 tokens of one block of outputs. The two groups of channels of x that gate and value need stay
// in shared memory; the weights pass through it in chunks of 32 hidden channels, the next one copied while this one is
// worked on. A warp owns 16 tokens: gate and value of a chunk are sums in its registers, gelu(gate) * value there
// becomes the left operand of the second product (the layouts agree), whose sums stay in registers to the end. Hidden
// channels never reach memory. Every operand lies with its summed index contiguous, so a fragment register is one
// 32-bit load; rows are 8 elements longer than their content, which spreads the 8 rows of a load over all banks.
#include "blockdiag_glu.h"

#include <cmath>

#include "element.cuh"

namespace m2::cuda {
namespace {

constexpr int kChunk = 32;    // hidden channels at a time
constexpr int kWarpRows = 16;
constexpr int kMaxThreads = 256;
constexpr int kGap = 8;       // elements between rows of shared memory
constexpr int kVector = 8;    // elements of a 16-byte copy

// Where things lie in shared memory, in pairs of elements.
struct Layout {
  int row_in, row_hidden, gate_x, value_x, weights, gate_w, value_w, out_w, buffer;

  __host__ __device__ constexpr Layout(int in, int columns, int rows)
      : row_in((in + kGap) / 2), row_hidden((kChunk + kGap) / 2), gate_x(0), value_x(rows * row_in),
        weights(2 * rows * row_in), gate_w(0), value_w(kChunk * row_in), out_w(2 * kChunk * row_in),
        buffer(2 * kChunk * row_in + columns * row_hidden) {}
  __host__ __device__ constexpr int pairs() const { return weights + 2 * buffer; }
};

using Pairs = SharedArray<uint32_t>;

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, Half>) mma_half(c, a, b);
  else mma_bfloat(c, a, b);
}

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, Half>) return pack_half(low, high);
  else return pack_bfloat(low, high);
}

__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// Copies `rows` rows of `length` elements, zeros from row `existing` on.
template <class T>
__device__ __forceinline__ void copy_rows(const Pairs& shared, int to, int pitch, const T* from, int64_t stride,
                                          int rows, int64_t existing, int length) {
  const int vectors = length / kVector;
  for (int i = int(threadIdx.x); i < rows * vectors; i += int(blockDim.x)) {
    const int row = i / vectors, column = i % vectors * kVector;
    const bool exists = row < existing;
    shared.copy_async(to + row * pitch + column / 2, from + (exists ? row * stride + column : 0), exists);
  }
}

// Left operand: rows row .., columns 16 * step ..; right operand: columns (its rows in memory) row .., the same.
__device__ __forceinline__ void load_left(const Pairs& shared, int base, int pitch, int step, uint32_t (&a)[4]) {
  const int lane = int(threadIdx.x) % 32, at = base + lane / 4 * pitch + lane % 4 + 8 * step;
  M2_UNROLL
  for (int r = 0; r < 4; ++r) a[r] = shared.load(at + r % 2 * 8 * pitch + r / 2 * 4);
}
__device__ __forceinline__ void load_right(const Pairs& shared, int base, int pitch, int step, uint32_t (&b)[2]) {
  const int lane = int(threadIdx.x) % 32, at = base + lane / 4 * pitch + lane % 4 + 8 * step;
  b[0] = shared.load(at);
  b[1] = shared.load(at + 4);
}

// kColumns: outputs of a block, rounded up to what there are kernels for; those past args.out are zeros.
template <class T, int kColumns>
__global__ void __launch_bounds__(kMaxThreads, 1) blockdiag_glu_fwd_kernel(BlockdiagGluArgs args) {
  const int rows = int(blockDim.x) / 32 * kWarpRows, block = int(blockIdx.x % unsigned(args.blocks_out));
  const int64_t first = int64_t(blockIdx.x / unsigned(args.blocks_out)) * rows, tokens = args.tokens - first;
  const int64_t gate = int64_t(block) * args.inner, value = gate + int64_t(args.blocks_out) * args.inner;
  const T* x = static_cast<const T*>(args.x) + first * args.stride_x;
  const T* w_in = static_cast<const T*>(args.w_in);
  const T* w_out = static_cast<const T*>(args.w_out) + int64_t(block) * args.out * args.inner;
  const Layout layout(args.in, kColumns, rows);
  const Pairs shared;

  const auto copy_weights = [&](int chunk) {
    const int buffer = layout.weights + chunk % 2 * layout.buffer, start = chunk * kChunk;
    for (int half = 0; half < 2; ++half)
      copy_rows(shared, buffer + (half ? layout.value_w : layout.gate_w), layout.row_in,
                w_in + ((half ? value : gate) + start) * args.in, args.in, kChunk, kChunk, args.in);
    copy_rows(shared, buffer + layout.out_w, layout.row_hidden, w_out + start, args.inner, kColumns, args.out, kChunk);
    end_copy_group();
  };
  copy_rows(shared, layout.gate_x, layout.row_in, x + gate / args.rows_in * args.in, args.stride_x, rows, tokens,
            args.in);
  copy_rows(shared, layout.value_x, layout.row_in, x + value / args.rows_in * args.in, args.stride_x, rows, tokens,
            args.in);
  copy_weights(0);

  float sums[kColumns / 8][4] = {};
  const int chunks = args.inner / kChunk, warp_row = int(threadIdx.x) / 32 * kWarpRows;
  M2_NO_UNROLL
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (chunk + 1 < chunks) {
      copy_weights(chunk + 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    const int buffer = layout.weights + chunk % 2 * layout.buffer;
    float g[kChunk / 8][4] = {}, v[kChunk / 8][4] = {};
    M2_NO_UNROLL
    for (int step = 0; step < args.in / 16; ++step) {
      uint32_t a_gate[4], a_value[4];
      load_left(shared, layout.gate_x + warp_row * layout.row_in, layout.row_in, step, a_gate);
      load_left(shared, layout.value_x + warp_row * layout.row_in, layout.row_in, step, a_value);
      M2_UNROLL
      for (int n = 0; n < kChunk / 8; ++n) {
        uint32_t b[2];
        load_right(shared, buffer + layout.gate_w + 8 * n * layout.row_in, layout.row_in, step, b);
        mma<T>(g[n], a_gate, b);
        load_right(shared, buffer + layout.value_w + 8 * n * layout.row_in, layout.row_in, step, b);
        mma<T>(v[n], a_value, b);
      }
    }
    M2_UNROLL
    for (int step = 0; step < kChunk / 16; ++step) {
      uint32_t a[4];
      M2_UNROLL
      for (int r = 0; r < 4; ++r) {
        const int n = 2 * step + r / 2, i = r % 2 * 2;
        a[r] = pack<T>(gelu(g[n][i]) * v[n][i], gelu(g[n][i + 1]) * v[n][i + 1]);
      }
      M2_UNROLL
      for (int n = 0; n < kColumns / 8; ++n) {
        uint32_t b[2];
        load_right(shared, buffer + layout.out_w + 8 * n * layout.row_hidden, layout.row_hidden, step, b);
        mma<T>(sums[n], a, b);
      }
    }
    __syncthreads();
  }

  const int lane = int(threadIdx.x) % 32;
  const int64_t pitch = int64_t(args.blocks_out) * args.out;
  const T* bias = args.bias ? static_cast<const T*>(args.bias) + block * args.out : nullptr;
  T* result = static_cast<T*>(args.result) + first * pitch + block * args.out;
  M2_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) {
    const int column = 8 * n + lane % 4 * 2;
    if (8 * n >= args.out) continue;
    const float low = bias ? to_float(bias[column]) : 0.0f, high = bias ? to_float(bias[column + 1]) : 0.0f;
    M2_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + lane / 4 + 8 * half;
      if (row >= tokens) continue;
      *reinterpret_cast<uint32_t*>(result + row * pitch + column) =
          pack<T>(sums[n][2 * half] + low, sums[n][2 * half + 1] + high);
    }
  }
}

// Outputs of a block that there are kernels for: 0 if none has so many. One for 64 would be a fifth of the machine code,
// and serve models of at most 256 channels.
int columns_for(int out) { return out <= 128 ? 128 : out <= 192 ? 192 : out <= 256 ? 256 : 0; }

size_t bytes_for(const BlockdiagGluArgs& args, int threads) {
  return size_t(Layout(args.in, columns_for(args.out), threads / 32 * kWarpRows).pairs()) * sizeof(uint32_t);
}

// The most threads whose tokens fit beside the weights, 0 if not even 64 do.
cudaError_t threads_for(const BlockdiagGluArgs& args, int* threads) {
  int device = 0, available = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *threads = 0;
  for (int wanted = kMaxThreads; error == cudaSuccess && !*threads && wanted >= 64; wanted /= 2)
    if (bytes_for(args, wanted) <= size_t(available)) *threads = wanted;
  return error;
}

bool sizes_fit(const BlockdiagGluArgs& args) {
  const bool positive = args.tokens >= 0 && args.blocks_in > 0 && args.rows_in > 0 && args.blocks_out > 0;
  const bool tiles = args.in > 0 && args.in % 16 == 0 && args.in <= 256 && args.out > 0 && args.out % 8 == 0 &&
                     columns_for(args.out) && args.inner > 0 && args.inner % kChunk == 0;
  if (!positive || !tiles || args.element == Element::f32) return false;
  const int64_t hidden = int64_t(args.blocks_out) * args.inner;
  return int64_t(args.blocks_in) * args.rows_in == 2 * hidden && args.stride_x % kVector == 0 &&
         args.rows_in % args.inner == 0;
}

}  // namespace

cudaError_t blockdiag_glu_serves(const BlockdiagGluArgs& args, bool* serves) {
  *serves = false;
  if (!sizes_fit(args)) return cudaSuccess;
  int threads = 0;
  const cudaError_t error = threads_for(args, &threads);
  *serves = threads > 0;
  return error;
}

cudaError_t blockdiag_glu_fwd(const BlockdiagGluArgs& args, cudaStream_t stream, LaunchShape* shape) {
  int threads = 0;
  if (!sizes_fit(args)) return cudaErrorInvalidValue;
  const cudaError_t error = threads_for(args, &threads);
  if (error != cudaSuccess) return error;
  if (threads == 0) return cudaErrorInvalidValue;
  const int64_t rows = threads / 32 * kWarpRows;
  const LaunchShape wanted = {ceil_div(args.tokens, rows) * args.blocks_out, threads, bytes_for(args, threads)};
  if (shape) *shape = wanted;
  if (wanted.blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (wanted.blocks == 0) return cudaSuccess;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const int columns = columns_for(args.out);
    const auto kernel = columns == 128   ? &blockdiag_glu_fwd_kernel<T, 128>
                        : columns == 192 ? &blockdiag_glu_fwd_kernel<T, 192>
                                         : &blockdiag_glu_fwd_kernel<T, 256>;
    return launch(kernel, unsigned(wanted.blocks), unsigned(threads), wanted.shared_bytes, stream, args);
  };
  return args.element == Element::f16 ? run(Half{}) : run(Bfloat{});
}

}  // namespace m2::cuda
