// Gradients of the right-angle FFT convolution of 16-bit tensors on tensor cores, 256 .. 16384 points. Interface:
// fft_conv_mma_bwd.h; steps: tc_conv.cuh; range of values: fft_conv_mma.h. Compiled by nvcc, or by g++ under the emulator.
// Test: ../testing/test_fft_conv_bwd_cuda.cpp.
//
// A block owns a channel of a part of the batch and walks over it in order, a row or a slab of rows at a time. The rows,
// U = F(u pregate), and the gradients of their results, D = F(dout postgate), lie side by side in shared memory, and a warp takes
// the same run of both, one after the other: conj(U) D joins the sums in float32, S U and conj(S) D go back. Each row has a power
// of two of its own, and so has the spectrum.
//
// Sums over the batch are kept in the order in which lanes meet them, each touched by one thread only; up to 4096 points in shared
// memory, where the rows of a slab have sums of their own, which are added at the end. The batch is split, and its parts are
// added, as in fft_conv_bwd.cu: the same bits in every run on every device.
#include "fft_conv_mma_bwd.h"

#include "fft_bwd_passes.cuh"
#include "tc_conv.cuh"

namespace m2::cuda {
namespace {

template <int kRuns>
struct Shape : TcShape<kRuns> {
  using S = TcShape<kRuns>;
  static constexpr int kThreads = kRuns == 64 ? 512 : 256, kWarps = kThreads / 32;
  static constexpr bool kSharedSums = S::kSize <= kMaxSharedSums;
  // Words of shared memory: both rows, inputs of half the columns of each, sums, and twice in turn the maxima of each.
  static constexpr int kInputs = 2 * S::kSize, kSums = kInputs + 2 * S::kStage;
  static constexpr int kMaxima = kSums + (kSharedSums ? 2 * S::kSize : 0), kPieces = 16;
  static constexpr int kProducts = (kMaxima + 4 * kPieces) / 2;  // in values of 8 bytes: of each warp, for the gradient of the skip
  static constexpr size_t kBytes = (kProducts + kWarps) * sizeof(double);
};

// What a kernel is given beside the tensors, of which `target` [parts][dim][size] and `skips` [parts][dim] are results.
struct Work {
  const Quad* spectra;
  const int* exponents;  // of the spectra
  const Quad *table, *twiddles, *matrices;  // tc_conv_table
  Complex* target;
  float* skips;
  Quad* sums;  // of each block, where they are not in shared memory
  unsigned parts;
  int log_runs;
  SpectrumOrder order;
  bool vectors;
};

// The sums of the block, two complex values at a time; index: 32 (4 run + i) + lane, i < 4.
template <int kRuns>
class Sums {
  using S = Shape<kRuns>;

 public:
  __device__ __forceinline__ explicit Sums(Quad* memory) : memory_(memory + int64_t(block_index_again()) * (S::kSize / 2)) {}
  __device__ __forceinline__ Quad get(int i) const {
    if constexpr (S::kSharedSums) return words_.template load_as<Quad>(S::kSums + 4 * i);
    else return load_quad(memory_ + i);
  }
  __device__ __forceinline__ void set(int i, const Quad& x) const {
    if constexpr (S::kSharedSums) words_.store_as(S::kSums + 4 * i, x);
    else store_quad(memory_ + i, x);
  }
  // Of the frequency at `place` of the spectra, in the same order.
  __device__ __forceinline__ Complex at(int place) const {
    const int i = place / 128 * 64 + place % 4 / 2 * 32 + place % 128 / 4;
    const Quad pair = get(i);
    Complex both[2];
    memcpy(both, &pair, sizeof both);
    return place % 2 ? both[1] : both[0];
  }

 private:
  Words words_;
  Quad* memory_;
};

// The exponents of the largest values of both kinds of rows.
template <int kRuns>
struct Exponents {
  using S = Shape<kRuns>;
  int first;  // of the maxima

  __device__ __forceinline__ int of(int which, int row, int log_runs) const {
    const int lane = thread_index_again() % 32;
    const int piece = S::kSlab ? (row << log_runs) + (lane & ((1 << log_runs) - 1)) : lane % S::kWarps;
    return exponent_of(warp_max(SharedArray<float>().load(first + which * S::kPieces + piece))) - S::kLargest;
  }
  // What the product of both is to be multiplied by, and what comes back of one, of channel d.
  __device__ __forceinline__ float product(int row, int log_runs) const {
    return unscaled(log_runs) * ldexpf(1.0f, of(0, row, log_runs) + of(1, row, log_runs));
  }
  __device__ __forceinline__ float back(int which, int row, const Work& work, int64_t d) const {
    return unscaled(work.log_runs) * ldexpf(1.0f, of(which, row, work.log_runs) + load_readonly(work.exponents + d));
  }
};

// Both kinds of rows to shared memory, scaled. Maxima, of each 256 positions of a slab or of each warp's, are stored where `exponents`
// are read; the sum of the warp's products joins that of the rows before.
template <int kRuns, Element kElement>
__device__ __forceinline__ void read_rows(const Words& words, const Input<kRuns> (&from)[4], const Exponents<kRuns>& exponents) {
  using S = Shape<kRuns>;
  const Extent<kRuns>& extent = from[0].extent;
  const SharedArray<float> maxima;
  const int warp = thread_index_again() / 32;
  Inputs<kRuns, S::kThreads, kElement> x[2];
  constexpr int kChunks = Inputs<kRuns, S::kThreads, kElement>::kChunks;
  if (extent.vectors) {
    x[0].read(from[0], from[1]);
    x[1].read(from[2], from[3]);
  } else {
    __syncthreads();  // the runs of the rows before, whose room this takes, have been read
    x[0].gather(words, 0, from[0], from[1]);
    x[1].gather(words, S::kSize, from[2], from[3]);
    __syncwarp();
    x[0].take(words, 0, from[1].first.data != nullptr);
    x[1].take(words, S::kSize, from[3].first.data != nullptr);
  }
  float products = 0.0f, largest[2] = {0.0f, 0.0f};
  M2_UNROLL
  for (int c = 0; c < kChunks; ++c) {
    float u[8], dy[8];
    x[0].get(c, u), x[1].get(c, dy);
    M2_UNROLL
    for (int i = 0; i < 8; ++i) {
      products += u[i] * dy[i];
      largest[0] = fmaxf(largest[0], fabsf(u[i])), largest[1] = fmaxf(largest[1], fabsf(dy[i]));
    }
    if (!extent.kSlab && c + 1 < kChunks) continue;
    M2_UNROLL
    for (int which = 0; which < 2; ++which) {
      const float most = warp_max(largest[which]);
      const int piece = extent.kSlab ? c * S::kWarps + warp : warp;
      if (threadIdx.x % 32 == 0) maxima.store(exponents.first + which * S::kPieces + piece, most);
      largest[which] = 0.0f;
    }
  }
  M2_NO_UNROLL
  for (int bits = 16; bits > 0; bits /= 2) products += __shfl_xor_sync(~0u, products, bits);
  if (threadIdx.x % 32 == 0) {
    const SharedArray<double> sums;
    sums.store(S::kProducts + warp, sums.load(S::kProducts + warp) + double(products));
  }
  __syncthreads();  // and the runs of the rows before have been read
  M2_UNROLL
  for (int which = 0; which < 2; ++which)
    M2_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int row = extent.row_of_run(c * S::kWarps + warp);
      const float scale = ldexpf(1.0f, -exponents.of(which, row, extent.log_runs));
      x[which].stage(words, extent, c, scale, which * S::kSize, S::kInputs + which * S::kStage);
    }
}

// Both kinds of rows to runs.
template <int kRuns>
__device__ __forceinline__ void all_columns_to_runs(const Words& words, const Work& work) {
  using S = Shape<kRuns>;
  const Extent<kRuns> extent = {0, work.log_runs, 0, false};  // columns of all rows, whether they are there or not
  const int thread = thread_index_again();
  uint32_t a[2 * S::kTiles][4];
  load_operands(work.table + thread / 32 % S::kTiles * 2 * S::kTiles * 32 + thread % 32, a);
  __syncthreads();
  M2_NO_UNROLL
  for (int which = 0; which < 2; ++which)
    columns_to_runs<kRuns, S::kWarps, 0>(words, extent, which * kRuns, S::kInputs + which * S::kStage, a);
  if (!S::kSlab) __syncthreads();  // the first half's inputs have been read
  M2_NO_UNROLL
  for (int which = 0; which < 2; ++which)
    columns_to_runs<kRuns, S::kWarps, 1>(words, extent, which * kRuns, S::kInputs + which * S::kStage, a);
  __syncthreads();
}

// A run of u's rows and the same of dout's, of channel d: the product of their frequencies joins the sums, the product of each with the
// spectrum goes back, of u's if wanted.
template <int kRuns>
__device__ __forceinline__ void convolve_runs(const Words& words, const Twiddles& w, const Work& work, int d, int run,
                                              const Exponents<kRuns>& exponents, bool u_goes_back) {
  using S = Shape<kRuns>;
  M2_NO_UNROLL
  for (int which = 0; which < 2; ++which) {
    const int thread = thread_index_again(), lane = thread % 32, q = again(run) & ((1 << work.log_runs) - 1);
    const int kept = S::kInputs + thread * 4;  // U, float16, where inputs were
    const uint32_t odd = lane / 4 % 2 ? kBoth : 0u;
    const Quad* matrices = work.matrices + kTcMatrices * q + lane;
    const Quad* spectrum = work.spectra + (int64_t(d) << work.log_runs) * 64 + 64 * q + lane;
    Tiles z;
    to_frequencies(words, w, which * kRuns + run, [&] { return matrix_of<true>(matrices, kHigh); },
                   [&] { return matrix_of<false>(matrices + 32, kHigh); }, z);
    if (which == 0) {
      M2_UNROLL
      for (int j = 0; j < 2; ++j) {
        Words4 u;
        M2_UNROLL
        for (int e = 0; e < 4; ++e) u.x[e] = pack_half(z.re[j][e], z.im[j][e]);
        words.store_as(kept + j * 4 * S::kThreads, u);
      }
      if (!u_goes_back) continue;
    } else {
      const float unscale = exponents.product(again(run) >> work.log_runs, work.log_runs);
      const Sums<kRuns> sums(work.sums);
      M2_UNROLL
      for (int j = 0; j < 2; ++j) {
        const Words4 u = words.load_as<Words4>(kept + j * 4 * S::kThreads);
        M2_UNROLL
        for (int e = 0; e < 4; e += 2) {
          const int at = 32 * (4 * run + 2 * j + e / 2) + lane;
          const Quad before = sums.get(at);
          Complex sum[2];
          memcpy(sum, &before, sizeof sum);
          M2_UNROLL
          for (int i = 0; i < 2; ++i)
            sum[i] = sum[i] + unscale * (conj(unpacked(u.x[e + i])) * Complex{z.re[j][e + i], z.im[j][e + i]});
          Quad after;
          memcpy(&after, sum, sizeof after);
          sums.set(at, after);
        }
      }
    }
    const Quad s[2] = {load_readonly(spectrum), load_readonly(spectrum + 32)};
    M2_UNROLL
    for (int v = 0; v < 8; ++v) {
      const Complex by = unpacked(s[v / 4].words[v % 4] ^ (which ? kHigh : 0u));  // S, or conj(S)
      const Complex product = Complex{z.re[v / 4][v % 4], z.im[v / 4][v % 4]} * by;
      z.re[v / 4][v % 4] = product.re, z.im[v / 4][v % 4] = product.im;
    }
    from_frequencies(words, w, which * kRuns + run, [&] { return matrix_of<false>(matrices + 64, odd); },
                     [&] { return matrix_of<false>(matrices + 96, odd); }, z);
  }
}

// The block's results: sums in the order of a spectrum of filter_spectrum, and the gradient of the skip.
template <int kRuns>
__device__ __forceinline__ void write_sums(const Sums<kRuns>& sums, const Work& work) {
  using S = Shape<kRuns>;
  const int size = kRun << work.log_runs, thread = int(threadIdx.x);
  Complex* target = work.target + int64_t(blockIdx.x) * size;
  __syncthreads();  // the sums are there
  M2_NO_UNROLL
  for (int at = thread; at < size; at += S::kThreads) {
    const int place = work.order.place_of(at, work.log_runs);
    Complex sum = sums.at(place);
    M2_NO_UNROLL
    for (int row = 1; row < kRuns >> work.log_runs; ++row) sum = sum + sums.at(row * size + place);
    target[at] = sum;
  }
  if (thread != 0) return;
  double total = 0.0;
  for (int i = 0; i < S::kWarps; ++i) total += SharedArray<double>().load(S::kProducts + i);
  work.skips[blockIdx.x] = float(total);
}

template <int kRuns, Element kElement>
__global__ void __launch_bounds__(Shape<kRuns>::kThreads, kRuns == 64 ? 1 : 2)
    tc_conv_bwd_kernel(FftConvBwdArgs args, Work work) {
  using S = Shape<kRuns>;
  // Made anew where they are needed: there are no registers to keep them.
  const auto channel = [&] { return int(work.parts == 1 ? block_index_again() : block_index_again() % unsigned(args.dim)); };
  const auto slabs = [&] {
    const BatchPart all((unsigned(args.batch) + (kRuns >> work.log_runs) - 1) >> (S::kLogRuns - work.log_runs));
    return work.parts == 1 ? all : BatchPart(all.last, work.parts, block_index_again() / unsigned(args.dim));
  };
  const Words words;
  const Sums<kRuns> sums(work.sums);
  M2_NO_UNROLL
  for (int run = int(threadIdx.x) / 32; run < kRuns; run += S::kWarps)
    M2_UNROLL
    for (int i = 0; i < 4; ++i) sums.set(32 * (4 * run + i) + int(threadIdx.x) % 32, {});
  if (threadIdx.x % 32 == 0) SharedArray<double>().store(S::kProducts + int(threadIdx.x) / 32, 0.0);
  M2_NO_UNROLL
  for (unsigned slab = slabs().first; slab < slabs().last; ++slab) {
    // Calls run(batch entry, channel, extent, exponents).
    const auto with_slab = [&](const auto& run) {
      const int most = kRuns >> work.log_runs, b = again(int(slab)) * most, left = int(args.batch) - b;
      const Extent<kRuns> extent = {int(args.seqlen), work.log_runs, left < most ? left : most, work.vectors};
      run(b, channel(), extent, Exponents<kRuns>{S::kMaxima + (again(int(slab)) & 1) * 2 * S::kPieces});
    };
    with_slab([&](int b, int d, const Extent<kRuns>& extent, const Exponents<kRuns>& exponents) {
      const auto input = [&](const auto& x) { return Input<kRuns>(x, b, d, extent); };
      read_rows<kRuns, kElement>(words, {input(args.u), input(args.pregate), input(args.dout), input(args.postgate)}, exponents);
    });
    all_columns_to_runs<kRuns>(words, work);
    with_slab([&](int, int d, const Extent<kRuns>& extent, const Exponents<kRuns>& exponents) {
      const Twiddles w(work.twiddles);
      M2_NO_UNROLL
      for (int run = thread_index_again() / 32; run < kRuns && extent.row_of_run(run) < extent.rows; run += S::kWarps)
        convolve_runs<kRuns>(words, w, work, d, run, exponents, args.dpostgate.data != nullptr);
    });
    __syncthreads();
    with_slab([&](int b, int d, const Extent<kRuns>& extent, const Exponents<kRuns>& exponents) {
      if (!args.dpostgate.data) return;
      runs_to_rows<kRuns, S::kWarps, kElement, 1>(
          words, 0, work.table + kTcOperands<kRuns>, [&](int row) { return exponents.back(0, row, work, d); },
          {{args.dpostgate, b, d}}, {{args.dout, b, d, extent}});
    });
    with_slab([&](int b, int d, const Extent<kRuns>& extent, const Exponents<kRuns>& exponents) {
      runs_to_rows<kRuns, S::kWarps, kElement, 2>(
          words, S::kSize, work.table + kTcOperands<kRuns>,
          [&](int row) { return exponents.back(1, row, work, d); },
          {{args.du, b, d}, {args.dpregate, b, d}}, {{args.pregate, b, d, extent}, {args.u, b, d, extent}});
    });
  }
  write_sums(sums, work);
}

// Calls run(the number of runs of a block, as a type); of a size that there is none for, cudaErrorInvalidValue.
template <class Run>
cudaError_t with_runs(int64_t fft_size, const Run& run) {
  if (fft_size <= 4096 && find_fft_plan(fft_size)) return run(std::integral_constant<int, 16>{});
  if (fft_size == 8192) return run(std::integral_constant<int, 32>{});
  if (fft_size == 16384) return run(std::integral_constant<int, 64>{});
  return cudaErrorInvalidValue;
}

int64_t parts_of(const FftConvBwdArgs& args, int runs, int threads) {
  return batch_parts(ceil_div<int64_t>(args.batch, ceil_div<int64_t>(runs * kRun, args.fft_size)), args.dim * threads);
}

// Floats of scratch, in this order: partial spectra if there are several parts, spectra, sums, exponents of spectra, partial skips.
struct Scratch {
  int64_t partials, spectra, sums, exponents, skips;
  int64_t floats() const { return partials + spectra + sums + exponents + skips; }

  Scratch(const FftConvBwdArgs& args, int64_t parts, bool shared_sums) {
    const int64_t blocks = parts * args.dim, several = parts > 1;
    partials = several * blocks * 2 * args.fft_size, spectra = args.dim * args.fft_size;
    sums = shared_sums ? 0 : blocks * 2 * args.fft_size, exponents = args.dim, skips = several * blocks;
  }
};

}  // namespace

// Where shared memory holds these rows it holds one of 8.5 bytes a point: spectra of these sizes are made in one kernel, and
// have its order.
bool fft_conv_mma_bwd_serves(const FftConvBwdArgs& args) {
  return args.element != Element::f32 &&
         with_runs(args.fft_size, [](auto runs) { return fits_block(Shape<runs.value>::kBytes); }) == cudaSuccess;
}

int64_t fft_conv_mma_bwd_scratch(const FftConvBwdArgs& args) {
  int64_t floats = 0;
  with_runs(args.fft_size, [&](auto runs) {
    using S = Shape<runs.value>;
    floats = Scratch(args, parts_of(args, runs.value, S::kThreads), S::kSharedSums).floats();
    return cudaSuccess;
  });
  return floats;
}

cudaError_t fft_conv_mma_bwd(const FftConvBwdArgs& args, cudaStream_t stream, LaunchShape* shape) {
  if (!fft_conv_mma_bwd_serves(args) || args.batch < 0 || args.dim < 0 || args.seqlen < 0 ||
      args.seqlen > args.fft_size)
    return cudaErrorInvalidValue;
  if (args.dim > 0 && args.batch > INT32_MAX / args.dim) return cudaErrorInvalidValue;
  return with_runs(args.fft_size, [&](auto runs) {
    using S = Shape<runs.value>;
    const int64_t parts = parts_of(args, runs.value, S::kThreads);
    const LaunchShape wanted = {parts * args.dim, S::kThreads, S::kBytes};
    if (shape) *shape = wanted;
    if (wanted.blocks == 0) return cudaSuccess;
    const Scratch floats(args, parts, S::kSharedSums);
    float* const spectra = args.scratch + floats.partials;
    float* const sums = spectra + floats.spectra;
    float* const exponents = sums + floats.sums;
    float* const skips = parts > 1 ? exponents + floats.exponents : args.dskip;
    Work work = {reinterpret_cast<const Quad*>(spectra), reinterpret_cast<const int*>(exponents), nullptr, nullptr, nullptr,
                 reinterpret_cast<Complex*>(parts > 1 ? args.scratch : args.dspectrum), skips, reinterpret_cast<Quad*>(sums),
                 unsigned(parts), 0, {}, false};
    while (kRun << work.log_runs < args.fft_size) ++work.log_runs;
    const SpectrumPrepArgs prep = {args.dim, args.fft_size, args.spectrum, args.skip, args.stride_skip,
                                   reinterpret_cast<Quad*>(spectra), reinterpret_cast<int*>(exponents)};
    cudaError_t error = tc_conv_table(1 << work.log_runs, &work.table);
    work.twiddles = work.table + 2 * kTcOperands<runs.value>, work.matrices = work.twiddles + kTcTwiddles;
    if (error == cudaSuccess) error = find_order(args.fft_size, &work.order);
    if (error == cudaSuccess) error = spectrum_prep(prep, stream);
    if (error != cudaSuccess) return error;
    const auto read = [&](const auto& x) { return aligned(x, 8); };
    const auto written = [&](const auto& x) { return aligned(x, 4); };
    work.vectors = args.seqlen % 8 == 0 && read(args.u) && read(args.pregate) && read(args.dout) && read(args.postgate) &&
                   written(args.du) && written(args.dpregate) && written(args.dpostgate);
    error = launch(args.element == Element::f16 ? &tc_conv_bwd_kernel<runs.value, Element::f16>
                                                : &tc_conv_bwd_kernel<runs.value, Element::bf16>,
                   unsigned(wanted.blocks), unsigned(wanted.threads), wanted.shared_bytes, stream, args, work);
    if (error != cudaSuccess || parts == 1) return error;
    return sum_spectrum_gradients(args, parts, stream, skips);
  });
}

}  // namespace m2::cuda
