// Right-angle FFT convolution of 16-bit tensors on tensor cores, forward, 8192 .. 32768 points, and the choice between it and the
// kernel of fewer. Interface and range of values: fft_conv_mma.h. Compiled by nvcc, or by g++ under the emulator.
// Test: ../testing/test_fft_conv_mma_cuda.cpp.
//
// A block owns a row of R runs of 256 points. Everything is a product on tensor cores, and values between the steps are float16 in
// shared memory, real and imaginary parts apart, 4 bytes a point:
//   1. The row is a matrix of R parts by 256 columns. The Fourier matrix of R, which holds the twist of the inputs, makes R runs of
//      it: Y[q][n] = sum_i exp(-2 pi i i (4 q - 1) / 4 R) x[256 i + n]. Half of the columns at a time, whose inputs lie where
//      runs of the other half will.
//   2. A warp transforms a run, multiplies by the spectrum and comes back: 256 = 16 x 16, with n = 16 n1 + n2, k = k1 + 16 k2,
//          A[k1][n2] = F1 X       then times exp(-2 pi i k1 n2 / 256)
//          B[k1][k2] = A F2       then times the spectrum
//          C[n2][k1] = conj(F2) B^T, then times exp(+2 pi i k1 n2 / 256)
//          y[n1][n2] = conj(F1)^T C^T
//      The twiddles of step 1, exp(-2 pi i (4 q - 1) n / 4 N), are a factor of n1 in F1 and one of n2 in F2, made for each run.
//   3. As 1, backwards, of which only the real part is computed.
//
// Which column of a product an operand's place stands for is free: `folded` makes a thread's four sums neighbours in memory.
#include "tc_conv.h"

#include "fft_conv_mma.cuh"
#include "fft_conv_mma.h"
#include "fft_signals.cuh"

namespace m2::cuda {
namespace {

template <int kRuns>
struct Shape {
  static constexpr int kSize = kRuns * kRun, kThreads = kRuns == 128 ? 512 : 256, kWarps = kThreads / 32;
  static constexpr int kTiles = kRuns / 16, kGroups = kWarps / kTiles;  // rows of products by 16; warps that share them
  static constexpr int kChunks = kSize / 8 / kThreads;                  // of 8 positions, that a thread reads
  static constexpr int kLargest = kRuns == 32 ? 1 : kRuns == 64 ? 0 : -1;  // a row is scaled to less than 2^(this + 1)
  static constexpr int kMaxima = kSize + kRuns * 64;  // in words: the runs, inputs of half the columns, maxima
  static constexpr size_t kBytes = (kMaxima + kWarps) * sizeof(uint32_t);
};

constexpr int kImaginary = 128;  // words from real to imaginary parts of a run

// The word at which 8 positions begin: half `half` of row n1 of run q. Rows and halves are exchanged so that neither 8 rows of a run
// nor 8 runs of a row meet in a bank.
__device__ __forceinline__ int word_at(int q, int n1, int half) {
  return q * kRun + (n1 ^ (q & 3)) * 8 + (half ^ (n1 >> 2 & 1) ^ (q >> 2 & 1)) * 4;
}
// A row of a tensor as the kernel reads it: `vectors` says that 8 positions can be read at a time.
struct Input {
  Row<const void> row;
  int seqlen;
  bool vectors;

  template <int kCount, int kStep>
  __device__ __forceinline__ void read(int n, Quad (&out)[kCount]) const {
    const uint16_t* from = static_cast<const uint16_t*>(row.data);
    if (vectors) {
      M2_UNROLL
      for (int c = 0; c < kCount; ++c)
        out[c] = load_if(n + c * kStep < seqlen, reinterpret_cast<const Quad*>(from + n + c * kStep));
      return;
    }
    M2_UNROLL
    for (int c = 0; c < kCount; ++c) {
      const uint16_t* next = from + (n + c * kStep) * row.stride;
      out[c] = {};
      M2_UNROLL
      for (int i = 0; i < 8; ++i, next += row.stride)
        if (n + c * kStep + i < seqlen) out[c].words[i / 2] |= uint32_t(load_readonly(next)) << i % 2 * 16;
    }
  }
  // Four positions; zeros if there is no row.
  __device__ __forceinline__ Words2 read_four(int n) const {
    const uint16_t* from = static_cast<const uint16_t*>(row.data);
    if (vectors) return load_if(from && n < seqlen, reinterpret_cast<const Words2*>(from + n));
    Words2 out = {};
    M2_UNROLL
    for (int i = 0; i < 4; ++i)
      if (from && n + i < seqlen) out.x[i / 2] |= uint32_t(load_readonly(from + (n + i) * row.stride)) << i % 2 * 16;
    return out;
  }
};

template <Element kElement>
__device__ __forceinline__ void gated(const Quad& u, const Quad& gate, bool has_gate, float (&out)[8]) {
  M2_UNROLL
  for (int i = 0; i < 4; ++i) {
    float x[2], by[2] = {1.0f, 1.0f};
    unpack<kElement>(u.words[i], x);
    if (has_gate) unpack<kElement>(gate.words[i], by);
    out[2 * i] = has_gate ? x[0] * by[0] : x[0];
    out[2 * i + 1] = has_gate ? x[1] * by[1] : x[1];
  }
}

// u * pregate, scaled, to shared memory: columns 0 .. 127 where the runs' rows 8 .. 15 will be, the others behind the runs.
// The largest value of each warp stays among the maxima.
template <int kRuns, Element kElement>
__device__ __forceinline__ void read_row(const Words& words, const Input& u, const Input& gate) {
  using S = Shape<kRuns>;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, n = 8 * int(threadIdx.x);
  const bool has_gate = gate.row.data != nullptr;
  Quad x[S::kChunks], by[S::kChunks] = {};
  u.read<S::kChunks, 8 * S::kThreads>(n, x);
  if (has_gate) gate.read<S::kChunks, 8 * S::kThreads>(n, by);
  float g[8], largest = 0.0f;
  M2_UNROLL
  for (int c = 0; c < S::kChunks; ++c) {
    gated<kElement>(x[c], by[c], has_gate, g);
    M2_UNROLL
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(g[i]));
  }
  const int exponent = exponent_of(block_max<S::kWarps>(SharedArray<float>(), S::kMaxima, largest));
  const float scale = ldexpf(1.0f, S::kLargest - exponent);
  M2_UNROLL
  for (int c = 0; c < S::kChunks; ++c) {
    gated<kElement>(x[c], by[c], has_gate, g);
    const int part = c * S::kWarps + warp, column = (lane % 16 ^ (part & 7)) * 4;
    Words4 out;
    M2_UNROLL
    for (int i = 0; i < 4; ++i) out.x[i] = pack_half(scale * g[2 * i], scale * g[2 * i + 1]);
    words.store_as(lane < 16 ? part * kRun + 64 + column : S::kSize + part * 64 + column, out);
  }
}

// Left operands of a warp: `count` registers of four, one behind the other for each lane.
template <int kCount>
__device__ __forceinline__ void load_operands(const Quad* from, uint32_t (&out)[kCount][4]) {
  M2_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const Quad quad = load_readonly(from + 32 * i);
    M2_UNROLL
    for (int r = 0; r < 4; ++r) out[i][r] = quad.words[r];
  }
}

// Step 1, of columns 128 kHalf and on: this warp's 16 runs, some of their rows. `a` has real and imaginary parts in turn.
template <int kRuns, int kHalf>
__device__ __forceinline__ void columns_to_runs(const Words& words, const uint32_t (&a)[2 * Shape<kRuns>::kTiles][4]) {
  using S = Shape<kRuns>;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, g = lane / 4, t = lane % 4;
  constexpr int kRows = 8 / S::kGroups, kStride = kHalf ? 64 : kRun, kFrom = kHalf ? S::kSize : 64;
  const int q = warp % S::kTiles * 16 + g, first = warp / S::kTiles * kRows, part = lane % 16;
  M2_UNROLL
  for (int row = 0; row < kRows; ++row) {
    Tiles y = {};
    const int from = kFrom + part * kStride + ((2 * (first + row) + lane / 16) ^ (part & 7)) * 4;
    M2_UNROLL
    for (int k = 0; k < S::kTiles; ++k) {
      const Quad x = load_transposed(words, from + k * 16 * kStride);
      M2_UNROLL
      for (int j = 0; j < 2; ++j) {
        const uint32_t right[2] = {x.words[2 * j], x.words[2 * j + 1]};
        mma_half(y.re[j], a[2 * k], right);
        mma_half(y.im[j], a[2 * k + 1], right);
      }
    }
    M2_UNROLL
    for (int r = 0; r < 2; ++r)
      store_row(words, word_at(q, 8 * kHalf + first + row, t / 2) + t % 2 * 2 + r * 8 * kRun, r, y);
  }
}

// This lane's part of the four matrices of step 2 without the factors of a run, of which they are made for each, and of the twiddles
// between its products: tc_conv.h.
struct Roots {
  Complex first[2], second[4], second_back[4];
  Complex w[2][4], w_back[2][4];

  __device__ __forceinline__ explicit Roots(const Quad* table) {
    Complex all[kTcRoots];
    M2_UNROLL
    for (int i = 0; i < kTcRoots; i += 2) {
      const Quad pair = load_readonly(table + i / 2 * 32 + thread_index_again() % 32);
      memcpy(all + i, &pair, sizeof pair);
    }
    M2_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (i < 2) first[i] = all[i];
      second[i] = all[2 + i], second_back[i] = all[6 + i];
    }
    M2_UNROLL
    for (int i = 0; i < 8; ++i) w[i / 4][i % 4] = all[10 + i], w_back[i / 4][i % 4] = all[18 + i];
  }
};

constexpr uint32_t kHigh = 0x80000000u, kBoth = 0x80008000u;

// Register r of an operand: two values, multiplied by the signs.
__device__ __forceinline__ void set(Matrix& out, int r, Complex low, Complex high, uint32_t signs = 0) {
  out.re[r] = pack_half(low.re, high.re) ^ signs;
  out.im[r] = pack_half(low.im, high.im) ^ signs;
}
// Register `to` is register `from` times the signs.
__device__ __forceinline__ void repeat(Matrix& out, int to, int from, uint32_t signs) {
  out.re[to] = out.re[from] ^ signs;
  out.im[to] = out.im[from] ^ signs;
}

__device__ __forceinline__ Complex2 load_pair(const Complex* p) {
  const Quad quad = load_readonly(reinterpret_cast<const Quad*>(p));
  Complex2 out;
  memcpy(&out, &quad, sizeof out);
  return out;
}

// Step 2 of run q, whose factors of n1 and n2 are at `factors`, its spectrum at `spectrum`.
__device__ __forceinline__ void convolve_run(const Words& words, const Roots& roots, int q, const Complex* factors,
                                             const Quad* spectrum) {
  const int lane = thread_index_again() % 32, g = lane / 4, t = lane % 4;
  const uint32_t odd = g % 2 ? kBoth : 0u;
  const Quad s[2] = {load_readonly(spectrum + lane), load_readonly(spectrum + 32 + lane)};
  Matrix a, x;
  Tiles y, z;
  {
    const Complex2 low = load_pair(factors + 2 * t), high = load_pair(factors + 2 * t + 8);
    set(a, 0, roots.first[0] * low.x[0], roots.first[1] * low.x[1]);
    set(a, 2, roots.first[0] * high.x[0], roots.first[1] * high.x[1], odd);
    repeat(a, 1, 0, kHigh), repeat(a, 3, 2, kHigh);
    const int at = word_at(q, lane % 16, lane / 16);
    const Quad re = load_transposed(words, at), im = load_transposed(words, at + kImaginary);
    M2_UNROLL
    for (int r = 0; r < 4; ++r) x.re[r] = re.words[r], x.im[r] = im.words[r];
    multiply(a, x, y);
    multiply_each<false>(y, roots.w);
  }
  {
    const Complex2 low = load_pair(factors + 16 + folded(2 * t)), high = load_pair(factors + 20 + folded(2 * t));
    set(a, 0, roots.second[0] * low.x[0], roots.second[1] * low.x[1]);
    set(a, 1, roots.second[2] * high.x[0], roots.second[3] * high.x[1]);
    repeat(a, 2, 0, kHigh), repeat(a, 3, 1, kHigh);
    multiply(as_left(y), a, z);
  }
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int e = 0; e < 4; ++e) {
      const Complex product = Complex{z.re[j][e], z.im[j][e]} * unpacked(s[j].words[e]);
      z.re[j][e] = product.re, z.im[j][e] = product.im;
    }
  {
    const Complex low = load_readonly(factors + 16 + folded(g)), high = load_readonly(factors + 20 + folded(g));
    set(a, 0, conj(roots.second_back[0] * low), conj(roots.second_back[1] * low));
    set(a, 1, conj(roots.second_back[2] * high), conj(roots.second_back[3] * high));
    repeat(a, 2, 0, odd), repeat(a, 3, 1, odd);
    multiply(a, as_right(z), y);
    multiply_each<true>(y, roots.w_back);
  }
  const Complex low = load_readonly(factors + g), high = load_readonly(factors + g + 8);
  set(a, 0, conj(roots.first[0] * low), conj(roots.first[1] * low));
  set(a, 1, conj(roots.first[0] * high), conj(roots.first[1] * high), kHigh);
  repeat(a, 2, 0, odd), repeat(a, 3, 1, odd);
  multiply(a, as_right(y), z);
  __syncwarp();  // all lanes have read the run
  M2_UNROLL
  for (int r = 0; r < 2; ++r) store_row(words, word_at(q, g + 8 * r, t / 2) + t % 2 * 2, r, z);
}

// Four results to positions n .. of a row.
template <Element kElement>
__device__ __forceinline__ void write_four(const Row<void>& out, const Input& gate, int n, const Words2& by, float (&x)[4]) {
  uint16_t* to = static_cast<uint16_t*>(out.data);
  if (gate.row.data) {
    M2_UNROLL
    for (int i = 0; i < 2; ++i) {
      float factor[2];
      unpack<kElement>(by.x[i], factor);
      x[2 * i] *= factor[0], x[2 * i + 1] *= factor[1];
    }
  }
  if (gate.vectors) {
    if (n < gate.seqlen) *reinterpret_cast<Words2*>(to + n) = {{pack<kElement>(x[0], x[1]), pack<kElement>(x[2], x[3])}};
  } else {
    M2_UNROLL
    for (int i = 0; i < 4; ++i)
      if (n + i < gate.seqlen) to[(n + i) * out.stride] = narrowed<true>(kElement, x[i]);
  }
}

// Step 3: this warp's 16 parts of the row, some of their columns, times `back` and the gate, which is read a step ahead.
template <int kRuns, Element kElement>
__device__ __forceinline__ void runs_to_row(const Words& words, const Quad* operands, float back, const Row<void>& out,
                                            const Input& gate) {
  using S = Shape<kRuns>;
  const int thread = thread_index_again(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  constexpr int kRows = 16 / S::kGroups;
  const int tile = warp % S::kTiles, first = warp / S::kTiles * kRows;
  const auto position = [&](int row, int r) { return (16 * tile + g + 8 * r) * kRun + 16 * row + 4 * t; };
  Words2 next[2] = {gate.read_four(position(first, 0)), gate.read_four(position(first, 1))};
  uint32_t a[2 * S::kTiles][4];
  load_operands(operands + tile * 2 * S::kTiles * 32 + lane, a);
  M2_NO_UNROLL
  for (int row = first; row < first + kRows; ++row) {
    const Words2 by[2] = {next[0], next[1]};
    M2_UNROLL
    for (int r = 0; r < 2; ++r) next[r] = gate.read_four(row + 1 < first + kRows ? position(row + 1, r) : gate.seqlen);
    float y[2][4] = {};
    const int at = word_at(lane % 16, row, lane / 16);
    M2_UNROLL
    for (int k = 0; k < 2 * S::kTiles; ++k) {  // real parts of 16 runs, imaginary parts of the same
      const Quad x = load_transposed(words, at + k / 2 * 16 * kRun + k % 2 * kImaginary);
      M2_UNROLL
      for (int j = 0; j < 2; ++j) {
        const uint32_t right[2] = {x.words[2 * j], x.words[2 * j + 1]};
        mma_half(y[j], a[k], right);
      }
    }
    M2_UNROLL
    for (int r = 0; r < 2; ++r) {
      float result[4];
      M2_UNROLL
      for (int i = 0; i < 4; ++i) result[i] = back * y[i / 2][2 * r + i % 2];
      write_four<kElement>(out, gate, position(row, r), by[r], result);
    }
  }
}

template <int kRuns, Element kElement>
__global__ void __launch_bounds__(Shape<kRuns>::kThreads, kRuns == 128 ? 1 : 2)
    tc_conv_fwd_kernel(FftConvArgs args, const Quad* spectra, const float* scales, const Quad* table, bool vectors) {
  using S = Shape<kRuns>;
  const auto input = [&](const BlockRow& at, const auto& x) {
    return Input{row_of<true>(x, at.b, at.d), int(args.seqlen), vectors};
  };
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const Words words;
  {
    const BlockRow at(args);
    read_row<kRuns, kElement>(words, input(at, args.u), input(at, args.pregate));
  }
  constexpr int kOperands = S::kTiles * S::kTiles * 2 * 32;  // of a direction
  {
    uint32_t a[2 * S::kTiles][4];
    load_operands(table + warp % S::kTiles * 2 * S::kTiles * 32 + lane, a);
    __syncthreads();
    columns_to_runs<kRuns, 0>(words, a);
    __syncthreads();  // the first half's inputs have been read
    columns_to_runs<kRuns, 1>(words, a);
  }
  const Complex* factors = reinterpret_cast<const Complex*>(table + 2 * kOperands);
  const Roots roots(table + 2 * kOperands + kRuns * 16);
  __syncthreads();
  const BlockRow at(args, block_index_again());
  spectra += at.d * (kRuns * 64);
  M2_NO_UNROLL
  for (int q = thread_index_again() / 32; q < kRuns; q += S::kWarps)
    convolve_run(words, roots, q, factors + 32 * q, spectra + 64 * q);
  __syncthreads();
  const BlockRow end(args, block_index_again());
  const SharedArray<float> maxima;
  float largest = 0.0f;
  M2_UNROLL
  for (int i = 0; i < S::kWarps; ++i) largest = fmaxf(largest, maxima.load(S::kMaxima + i));
  const float back = float(S::kSize) * ldexpf(1.0f, exponent_of(largest) - S::kLargest) / load_readonly(scales + end.d);
  runs_to_row<kRuns, kElement>(words, table + kOperands, back, row_of<true>(args.out, end.b, end.d), input(end, args.postgate));
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
    float* scales = scratch + args.dim * args.fft_size;
    error = spectrum_prep({args.dim, args.fft_size, args.spectrum, args.skip, args.stride_skip, spectra, scales}, stream);
    if (error != cudaSuccess) return error;
    const bool vectors = args.seqlen % 8 == 0 && aligned(args.u, 8) && aligned(args.pregate, 8) &&
                         aligned(args.postgate, 8) && aligned(args.out, 4);
    return launch(args.element == Element::f16 ? &tc_conv_fwd_kernel<runs.value, Element::f16>
                                               : &tc_conv_fwd_kernel<runs.value, Element::bf16>,
                  unsigned(wanted.blocks), unsigned(wanted.threads), wanted.shared_bytes, stream, args,
                  static_cast<const Quad*>(spectra), static_cast<const float*>(scales), table, vectors);
  });
}

}  // namespace m2::cuda
