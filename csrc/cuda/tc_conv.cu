// Right-angle FFT convolution of 16-bit tensors on tensor cores, forward, 8192 .. 32768 points, and the choice between it and the
// kernel of fewer. A block owns a row. Interface and range of values: fft_conv_mma.h; steps: tc_conv.cuh. Compiled by nvcc, or by
// g++ under the emulator. Test: ../testing/test_fft_conv_mma_cuda.cpp.
#include "tc_conv.cuh"

#include "fft_conv_mma.h"

namespace m2::cuda {
namespace {

template <int kRuns>
struct Shape : TcShape<kRuns> {
  static constexpr int kThreads = kRuns == 128 ? 512 : 256, kWarps = kThreads / 32;
  // In words of shared memory: the runs, inputs of half the columns, maxima.
  static constexpr int kMaxima = TcShape<kRuns>::kSize + TcShape<kRuns>::kStage;
  static constexpr size_t kBytes = (kMaxima + kWarps) * sizeof(uint32_t);
};

// u * pregate, scaled, to shared memory. The largest value of each warp stays among the maxima.
template <int kRuns, Element kElement>
__device__ __forceinline__ void read_row(const Words& words, const Input<kRuns>& u, const Input<kRuns>& gate) {
  using S = Shape<kRuns>;
  Inputs<kRuns, S::kThreads, kElement> x;
  if (u.extent.vectors) {
    x.read(u, gate);
  } else {
    x.gather(words, 0, u, gate);
    __syncwarp();
    x.take(words, 0, gate.first.data != nullptr);
  }
  float largest = 0.0f;
  M2_UNROLL
  for (int c = 0; c < x.kChunks; ++c) largest = fmaxf(largest, x.largest(c));
  const int exponent = exponent_of(block_max<S::kWarps>(SharedArray<float>(), S::kMaxima, largest));
  const float scale = ldexpf(1.0f, S::kLargest - exponent);
  M2_UNROLL
  for (int c = 0; c < x.kChunks; ++c) x.stage(words, u.extent, c, scale, 0, S::kSize);
}

// Step 2 of run q, whose matrices are at `matrices`, its spectrum at `spectrum`.
__device__ __forceinline__ void convolve_run(const Words& words, const Twiddles& w, int q, const Quad* matrices,
                                             const Quad* spectrum) {
  const int lane = thread_index_again() % 32;
  const uint32_t odd = lane / 4 % 2 ? kBoth : 0u;
  matrices += lane, spectrum += lane;
  const Quad s[2] = {load_readonly(spectrum), load_readonly(spectrum + 32)};
  Tiles z;
  to_frequencies(words, w, q, [&] { return matrix_of<true>(matrices, kHigh); },
                 [&] { return matrix_of<false>(matrices + 32, kHigh); }, z);
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int e = 0; e < 4; ++e) {
      const Complex product = Complex{z.re[j][e], z.im[j][e]} * unpacked(s[j].words[e]);
      z.re[j][e] = product.re, z.im[j][e] = product.im;
    }
  from_frequencies(words, w, q, [&] { return matrix_of<false>(matrices + 64, odd); },
                   [&] { return matrix_of<false>(matrices + 96, odd); }, z);
}

template <int kRuns, Element kElement>
__global__ void __launch_bounds__(Shape<kRuns>::kThreads, kRuns == 128 ? 1 : 2)
    tc_conv_fwd_kernel(FftConvArgs args, const Quad* spectra, const int* exponents, const Quad* table, bool vectors) {
  using S = Shape<kRuns>;
  const Extent<kRuns> extent = {int(args.seqlen), S::kLogRuns, 1, vectors};
  const auto input = [&](const BlockRow& at, const auto& x) { return Input<kRuns>(x, at.b, at.d, extent); };
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const Words words;
  {
    const BlockRow at(args);
    read_row<kRuns, kElement>(words, input(at, args.u), input(at, args.pregate));
  }
  constexpr int kOperands = kTcOperands<kRuns>;
  {
    uint32_t a[2 * S::kTiles][4];
    load_operands(table + warp % S::kTiles * 2 * S::kTiles * 32 + lane, a);
    __syncthreads();
    columns_to_runs<kRuns, S::kWarps, 0>(words, extent, 0, S::kSize, a);
    __syncthreads();  // the first half's inputs have been read
    columns_to_runs<kRuns, S::kWarps, 1>(words, extent, 0, S::kSize, a);
  }
  const Twiddles w(table + 2 * kOperands);
  const Quad* matrices = table + 2 * kOperands + kTcTwiddles;
  __syncthreads();
  const BlockRow at(args, block_index_again());
  spectra += at.d * (kRuns * 64);
  M2_NO_UNROLL
  for (int q = thread_index_again() / 32; q < kRuns; q += S::kWarps)
    convolve_run(words, w, q, matrices + kTcMatrices * q, spectra + 64 * q);
  __syncthreads();
  const BlockRow end(args, block_index_again());
  const SharedArray<float> maxima;
  float largest = 0.0f;
  M2_UNROLL
  for (int i = 0; i < S::kWarps; ++i) largest = fmaxf(largest, maxima.load(S::kMaxima + i));
  const float back = unscaled(S::kLogRuns) * ldexpf(1.0f, exponent_of(largest) - S::kLargest + load_readonly(exponents + end.d));
  const Output out[1] = {{args.out, end.b, end.d}};
  const Input<kRuns> by[1] = {input(end, args.postgate)};
  runs_to_rows<kRuns, S::kWarps, kElement>(words, 0, table + kOperands, [&](int) { return back; }, out, by);
}

// The host's side of a size: runs of a row, or 0.
int runs_of(int64_t fft_size) { return fft_size == 8192 ? 32 : fft_size == 16384 ? 64 : fft_size == 32768 ? 128 : 0; }

// Calls run(the number of runs, as a type).
template <class Run>
auto with_runs(int64_t fft_size, const Run& run) {
  if (fft_size == 8192) return run(std::integral_constant<int, 32>{});
  if (fft_size == 16384) return run(std::integral_constant<int, 64>{});
  return run(std::integral_constant<int, 128>{});
}

bool tc_conv_serves(int64_t fft_size) {
  SpectrumOrder order;
  return runs_of(fft_size) && find_order(fft_size, &order) == cudaSuccess &&
         with_runs(fft_size, [](auto runs) { return fits_block(Shape<runs.value>::kBytes); }) == cudaSuccess;
}

}  // namespace

bool fft_conv_mma_serves(const FftConvArgs& args) {
  if (args.element == Element::f32) return false;
  return args.fft_size <= kMaxShortMmaFftSize ? fft_conv_mma_short_serves(args.fft_size) : tc_conv_serves(args.fft_size);
}

int64_t fft_conv_mma_scratch(const FftConvArgs& args) {
  return args.fft_size <= kMaxShortMmaFftSize ? 0 : args.dim * (args.fft_size + 1);
}

cudaError_t fft_conv_mma_fwd(const FftConvArgs& args, float* scratch, cudaStream_t stream, LaunchShape* shape) {
  if (!fft_conv_mma_serves(args) || args.batch < 0 || args.dim < 0 || args.seqlen < 0 || args.seqlen > args.fft_size)
    return cudaErrorInvalidValue;
  if (args.dim > 0 && args.batch > INT32_MAX / args.dim) return cudaErrorInvalidValue;
  if (args.fft_size <= kMaxShortMmaFftSize) return fft_conv_mma_short_fwd(args, stream, shape);
  return with_runs(args.fft_size, [&](auto runs) {
    using S = Shape<runs.value>;
    const LaunchShape wanted = {args.batch * args.dim, S::kThreads, S::kBytes};
    if (shape) *shape = wanted;
    if (wanted.blocks == 0) return cudaSuccess;
    const Quad* table = nullptr;
    cudaError_t error = tc_conv_table(runs.value, &table);
    if (error != cudaSuccess) return error;
    Quad* spectra = reinterpret_cast<Quad*>(scratch);
    int* exponents = reinterpret_cast<int*>(scratch + args.dim * args.fft_size);
    error = spectrum_prep({args.dim, args.fft_size, args.spectrum, args.skip, args.stride_skip, spectra, exponents}, stream);
    if (error != cudaSuccess) return error;
    const bool vectors = args.seqlen % 8 == 0 && aligned(args.u, 8) && aligned(args.pregate, 8) &&
                         aligned(args.postgate, 8) && aligned(args.out, 4);
    return launch(args.element == Element::f16 ? &tc_conv_fwd_kernel<runs.value, Element::f16>
                                               : &tc_conv_fwd_kernel<runs.value, Element::bf16>,
                  unsigned(wanted.blocks), unsigned(wanted.threads), wanted.shared_bytes, stream, args,
                  static_cast<const Quad*>(spectra), static_cast<const int*>(exponents), table, vectors);
  });
}

}  // namespace m2::cuda
