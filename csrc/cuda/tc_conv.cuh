// The steps of tc_conv.cu and tc_conv_bwd.cu: right-angle convolutions of 16-bit tensors on tensor cores by one block.
// Range of values: fft_conv_mma.h. Compiled by nvcc, or by g++ under the emulator.
//
// A block works on kRuns runs of 256 points: a row of R = kRuns runs, or a slab of 16 / R rows of a channel, R = 1, 2, .. 16.
// Everything is a product on tensor cores, and values between the steps are float16 in shared memory, real and imaginary parts
// apart, 4 bytes a point:
//   1. Rows are a matrix of kRuns parts by 256 columns. The Fourier matrix of R, which holds the twist of the inputs, makes R runs
//      of each: Y[q][n] = sum_i exp(-2 pi i i (4 q - 1) / 4 R) x[256 i + n]. Half of the columns at a time: the inputs of the first
//      lie where runs of the other will, but for slabs. A row of a slab has 16 parts too, and 16 R of the columns: its matrix is
//      16 / R times that of R, each for the parts i 16 / R + h of one h.
//   2. A warp transforms a run, is given its frequencies, and comes back: 256 = 16 x 16, with n = 16 n1 + n2, k = k1 + 16 k2,
//          A[k1][n2] = F1 X       then times exp(-2 pi i k1 n2 / 256)
//          B[k1][k2] = A F2       which the spectrum is for
//          C[n2][k1] = conj(F2) B^T, then times exp(+2 pi i k1 n2 / 256)
//          y[n1][n2] = conj(F1)^T C^T
//      The twiddles of step 1, exp(-2 pi i (4 q - 1) n / 4 N), are a factor of n1 in F1 and one of n2 in F2: each run has matrices
//      of its own, from a table.
//   3. As 1, backwards, of which only the real part is computed.
// Every matrix is scaled to be unitary, but that of an odd power of two of runs: a root of 2 would be 1.1e-4 wrong in float16, in
// all entries alike. It has the power of two below, which `unscaled` undoes.
// Which column of a product an operand's place stands for is free: `folded` makes a thread's four sums neighbours in memory.
#pragma once
#include "fft_conv_mma.cuh"
#include "fft_signals.cuh"
#include "tc_conv.h"

namespace m2::cuda {
constexpr int kImaginary = 128;  // words from real to imaginary parts of a run

// The word at which 8 positions begin: half `half` of row n1 of run q. Rows and halves are exchanged so that neither 8 rows of a run
// nor 8 runs of a row meet in a bank.
__device__ __forceinline__ int word_at(int q, int n1, int half) {
  return q * kRun + (n1 ^ (q & 3)) * 8 + (half ^ (n1 >> 2 & 1) ^ (q >> 2 & 1)) * 4;
}

template <int kRuns>
struct TcShape {
  static constexpr int kSize = kRuns * kRun, kLogRuns = kRuns == 16 ? 4 : kRuns == 32 ? 5 : kRuns == 64 ? 6 : 7;
  static constexpr int kTiles = kRuns / 16;  // rows of products by 16
  static constexpr bool kSlab = kRuns == 16;
  static constexpr int kStage = (kSlab ? 2 : 1) * kRuns * 64;  // words of the inputs of half the columns, of a slab of all
  // Rows are scaled to less than 2^(this + 1).
  static constexpr int kLargest = kRuns <= 16 ? 2 : kRuns == 32 ? 1 : kRuns == 64 ? 0 : -1;
};

// What a block works on: `rows` rows of seqlen positions, of 2^log_runs runs each; `vectors` says that 8 positions can be read at a
// time. Positions n of all rows are counted through.
template <int kRuns>
struct Extent {
  static constexpr bool kSlab = TcShape<kRuns>::kSlab;
  int seqlen, log_runs, rows;
  bool vectors;

  __device__ __forceinline__ int row(int n) const { return kSlab ? n >> (8 + log_runs) : 0; }
  __device__ __forceinline__ int in_row(int n) const { return kSlab ? n & ((kRun << log_runs) - 1) : n; }
  __device__ __forceinline__ bool has(int n) const { return in_row(n) < seqlen && (!kSlab || row(n) < rows); }
  __device__ __forceinline__ int row_of_run(int run) const { return kSlab ? run >> log_runs : 0; }  // of which it is number q
  __device__ __forceinline__ int q(int run) const { return kSlab ? run & ((1 << log_runs) - 1) : run; }
  // Where 16 columns, the m-th of all, are at `place` of a product with the matrix of step 1: the run, and n1 there.
  __device__ __forceinline__ int run_of(int m, int place) const {
    if constexpr (!kSlab) return place;
    return (m & ~((1 << log_runs) - 1)) | (place & ((1 << log_runs) - 1));
  }
  __device__ __forceinline__ int n1_of(int m, int place) const {
    if constexpr (!kSlab) return m;
    return (place & ~((1 << log_runs) - 1)) | (m & ((1 << log_runs) - 1));
  }
  __device__ __forceinline__ int position(int m, int part) const {  // of column 16 m of a part
    if constexpr (!kSlab) return part * kRun + 16 * m;
    return (row_of_run(m) << (8 + log_runs)) + (part << (4 + log_runs)) + 16 * q(m);
  }
  // Where the inputs n .. n + 7 wait in shared memory: columns 0 .. 127 where rows 8 .. 15 of runs will be, the others in `stage`; of a
  // slab all there, half behind half.
  // Parts are exchanged so that neither 8 of them nor 8 lanes that store meet in a bank.
  __device__ __forceinline__ int staged_at(int n, int runs, int stage) const {
    if constexpr (!kSlab) {
      const int part = n / kRun, at = ((n / 8 % 16) ^ (part & 7)) * 4;
      return n % kRun < 128 ? runs + part * kRun + 64 + at : stage + part * 64 + at;
    }
    const int i = in_row(n), part = i >> (4 + log_runs);
    const int column = (row(n) << (4 + log_runs)) + (i & ((16 << log_runs) - 1));
    const int at = ((column / 8 % 16) ^ exchanged(part)) * 4;
    return stage + (column / 128 * kRuns + part) * 64 + at;
  }
  __device__ __forceinline__ static int exchanged(int part) { return kSlab ? (part & 1) << 2 | (part & 2) | (part >> 2 & 1) : part & 7; }
};

// Rows of a tensor as the kernels read them.
template <int kRuns>
struct Input {
  Row<const void> first;
  int64_t stride_batch;
  Extent<kRuns> extent;

  __device__ __forceinline__ Input(const AnyStrided<const void>& x, int64_t b, int64_t d, const Extent<kRuns>& of)
      : first(row_of<true>(x, b, d)), stride_batch(x.stride_batch), extent(of) {}
  __device__ __forceinline__ const uint16_t* at(int n, int64_t stride) const {
    const int64_t row = extent.kSlab ? extent.row(n) * stride_batch : 0;
    return static_cast<const uint16_t*>(first.data) + extent.in_row(n) * stride + row;
  }
  // Eight positions, all of them or none.
  __device__ __forceinline__ Quad read_eight(int n, bool wanted) const {
    return load_if(wanted && extent.has(n), reinterpret_cast<const Quad*>(at(n, 1)));
  }
  // By a warp, 256 positions to shared memory, where single ones have to be read: neighbours by neighbours.
  __device__ __forceinline__ void gather(const Words& words, int n, int to) const {
    const int lane = int(threadIdx.x) % 32;
    M2_NO_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int first_of_two = n + 64 * i + 2 * lane;
      const uint16_t* x = at(first_of_two, first.stride);
      const uint32_t low = extent.has(first_of_two) ? load_readonly(x) : uint16_t(0);
      const uint32_t high = extent.has(first_of_two + 1) ? load_readonly(x + first.stride) : uint16_t(0);
      words.store(to + 32 * i + lane, low | high << 16);
    }
  }
  // Four positions; zeros if there is no row.
  __device__ __forceinline__ Words2 read_four(int n, bool wanted) const {
    if (extent.vectors) return load_if(first.data && wanted && extent.has(n), reinterpret_cast<const Words2*>(at(n, 1)));
    Words2 out = {};
    M2_UNROLL
    for (int i = 0; i < 4; ++i)
      if (first.data && wanted && extent.has(n + i))
        out.x[i / 2] |= uint32_t(load_readonly(at(n, first.stride) + i * first.stride)) << i % 2 * 16;
    return out;
  }
};

// Those that they write.
struct Output {
  Row<void> first;
  int64_t stride_batch;

  __device__ __forceinline__ Output(const AnyStrided<void>& x, int64_t b, int64_t d)
      : first(row_of<true>(x, b, d)), stride_batch(x.stride_batch) {}
};

// What a thread holds of x * gate while a row is on its way to shared memory: kChunks times 8 positions, 8 kThreads apart.
template <int kRuns, int kThreads, Element kElement>
struct Inputs {
  static constexpr int kChunks = kRuns * kRun / 8 / kThreads;
  Quad x[kChunks], by[kChunks];
  bool has_gate;

  __device__ __forceinline__ void read(const Input<kRuns>& from, const Input<kRuns>& gate) {
    const int thread = thread_index_again();
    has_gate = gate.first.data != nullptr;
    M2_UNROLL
    for (int c = 0; c < kChunks; ++c) x[c] = from.read_eight(8 * (thread + c * kThreads), true);
    M2_UNROLL
    for (int c = 0; c < kChunks; ++c) by[c] = gate.read_eight(8 * (thread + c * kThreads), has_gate);
  }
  // The same where single positions have to be read, by way of a word of shared memory for each, from `room` on: first gather, then,
  // when the warp has, take.
  __device__ __forceinline__ static void gather(const Words& words, int room, const Input<kRuns>& from, const Input<kRuns>& gate) {
    M2_NO_UNROLL
    for (int n = thread_index_again() / 32 * kRun; n < kRuns * kRun; n += 8 * kThreads) {
      from.gather(words, n, room + n);
      if (gate.first.data) gate.gather(words, n, room + n + kRun / 2);
    }
  }
  __device__ __forceinline__ void take(const Words& words, int room, bool gated) {
    const int thread = thread_index_again();
    has_gate = gated;
    M2_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int at = room + thread / 32 * kRun + c * 8 * kThreads + thread % 32 * 4;
      x[c] = words.load_as<Quad>(at);
      by[c] = gated ? words.load_as<Quad>(at + kRun / 2) : Quad{};
    }
  }
  __device__ __forceinline__ void get(int c, float (&out)[8]) const {
    M2_UNROLL
    for (int i = 0; i < 4; ++i) {
      float value[2], factor[2] = {1.0f, 1.0f};
      unpack<kElement>(x[c].words[i], value);
      if (has_gate) unpack<kElement>(by[c].words[i], factor);
      out[2 * i] = has_gate ? value[0] * factor[0] : value[0];
      out[2 * i + 1] = has_gate ? value[1] * factor[1] : value[1];
    }
  }
  __device__ __forceinline__ float largest(int c) const {
    float g[8], most = 0.0f;
    get(c, g);
    M2_UNROLL
    for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(g[i]));
    return most;
  }
  __device__ __forceinline__ void stage(const Words& words, const Extent<kRuns>& extent, int c, float scale, int runs,
                                        int stage) const {
    float g[8];
    get(c, g);
    Words4 out;
    M2_UNROLL
    for (int i = 0; i < 4; ++i) out.x[i] = pack_half(scale * g[2 * i], scale * g[2 * i + 1]);
    words.store_as(extent.staged_at(8 * (thread_index_again() + c * kThreads), runs, stage), out);
  }
};

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

template <int kRuns>
constexpr int kTcOperands = TcShape<kRuns>::kTiles * TcShape<kRuns>::kTiles * 2 * 32;  // quads for step 1, or for step 3

// Step 1, of columns 128 kHalf and on: this warp's 16 runs, some of their rows. `a` has real and imaginary parts in turn. Runs lie
// from run `first_run` on.
template <int kRuns, int kWarps, int kHalf>
__device__ __forceinline__ void columns_to_runs(const Words& words, const Extent<kRuns>& extent, int first_run, int stage,
                                                const uint32_t (&a)[2 * TcShape<kRuns>::kTiles][4]) {
  using S = TcShape<kRuns>;
  const int thread = thread_index_again(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  constexpr int kRows = 8 / (kWarps / S::kTiles), kStride = kHalf || S::kSlab ? 64 : kRun;
  const int place = warp % S::kTiles * 16 + g, first = warp / S::kTiles * kRows, part = lane % 16;
  const int inputs =
      (S::kSlab ? stage + kHalf * kRuns * 64 : kHalf ? stage : first_run * kRun + 64) + part * kStride;
  const auto one = [&](int row) {
    Tiles y = {};
    const int from = inputs + ((2 * row + lane / 16) ^ extent.exchanged(part)) * 4;
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
    const int m = 8 * kHalf + row;
    M2_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int at = extent.kSlab ? word_at(first_run + extent.run_of(m, place + 8 * r), extent.n1_of(m, place + 8 * r), t / 2)
                                  : word_at(first_run + place, m, t / 2) + r * 8 * kRun;
      store_row(words, at + t % 2 * 2, r, y);
    }
  };
  if constexpr (kRuns == 128) {  // has no registers for more at a time
    M2_NO_UNROLL
    for (int row = first; row < first + kRows; row += 2) one(row), one(row + 1);
  } else {
    M2_UNROLL
    for (int row = first; row < first + kRows; ++row) one(row);
  }
}

// The twiddles between the products of step 2, this lane's.
struct Twiddles {
  Complex there[2][4], back[2][4];

  __device__ __forceinline__ explicit Twiddles(const Quad* table) {
    table += thread_index_again() % 32;
    M2_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Quad x[2] = {load_readonly(table + 32 * i), load_readonly(table + 32 * (4 + i))};
      memcpy(&there[i / 2][i % 2 * 2], x, sizeof x[0]);
      memcpy(&back[i / 2][i % 2 * 2], x + 1, sizeof x[1]);
    }
  }
};

constexpr uint32_t kHigh = 0x80000000u, kBoth = 0x80008000u;

// Register `to` is register `from` times the signs.
__device__ __forceinline__ void repeat(Matrix& out, int to, int from, uint32_t signs) {
  out.re[to] = out.re[from] ^ signs;
  out.im[to] = out.im[from] ^ signs;
}

// A matrix of step 2 from its two registers: registers r and r + 2, or 2 r and 2 r + 1, differ by signs.
template <bool kInTurn>
__device__ __forceinline__ Matrix matrix_of(const Quad* from, uint32_t signs) {
  const Quad quad = load_readonly(from);
  Matrix out;
  M2_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int at = kInTurn ? 2 * r : r;
    out.re[at] = quad.words[2 * r], out.im[at] = quad.words[2 * r + 1];
    repeat(out, kInTurn ? at + 1 : at + 2, at, signs);
  }
  return out;
}

// Step 2 of run `run` in shared memory, as far as its frequencies; first() and second() are F1 and F2. Lane 4 g + t has in tile j,
// element e: k1 = g + 8 (e / 2), k2 = 8 j + 2 t + e % 2.
template <class First, class Second>
__device__ __forceinline__ void to_frequencies(const Words& words, const Twiddles& w, int run, const First& first,
                                               const Second& second, Tiles& z) {
  const int lane = thread_index_again() % 32, at = word_at(run, lane % 16, lane / 16);
  const Quad re = load_transposed(words, at), im = load_transposed(words, at + kImaginary);
  Matrix x;
  Tiles y;
  M2_UNROLL
  for (int r = 0; r < 4; ++r) x.re[r] = re.words[r], x.im[r] = im.words[r];
  multiply(first(), x, y);
  multiply_each<false>(y, w.there);
  multiply(as_left(y), second(), z);
}

// And back, in place; conj(F2) and conj(F1)^T.
template <class Second, class First>
__device__ __forceinline__ void from_frequencies(const Words& words, const Twiddles& w, int run, const Second& second,
                                                 const First& first, Tiles& z) {
  const int lane = thread_index_again() % 32, g = lane / 4, t = lane % 4;
  Tiles y;
  multiply(second(), as_right(z), y);
  multiply_each<true>(y, w.back);
  multiply(first(), as_right(y), z);
  __syncwarp();  // all lanes have read the run
  M2_UNROLL
  for (int r = 0; r < 2; ++r) store_row(words, word_at(run, g + 8 * r, t / 2) + t % 2 * 2, r, z);
}

// x * by, four positions.
template <Element kElement>
__device__ __forceinline__ void multiply_four(const Words2& by, float (&x)[4]) {
  M2_UNROLL
  for (int i = 0; i < 2; ++i) {
    float factor[2];
    unpack<kElement>(by.x[i], factor);
    x[2 * i] *= factor[0], x[2 * i + 1] *= factor[1];
  }
}

// Four results to positions n .. of a row.
template <int kRuns, Element kElement>
__device__ __forceinline__ void write_four(const Output& out, const Extent<kRuns>& extent, int n, const float (&x)[4]) {
  const int in_row = extent.in_row(n);
  uint16_t* to = static_cast<uint16_t*>(out.first.data) + (extent.kSlab ? extent.row(n) * out.stride_batch : 0);
  if (extent.vectors) {
    if (extent.has(n)) *reinterpret_cast<Words2*>(to + in_row) = {{pack<kElement>(x[0], x[1]), pack<kElement>(x[2], x[3])}};
  } else {
    M2_UNROLL
    for (int i = 0; i < 4; ++i)
      if (extent.has(n + i)) to[(in_row + i) * out.first.stride] = narrowed<true>(kElement, x[i]);
  }
}

// Step 3: this warp's 16 parts, some of their columns, times back(row) and a factor to each output, which is read a step ahead. Runs
// lie from word `runs` on.
template <int kRuns, int kWarps, Element kElement, int kOutputs, class Back>
__device__ __forceinline__ void runs_to_rows(const Words& words, int runs, const Quad* operands, const Back& back,
                                             const Output (&out)[kOutputs], const Input<kRuns> (&by)[kOutputs]) {
  using S = TcShape<kRuns>;
  const Extent<kRuns>& extent = by[0].extent;
  const int thread = thread_index_again(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  constexpr int kRows = 16 / (kWarps / S::kTiles);
  const int tile = warp % S::kTiles, first = warp / S::kTiles * kRows;
  const auto position = [&](int m, int r) { return extent.position(m, 16 * tile + g + 8 * r) + 4 * t; };
  Words2 next[kOutputs][2];
  const auto read_next = [&](int m, bool wanted) {
    M2_UNROLL
    for (int i = 0; i < kOutputs; ++i)
      M2_UNROLL
      for (int r = 0; r < 2; ++r) next[i][r] = by[i].read_four(position(m, r), wanted);
  };
  read_next(first, true);
  uint32_t a[2 * S::kTiles][4];
  load_operands(operands + tile * 2 * S::kTiles * 32 + lane, a);
  M2_NO_UNROLL
  for (int m = first; m < first + kRows; ++m) {
    Words2 factors[kOutputs][2];
    M2_UNROLL
    for (int i = 0; i < kOutputs; ++i) factors[i][0] = next[i][0], factors[i][1] = next[i][1];
    read_next(m + 1, m + 1 < first + kRows);
    float y[2][4] = {};
    const int at = runs + word_at(extent.run_of(m, lane % 16), extent.n1_of(m, lane % 16), lane / 16);
    M2_UNROLL
    for (int k = 0; k < 2 * S::kTiles; ++k) {  // real parts of 16 runs, imaginary parts of the same
      const Quad x = load_transposed(words, at + k / 2 * 16 * kRun + k % 2 * kImaginary);
      M2_UNROLL
      for (int j = 0; j < 2; ++j) {
        const uint32_t right[2] = {x.words[2 * j], x.words[2 * j + 1]};
        mma_half(y[j], a[k], right);
      }
    }
    const float scale = back(extent.row_of_run(m));
    M2_UNROLL
    for (int i = 0; i < kOutputs; ++i)
      M2_UNROLL
      for (int r = 0; r < 2; ++r) {
        if (!out[i].first.data) continue;
        float result[4];
        M2_UNROLL
        for (int e = 0; e < 4; ++e) result[e] = scale * y[e / 2][2 * r + e % 2];
        if (by[i].first.data) multiply_four<kElement>(factors[i][r], result);
        write_four<kRuns, kElement>(out[i], extent, position(m, r), result);
      }
  }
}

}  // namespace m2::cuda
