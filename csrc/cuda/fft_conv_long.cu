// Long transforms in several kernels: passes of radix 16 through global memory, then rows that shared memory holds, and
// back. Interface: fft_conv_long.h. Compiled by nvcc, or by g++ under the emulator.
// Test: ../testing/test_fft_conv_bwd_cuda.cpp.
//
// A right-angle transform of L points is, after one pass of radix R, R right-angle transforms of L / R points: the pass
// multiplies by the twist of its own length, theta_L^n, and takes back the one that the shorter transforms will apply.
// With n = j + i L / R, output q at j is multiplied by exp(-i pi j (4 q + R - 1) / (2 L)). So the rows run through the
// passes of fft_passes.cuh as they are. The factors are computed, not read: the passes are bound by memory.
//
// The first pass reads the tensors and the last one writes them; in between a few rows of complex float32 lie in `work`,
// few enough that the L2 cache holds them. Every butterfly is owned by one thread, which puts its results where it read.
#include "fft_conv_long.h"

#include <algorithm>
#include <cstdint>

#include "fft_bwd_passes.cuh"
#include "fft_long_ports.cuh"

namespace m2::cuda {
namespace {

constexpr int kRadix = kPortValues;
constexpr int kThreads = 256;

// Batch entries b .. b + batch - 1 of channels d .. d + dim - 1; the work holds a row of each, [batch][dim][size].
struct Chunk {
  int64_t b = 0, batch = 0, d = 0, dim = 0;
};

struct Work {
  Complex* data = nullptr;
  int64_t size = 0;
  Chunk chunk;

  __host__ __device__ int64_t rows() const { return chunk.batch * chunk.dim; }
};

// w[q] = exp(-i pi j (4 q + 15) / (2 length)), of seven sines and their products. The angles are exact: lengths are powers
// of two up to 2^22.
__device__ __forceinline__ void pass_twiddles(int j, int length, Complex (&w)[kRadix]) {
  const auto turn = [&](int count) {
    float sine, cosine;
    sincospif(float((j * count) & (4 * length - 1)) / float(2 * length), &sine, &cosine);
    return Complex{cosine, -sine};
  };
  Complex fine[4];
  M2_UNROLL
  for (int q = 1; q < 4; ++q) fine[q] = turn(4 * q);
  M2_UNROLL
  for (int q = 0; q < kRadix; ++q) w[q] = q % 4 ? w[q / 4 * 4] * fine[q % 4] : turn(4 * q + kRadix - 1);
}

// The butterfly of a thread in runs of `length` points. Blocks of neighbouring channels run together: where channels are
// contiguous, they share cache lines.
struct Butterfly {
  int64_t row;
  int j, first, step;

  __device__ __forceinline__ Butterfly(const Work& work, int length) {
    const unsigned rows = unsigned(work.rows());
    const int index = int(blockIdx.x / rows) * kThreads + int(threadIdx.x);
    row = blockIdx.x % rows;
    step = length / kRadix;
    j = index & (step - 1);
    first = index / step * length + j;
  }
};

template <class Port>
__global__ void __launch_bounds__(kThreads, 2) fft_pass_fwd_kernel(Work work, int length, Port port) {
  const Butterfly at(work, length);
  Complex* row = work.data + at.row * work.size;
  const auto source = port.row(work.chunk.b + at.row / work.chunk.dim, work.chunk.d + at.row % work.chunk.dim, row);
  typename decltype(port.row(0, 0, row))::Value g[kRadix];
  source.read(at.first, at.step, g);
  Complex x[kRadix], w[kRadix];
  M2_UNROLL
  for (int i = 0; i < kRadix; ++i) x[i] = g[i] * twist<kRadix>(i);
  Dft<kRadix, false>::run(x);
  pass_twiddles(at.j, length, w);
  M2_UNROLL
  for (int q = 0; q < kRadix; ++q) row[at.first + q * at.step] = x[q] * w[q];
}

template <class Port>
__global__ void __launch_bounds__(kThreads) fft_pass_bwd_kernel(Work work, int length, Port port) {
  const Butterfly at(work, length);
  Complex* row = work.data + at.row * work.size;
  const auto sink = port.row(work.chunk.b + at.row / work.chunk.dim, work.chunk.d + at.row % work.chunk.dim, row);
  Complex x[kRadix], w[kRadix];
  pass_twiddles(at.j, length, w);
  M2_UNROLL
  for (int q = 0; q < kRadix; ++q) x[q] = row[at.first + q * at.step] * conj(w[q]);
  Dft<kRadix, true>::run(x);
  M2_UNROLL
  for (int i = 0; i < kRadix; ++i) x[i] = x[i] * conj(twist<kRadix>(i));
  sink.write(at.first, at.step, x);
}

// What becomes of the rows on chip: multiplied by the spectrum; written to it (times 1 / size); read from it.
enum class RowTask { convolve, to_spectrum, from_spectrum };

struct RowArgs {
  Work work;
  RowTask task;
  const float* spectrum;  // of convolve and from_spectrum, [dim][2 * size]
  const float* skip;
  int64_t stride_skip;
  float* made;  // by to_spectrum
};

template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads, 1) fft_rows_kernel(RowArgs args, const Complex* table) {
  using P = LastPass<kPlan>;
  constexpr int kSize = kFftPlans[kPlan].size;
  const unsigned parts = unsigned(args.work.size / kSize), part = blockIdx.x % parts;
  const int64_t row = blockIdx.x / parts, d = args.work.chunk.d + row % args.work.chunk.dim;
  Complex* points = args.work.data + row * args.work.size + part * kSize;
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * args.work.size + part * kSize;
  Complex* made = reinterpret_cast<Complex*>(args.made) + d * args.work.size + part * kSize;
  const SharedArray<Complex> shared;

  if (args.task != RowTask::from_spectrum) {
    forward_first<kPlan>(shared, table, [&](int n, Complex twist) { return points[n] * twist; });
    forward_middle<kPlan, 1>(shared, table);
  }
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / float(args.work.size) : 0.0f;
  M2_NO_UNROLL
  for (int b = thread_index_again(); b < P::kButterflies; b += kFftPlans[kPlan].threads) {
    Complex x[P::kRadix];
    if (args.task != RowTask::from_spectrum) {
      load<P>(shared, P::slot(b), x);
      Dft<P::kRadix, false>::run(x);
    }
    M2_UNROLL
    for (int q = 0; q < P::kRadix; ++q) {
      const int i = q * P::kButterflies + b;
      if (args.task == RowTask::to_spectrum) {
        made[i] = (1.0f / float(args.work.size)) * x[q];
      } else {
        const Complex k = load_readonly(spectrum + i);
        x[q] = args.task == RowTask::convolve ? x[q] * Complex{k.re + skip, k.im} : k;
      }
    }
    if (args.task == RowTask::to_spectrum) continue;
    Dft<P::kRadix, true>::run(x);
    store<P>(shared, P::slot(b), x);
  }
  if (args.task == RowTask::to_spectrum) return;
  __syncthreads();
  inverse_middle<kPlan, kFftPlans[kPlan].passes - 2>(shared, table);
  inverse_first<kPlan>(shared, table, [&](int n, Complex y) { points[n] = y; });
}

struct RowBwdArgs {
  Work u, dout;
  bool output_wanted;
  const float* spectrum;
  const float* skip;
  int64_t stride_skip;
  float* dspectrum;  // of chunk.b > 0, added to
  Complex* kept;     // [chunk.dim][size], where shared memory is too small
};

// A block owns a row of a channel in all batch entries of the chunk.
template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads, 1)
    fft_rows_bwd_kernel(RowBwdArgs args, const Complex* table) {
  constexpr int kSize = kFftPlans[kPlan].size;
  constexpr bool kShared = kSize <= kMaxSharedSums;
  const Chunk& chunk = args.u.chunk;
  const int64_t size = args.u.size;
  const unsigned parts = unsigned(size / kSize);
  const int64_t channel = blockIdx.x / parts, d = chunk.d + channel, part = int64_t(blockIdx.x % parts) * kSize;
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / float(size) : 0.0f;
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * size + part;
  Complex* target = reinterpret_cast<Complex*>(args.dspectrum) + d * size + part;
  Frequencies<kPlan, kShared> sums(0, target), kept(1, args.kept + channel * size + part);
  const SharedArray<Complex> shared;

  if (chunk.b == 0) each_frequency<kPlan>([&](int i) { sums.set(i, {0.0f, 0.0f}); });
  else if (kShared) each_frequency<kPlan>([&](int i) { sums.set(i, target[i]); });
  M2_NO_UNROLL
  for (int64_t b = 0; b < chunk.batch; ++b) {
    const int64_t at = (b * chunk.dim + channel) * size + part;
    M2_NO_UNROLL
    for (int which = 0; which < 2; ++which) {
      Complex* points = (which ? args.dout : args.u).data + at;
      backward_way<kPlan>(
          which, shared, table, spectrum, skip, which || args.output_wanted, kept, sums, [&](int n) { return points[n]; },
          [&](int n, Complex y) { points[n] = y; });
    }
  }
  if (kShared) each_frequency<kPlan>([&](int i) { target[i] = sums.get(i); });
}

// Launches one pass, the first of which has whole rows as runs.
template <bool kInverse, class Port>
cudaError_t launch_pass(const Work& work, int pass, const Port& port, cudaStream_t stream) {
  const int length = int(work.size >> (4 * pass));
  const int64_t blocks = work.size / kRadix / kThreads * work.rows();
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  if constexpr (kInverse)
    return launch(&fft_pass_bwd_kernel<Port>, unsigned(blocks), kThreads, 0, stream, work, length, port);
  else return launch(&fft_pass_fwd_kernel<Port>, unsigned(blocks), kThreads, 0, stream, work, length, port);
}

template <class Port>
cudaError_t launch_passes_fwd(const LongFftPlan& plan, const Work& work, const Port& port, cudaStream_t stream) {
  cudaError_t error = launch_pass<false>(work, 0, port, stream);
  for (int pass = 1; error == cudaSuccess && pass < plan.passes; ++pass)
    error = launch_pass<false>(work, pass, InPlacePort{}, stream);
  return error;
}

template <class Port>
cudaError_t launch_passes_bwd(const LongFftPlan& plan, const Work& work, const Port& port, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (int pass = plan.passes - 1; error == cudaSuccess && pass > 0; --pass)
    error = launch_pass<true>(work, pass, InPlacePort{}, stream);
  return error == cudaSuccess ? launch_pass<true>(work, 0, port, stream) : error;
}

// with_plan for the sizes that rows have.
template <class Run>
cudaError_t with_row_plan(int64_t size, const Run& run) {
  return with_plan(size, [&](auto index) {
    constexpr int kSize = kFftPlans[index.value].size;
    if constexpr (kSize < kMinLongRow || kSize > kMaxLongRow) return cudaErrorInvalidValue;
    else return run(index);
  });
}

cudaError_t launch_row_task(const LongFftPlan& plan, const RowArgs& args, cudaStream_t stream, LaunchShape* shape) {
  return with_row_plan(plan.row, [&](auto index) {
    return launch_rows(&fft_rows_kernel<index.value>, kFftPlans[index.value], args,
                       args.work.rows() * (plan.size / plan.row), shared_bytes_needed(plan.row), stream, shape);
  });
}

// Channels of a chunk first, or batch entries: of the latter, a channel's spectrum is read once for many.
Chunk largest_chunk(int64_t batch, int64_t dim, int64_t size, bool batch_first, int64_t points) {
  const int64_t rows = std::max<int64_t>(1, points / size);
  Chunk chunk;
  chunk.batch = std::min(batch, batch_first ? rows : std::max<int64_t>(1, rows / std::max<int64_t>(1, dim)));
  chunk.dim = std::min(dim, std::max<int64_t>(1, rows / std::max<int64_t>(1, chunk.batch)));
  return chunk;
}

// Calls run(chunk) for chunks that cover the whole, the batch of some channels before the next channels.
template <class Run>
cudaError_t each_chunk(int64_t batch, int64_t dim, const Chunk& largest, const Run& run) {
  cudaError_t error = cudaSuccess;
  for (int64_t d = 0; d < dim; d += largest.dim)
    for (int64_t b = 0; error == cudaSuccess && b < batch; b += largest.batch)
      error = run(Chunk{b, std::min(largest.batch, batch - b), d, std::min(largest.dim, dim - d)});
  return error;
}

bool sizes_fit(int64_t batch, int64_t dim, int64_t seqlen, int64_t size) {
  return batch >= 0 && dim >= 0 && seqlen >= 0 && seqlen <= size && (dim == 0 || batch <= INT32_MAX / dim);
}

Chunk chunk_of(const FftConvArgs& args, int64_t points) {
  return largest_chunk(args.batch, args.dim, args.fft_size, args.u.stride_seq == 1, points);
}
Chunk chunk_of(const FftConvBwdArgs& args, int64_t points) {
  return largest_chunk(args.batch, args.dim, args.fft_size, false, points);
}

}  // namespace

cudaError_t find_long_plan(int64_t size, LongFftPlan* plan) {
  int64_t largest = 0;
  const cudaError_t error = max_fft_size(&largest);
  if (error != cudaSuccess) return error;
  *plan = {size, 0, size};
  if (size < 1 || size > kMaxLongFftSize || (size & (size - 1))) return cudaErrorInvalidValue;
  for (; plan->row > std::min(largest, kMaxLongRow) || plan->passes == 0; plan->row /= kRadix) ++plan->passes;
  return plan->row >= kMinLongRow ? cudaSuccess : cudaErrorInvalidValue;
}

int64_t fft_conv_long_work(const FftConvArgs& args, int64_t points) {
  const Chunk chunk = chunk_of(args, points);
  return 2 * args.fft_size * chunk.batch * chunk.dim;
}

int64_t fft_conv_long_bwd_work(const FftConvBwdArgs& args, int64_t points) {
  const Chunk chunk = chunk_of(args, points);
  return 2 * args.fft_size * (2 * chunk.batch + 1) * chunk.dim;
}

int64_t filter_spectrum_long_bwd_work(int64_t dim, int64_t fft_size, int64_t points) {
  return 2 * fft_size * largest_chunk(1, dim, fft_size, false, points).dim;
}

cudaError_t fft_conv_long_fwd(const FftConvArgs& args, float* work, cudaStream_t stream, LaunchShape* shape,
                              int64_t points) {
  LongFftPlan plan;
  if (!sizes_fit(args.batch, args.dim, args.seqlen, args.fft_size)) return cudaErrorInvalidValue;
  const cudaError_t unplanned = find_long_plan(args.fft_size, &plan);
  if (unplanned != cudaSuccess) return unplanned;
  return each_chunk(args.batch, args.dim, chunk_of(args, points), [&](const Chunk& chunk) {
    const Work rows = {reinterpret_cast<Complex*>(work), args.fft_size, chunk};
    const SignalPort source = {args.element, args.seqlen, args.u, args.pregate};
    const ProductPort sink = {args.element, args.seqlen, args.out, args.postgate, {}, {}};
    cudaError_t error = launch_passes_fwd(plan, rows, source, stream);
    if (error == cudaSuccess)
      error = launch_row_task(plan, {rows, RowTask::convolve, args.spectrum, args.skip, args.stride_skip, nullptr},
                              stream, shape);
    return error == cudaSuccess ? launch_passes_bwd(plan, rows, sink, stream) : error;
  });
}

cudaError_t fft_conv_long_bwd(const FftConvBwdArgs& args, float* work, cudaStream_t stream, LaunchShape* shape,
                              int64_t points) {
  LongFftPlan plan;
  if (!sizes_fit(args.batch, args.dim, args.seqlen, args.fft_size)) return cudaErrorInvalidValue;
  cudaError_t error = find_long_plan(args.fft_size, &plan);
  if (error != cudaSuccess) return error;
  const bool output_wanted = args.dpostgate.data != nullptr;
  error = each_chunk(args.batch, args.dim, chunk_of(args, points), [&](const Chunk& chunk) {
    Complex* values = reinterpret_cast<Complex*>(work);
    const Work u = {values, args.fft_size, chunk};
    const Work dout = {values + u.rows() * args.fft_size, args.fft_size, chunk};
    const RowBwdArgs rows = {u, dout, output_wanted, args.spectrum, args.skip, args.stride_skip, args.dspectrum,
                             values + 2 * u.rows() * args.fft_size};
    const SignalPort g = {args.element, args.seqlen, args.u, args.pregate};
    const SignalPort gy = {args.element, args.seqlen, args.dout, args.postgate};
    const ProductPort y = {args.element, args.seqlen, args.dpostgate, args.dout, {}, {}};
    const ProductPort v = {args.element, args.seqlen, args.du, args.pregate, args.dpregate, args.u};
    cudaError_t failed = launch_passes_fwd(plan, u, g, stream);
    if (failed == cudaSuccess) failed = launch_passes_fwd(plan, dout, gy, stream);
    if (failed == cudaSuccess)
      failed = with_row_plan(plan.row, [&](auto index) {
        const size_t extra = plan.row <= kMaxSharedSums ? 2 * size_t(plan.row) * sizeof(Complex) : 0;
        return launch_rows(&fft_rows_bwd_kernel<index.value>, kFftPlans[index.value], rows,
                           chunk.dim * (plan.size / plan.row), shared_bytes_needed(plan.row) + extra, stream, shape);
      });
    if (failed == cudaSuccess && output_wanted) failed = launch_passes_bwd(plan, u, y, stream);
    return failed == cudaSuccess ? launch_passes_bwd(plan, dout, v, stream) : failed;
  });
  return error == cudaSuccess ? sum_spectrum_gradients(args, 1, stream) : error;
}

// In place, all channels at once: the spectrum itself is the work, as every block reads a row before it writes it.
cudaError_t filter_spectrum_long_fwd(const FilterSpectrumArgs& args, cudaStream_t stream, LaunchShape* shape) {
  LongFftPlan plan;
  const cudaError_t unplanned = find_long_plan(args.fft_size, &plan);
  if (unplanned != cudaSuccess || args.dim == 0) return unplanned;
  const Work rows = {reinterpret_cast<Complex*>(args.spectrum), args.fft_size, Chunk{0, 1, 0, args.dim}};
  const cudaError_t error = launch_passes_fwd(plan, rows, FilterPort{args}, stream);
  if (error != cudaSuccess) return error;
  return launch_row_task(plan, {rows, RowTask::to_spectrum, nullptr, nullptr, 0, args.spectrum}, stream, shape);
}

cudaError_t filter_spectrum_long_bwd(const FilterSpectrumBwdArgs& args, float* work, cudaStream_t stream,
                                     LaunchShape* shape, int64_t points) {
  LongFftPlan plan;
  cudaError_t error = find_long_plan(args.fft_size, &plan);
  // Taps that reach no position are written by no pass.
  const auto clear = [&](float* data, int64_t taps, int64_t reached) {
    if (error == cudaSuccess && taps > reached && args.dim > 0)
      error = cudaMemsetAsync(data, 0, size_t(args.dim * taps) * sizeof(float), stream);
  };
  clear(args.dk, args.taps, args.fft_size);
  clear(args.dk_rev, args.taps_rev, args.fft_size - 1);
  if (error != cudaSuccess) return error;
  return each_chunk(1, args.dim, largest_chunk(1, args.dim, args.fft_size, false, points), [&](const Chunk& chunk) {
    const Work rows = {reinterpret_cast<Complex*>(work), args.fft_size, chunk};
    const cudaError_t failed =
        launch_row_task(plan, {rows, RowTask::from_spectrum, args.dspectrum, nullptr, 0, nullptr}, stream, shape);
    return failed == cudaSuccess ? launch_passes_bwd(plan, rows, FilterGradientPort{args}, stream) : failed;
  });
}

}  // namespace m2::cuda
