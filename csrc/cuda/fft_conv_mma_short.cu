// Right-angle FFT convolution of 16-bit tensors on tensor cores, forward, 256 .. 4096 points. Interface: fft_conv_mma.h; range of
// values: fft_conv_mma.h. Compiled by nvcc, or by g++ under the emulator. Test: ../testing/test_fft_conv_mma_cuda.cpp.
//
// A block of 16 warps fills a multiprocessor and walks over slabs of 4096 points: 16 / K rows of 256 K points of one channel,
// K = 1, 2, .. 16. Everything is a product of 16 x 16 matrices on tensor cores, and all of a warp's factors stay in its registers:
//   1. A slab is a matrix of 16 x 256: 16 parts of each row one below the other, the rows side by side. A warp takes 16 columns,
//      multiplies by the Fourier matrix of K, the twist of its inputs included, and has K runs of 256 points of each row.
//   2. A warp owns the same run q of every slab: 256 = 16 x 16, with n = 16 n1 + n2 and k = k1 + 16 k2,
//          A[k1][n2] = F1 X       then times exp(-2 pi i k1 n2 / 256)
//          B[k1][k2] = A F2       then times the spectrum
//          C[n2][k1] = conj(F2) B^T, then times exp(+2 pi i k1 n2 / 256)
//          y[n1][n2] = conj(F1)^T C^T
//      The twiddles of the outer pass, exp(-2 pi i (4 q - 1) n / 4 N), are a factor of n1 in F1 and one of n2 in F2.
//   3. As 1, backwards, of which only the real part is computed.
// What comes in for the next slab is copied to shared memory meanwhile. Three barriers a slab.
//
// Sums in the layout of mma are operands of the next product. Which row or column of a matrix an operand's place stands for is
// free, and chosen so that shared memory is accessed 8 or 16 bytes at a time without bank conflicts: `paired` and `spread`.
#include <cmath>
#include <cstring>

#include "fft_conv_mma.cuh"
#include "fft_conv_mma.h"
#include "fft_plan.h"
#include "fft_signals.cuh"

namespace m2::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32, kSlab = 4096, kColumns = kSlab / 16;
constexpr int kLargest = 2;  // a row is scaled to less than 2^(this + 1)

constexpr int kPitch = 20;  // words from one n1 to the next: spreads a fragment over the banks

// Shared memory, in words: runs; u and pregate, rows of pairs; postgate of this slab and the next; the spectrum; maxima.
constexpr int kNextRun = 16 * kPitch + 4;
constexpr int kInPitch = kColumns / 2 + 4, kPostPitch = kColumns / 2 + 8;
constexpr int kInputs = kWarps * kNextRun, kPost = kInputs + 2 * 16 * kInPitch;
constexpr int kSpectrum = kPost + 2 * 16 * kPostPitch, kMaxima = kSpectrum + 16 * kThreads;
constexpr size_t kBytes = (kMaxima + 2 * kWarps) * sizeof(uint32_t);

// What the host knows of a transform.
struct Transform {
  int log_runs;              // of a row of 256 << log_runs points
  int shifts[kMaxPasses];    // digits of a frequency, in bits, first pass first
  int weights[kMaxPasses];   // and where the spectrum holds them
  int slabs;                 // of a channel
  bool channels_contiguous;  // then neighbouring blocks take neighbouring channels
  bool vectors;              // 8 positions can be copied at a time, and strides have 32 bits:
  int stride_batch[4], stride_dim[4];  // of u, the gates and out
};

// Place p of an operand stands for column paired(p): a thread has neighbouring columns 2 g, 2 g + 1, and of sums 4 t .. 4 t + 3.
__device__ __forceinline__ int paired(int p) { return 2 * (p % 8) + p / 8; }
// Place p stands for row spread(p): threads that store 16 bytes together are four rows, 16 banks, apart.
__device__ __forceinline__ int spread(int p) { return p % 2 * 4 + p % 8 / 2 + p / 8 * 8; }

// This lane's part of a matrix as a left operand, of entry(row's place, column's place).
template <class Entry>
__device__ __forceinline__ Matrix left_operand(const Entry& entry) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  Matrix out;
  M2_UNROLL
  for (int r = 0; r < 4; ++r) {
    const Complex low = entry(g + r % 2 * 8, 2 * t + r / 2 * 8), high = entry(g + r % 2 * 8, 2 * t + r / 2 * 8 + 1);
    out.re[r] = pack_half(low.re, high.re);
    out.im[r] = pack_half(low.im, high.im);
  }
  return out;
}

// The same as a right operand: register 2 j + r belongs to columns 8 j .. 8 j + 7.
template <class Entry>
__device__ __forceinline__ Matrix right_operand(const Entry& entry) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  Matrix out;
  M2_UNROLL
  for (int r = 0; r < 4; ++r) {
    const int row = 2 * t + r % 2 * 8, column = g + r / 2 * 8;
    const Complex low = entry(row, column), high = entry(row + 1, column);
    out.re[r] = pack_half(low.re, high.re);
    out.im[r] = pack_half(low.im, high.im);
  }
  return out;
}

// A right operand from shared memory: rows `at(place)`, two neighbouring complex words of each.
template <class At>
__device__ __forceinline__ Matrix load_right(const Words& words, const At& at) {
  const int t = int(threadIdx.x) % 4;
  Matrix out;
  M2_UNROLL
  for (int r = 0; r < 2; ++r) {
    const Words2 low = words.load_as<Words2>(at(2 * t + 8 * r)), high = words.load_as<Words2>(at(2 * t + 8 * r + 1));
    M2_UNROLL
    for (int j = 0; j < 2; ++j) {
      out.re[2 * j + r] = (low.x[j] & 0xffffu) | high.x[j] << 16;
      out.im[2 * j + r] = low.x[j] >> 16 | (high.x[j] & 0xffff0000u);
    }
  }
  return out;
}

// Sums to shared memory: rows at(a), a = 0, 1, four neighbouring words each.
template <class At>
__device__ __forceinline__ void store_sums(const Words& words, const At& at, const Tiles& x) {
  M2_UNROLL
  for (int a = 0; a < 2; ++a) {
    Words4 out;
    M2_UNROLL
    for (int i = 0; i < 4; ++i) out.x[i] = pack_half(x.re[i % 2][2 * a + i / 2], x.im[i % 2][2 * a + i / 2]);
    words.store_as(at(a), out);
  }
}

// 2^exponent of a normal number.
__device__ __forceinline__ float power_of_two(int exponent) {
  const uint32_t bits = uint32_t(127 + exponent) << 23;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// A slab of a channel: channel d, rows from `slab` slabs of the batch on.
struct Slab {
  int d, slab;

  __device__ __forceinline__ Slab(const Transform& transform, int dim, int item) {
    const int by = transform.channels_contiguous ? dim : transform.slabs, first = item / by, second = item - first * by;
    d = transform.channels_contiguous ? second : first;
    slab = transform.channels_contiguous ? first : second;
  }
  // The block's next one.
  __device__ __forceinline__ void advance(const Transform& transform, int dim) {
    if (transform.channels_contiguous) {
      d += int(gridDim.x);
      const int whole = d / dim;
      d -= whole * dim;
      slab += whole;
    } else if (++slab == transform.slabs) {
      slab = 0;
      ++d;
    }
  }
};

// Starts to copy the tensors' slab to shared memory, zeros where there is no position.
__device__ __forceinline__ void copy_slabs(const FftConvArgs& args, const Transform& transform, const Slab& slab, int buffer) {
  const int log_size = 8 + transform.log_runs, log_columns = 4 + transform.log_runs;  // of a row; of its parts
  const int first = slab.slab << (4 - transform.log_runs), rows = int(args.batch) - first, seqlen = int(args.seqlen);
  const Words words;
  // Calls run(tensor, number, first word, pitch).
  const auto each_tensor = [&](const auto& run) {
    run(args.u, 0, kInputs, kInPitch);
    if (args.pregate.data) run(args.pregate, 1, kInputs + 16 * kInPitch, kInPitch);
    if (args.postgate.data) run(args.postgate, 2, kPost + buffer * 16 * kPostPitch, kPostPitch);
  };
  // Where points n and n + 1 of a row go.
  const auto column_of = [&](int row, int n) { return ((row << log_columns) + (n & ((1 << log_columns) - 1))) >> 1; };
  if (transform.vectors) {
    const int at = 8 * thread_index_again(), row = at >> log_size, n = at & ((1 << log_size) - 1);
    const bool exists = row < rows && n < seqlen;
    const int part = n >> log_columns, column = column_of(row, n);
    each_tensor([&](const auto& x, int number, int to, int pitch) {
      const int64_t offset = n + int64_t(first + row) * transform.stride_batch[number] +
                             int64_t(slab.d) * transform.stride_dim[number];
      words.copy_async(to + part * pitch + column, static_cast<const uint16_t*>(x.data) + offset, exists);
    });
  } else {
    M2_NO_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int at = 2 * (thread_index_again() + i * kThreads), row = at >> log_size, n = at & ((1 << log_size) - 1);
      each_tensor([&](const auto& x, int, int to, int pitch) {
        const uint16_t* from = static_cast<const uint16_t*>(x.data) + (first + row) * x.stride_batch +
                               slab.d * x.stride_dim + n * x.stride_seq;
        const uint32_t low = row < rows && n < seqlen ? load_readonly(from) : uint16_t(0);
        const uint32_t high = row < rows && n + 1 < seqlen ? load_readonly(from + x.stride_seq) : uint16_t(0);
        words.store(to + (n >> log_columns) * pitch + column_of(row, n), low | high << 16);
      });
    }
  }
  end_copy_group();
}

// u * pregate of this lane's points, from shared memory: g[2 i + j] is part 2 t + i % 2 + 8 (i / 2), column 2 g + j. The warp's
// largest joins the maxima.
template <Element kElement>
__device__ __forceinline__ void read_inputs(bool gated, float (&g)[8]) {
  const int thread = thread_index_again(), warp = thread / 32, lane = thread % 32;
  const SharedArray<uint32_t> words;
  const SharedArray<float> maxima;
  const int at = kInputs + 2 * (lane % 4) * kInPitch + 8 * warp + lane / 4;
  float largest = 0.0f;
  M2_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int part = (i % 2 + i / 2 * 8) * kInPitch;
    float x[2], gate[2] = {1.0f, 1.0f};
    unpack<kElement>(words.load(at + part), x);
    if (gated) unpack<kElement>(words.load(at + 16 * kInPitch + part), gate);
    M2_UNROLL
    for (int j = 0; j < 2; ++j) {
      g[2 * i + j] = gated ? x[j] * gate[j] : x[j];
      largest = fmaxf(largest, fabsf(g[2 * i + j]));
    }
  }
  largest = warp_max(largest);
  if (lane == 0) maxima.store(kMaxima + warp, largest);
}

// The channel's spectrum, skip included, scaled, in the order in which this thread meets it; returns its scale.
__device__ __forceinline__ float load_spectrum(const FftConvArgs& args, const Transform& transform, int64_t d) {
  const int thread = thread_index_again(), warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
  const int size = kRun << transform.log_runs, q = warp & ((1 << transform.log_runs) - 1);
  const Words shared;
  const SharedArray<float> maxima;
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * size;
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / float(size) : 0.0f;
  Complex s[8];
  float largest = 0.0f;
  M2_UNROLL
  for (int v = 0; v < 8; ++v) {
    const int k1 = paired(g + v % 4 / 2 * 8), k2 = v / 4 * 8 + 2 * t + v % 2;
    int f = q + ((k1 + 16 * k2) << transform.log_runs), at = 0;
    M2_UNROLL
    for (int pass = 0; pass < kMaxPasses; ++pass) {
      at += (f & ((1 << transform.shifts[pass]) - 1)) * transform.weights[pass];
      f >>= transform.shifts[pass];
    }
    s[v] = load_readonly(spectrum + at);
  }
  M2_UNROLL
  for (int v = 0; v < 8; ++v) {
    s[v].re += skip;
    largest = fmaxf(largest, fabsf(s[v].re) + fabsf(s[v].im));
  }
  largest = block_max<kWarps>(maxima, kMaxima + kWarps, largest);
  const float scale = ldexpf(1.0f, -1 - exponent_of(largest));
  M2_UNROLL
  for (int v = 0; v < 8; v += 2)
    shared.store_as(kSpectrum + (v / 2 * kThreads + thread) * 4, Complex2{{scale * s[v], scale * s[v + 1]}});
  return scale;
}

// This thread, whose indices are made anew in every step: kept, they and what follows from them would take too many registers.
struct Place {
  int thread, warp, g, t, log_runs;

  __device__ __forceinline__ explicit Place(const Transform& transform)
      : thread(thread_index_again()), warp(thread / 32), g(thread % 32 / 4), t(thread % 4), log_runs(transform.log_runs) {}
  __device__ __forceinline__ int row() const { return warp >> log_runs; }  // of the slab
  __device__ __forceinline__ int q() const { return warp & ((1 << log_runs) - 1); }
  // Where the warp's 16 columns are in the runs of its row: place p in run q, parts of equal h = p >> log_runs in a row.
  __device__ __forceinline__ int column(int p) const {
    const int h = p >> log_runs, run = p - (h << log_runs);
    return ((row() << log_runs) + run) * kNextRun + ((h << log_runs) + q()) * kPitch;
  }
};

template <Element kElement>
__global__ void __launch_bounds__(kThreads, 1) fft_conv_mma_short_kernel(FftConvArgs args, Transform transform, int items) {
  // The factors. Part i 16 / K + h of a row and run q belong together where h is the same: at places q + K h.
  const Place me(transform);
  const int log = transform.log_runs, q = me.q(), log_parts = 4 - log;
  const float unit = log == 0 ? 1.0f : log == 1 ? 0.70710678f : log == 2 ? 0.5f : log == 3 ? 0.35355339f : 0.25f;
  const auto outer = [&](int place, int part) {
    const int h = place >> log, i = part >> log_parts;
    const Complex x = scaled_root(unit, i * (4 * (place - (h << log)) - 1), 4 << log);
    return h == part - (i << log_parts) ? x : Complex{0.0f, 0.0f};
  };
  const auto first = [&](int k1, int n1) { return scaled_root(0.25f, n1 * ((4 * k1 << log) + 4 * q - 1), 64 << log); };
  const auto second = [&](int n2, int k2) { return scaled_root(0.25f, n2 * ((64 * k2 << log) + 4 * q - 1), 1024 << log); };
  const Matrix outer_forward = left_operand([&](int m, int p) { return outer(spread(m), p); });
  const Matrix outer_back = left_operand([&](int m, int p) { return outer(p, m); });  // minus the imaginary part
  const Matrix first_forward = left_operand([&](int m, int p) { return first(paired(m), p); });
  const Matrix second_forward = right_operand([&](int p, int n) { return second(paired(p), n); });
  const Matrix second_back = left_operand([&](int m, int p) { return conj(second(paired(m), p)); });
  const Matrix first_back = left_operand([&](int m, int p) { return conj(first(paired(p), spread(m))); });
  Complex w[2][4];
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int e = 0; e < 4; ++e)
      w[j][e] = scaled_root(1.0f, paired(me.g + e / 2 * 8) * paired(8 * j + 2 * me.t + e % 2), kRun);

  const Words words;
  const SharedArray<float> maxima;
  const int grid = int(gridDim.x), block = int(blockIdx.x), dim = int(args.dim);
  int left = int(int64_t(items) * (block + 1) / grid) - int(int64_t(items) * block / grid);
  if (transform.channels_contiguous) left = (items - block + grid - 1) / grid;
  Slab next(transform, dim, transform.channels_contiguous ? block : int(int64_t(items) * block / grid));
  copy_slabs(args, transform, next, left & 1);
  wait_for_copies<0>();
  __syncthreads();
  float x[8];
  read_inputs<kElement>(args.pregate.data != nullptr, x);
  bool new_channel = true;
  float unscale = 1.0f;
  M2_NO_UNROLL
  for (; left > 0; --left) {
    const Slab slab = next;
    if (new_channel) unscale = 1.0f / load_spectrum(args, transform, slab.d);
    __syncthreads();  // maxima are there, inputs and columns are read
    next.advance(transform, dim);
    new_channel = next.d != slab.d;
    if (left > 1) copy_slabs(args, transform, next, (left - 1) & 1);

    Tiles y;
    int exponent;
    {  // 1: columns to runs
      const Place at(transform);
      exponent = exponent_of(warp_max(maxima.load(kMaxima + (at.row() << log) + (at.thread & ((1 << log) - 1)))));
      const float scale = exponent > 200 ? 0.0f : power_of_two(kLargest - exponent);
      M2_UNROLL
      for (int j = 0; j < 2; ++j) {
        const uint32_t right[2] = {pack_half(scale * x[j], scale * x[2 + j]), pack_half(scale * x[4 + j], scale * x[6 + j])};
        M2_UNROLL
        for (int e = 0; e < 4; ++e) y.re[j][e] = y.im[j][e] = 0.0f;
        mma_half(y.re[j], outer_forward.re, right);
        mma_half(y.im[j], outer_forward.im, right);
      }
      store_sums(words, [&](int a) { return at.column(spread(at.g + 8 * a)) + 4 * at.t; }, y);
    }
    __syncthreads();

    {  // 2: a run, to its spectrum and back
      const Place at(transform);
      const int run = at.warp * kNextRun;
      multiply(first_forward, load_right(words, [&](int n1) { return run + n1 * kPitch + 2 * at.g; }), y);
      multiply_each<false>(y, w);
      Tiles z;
      multiply(as_left(y), second_forward, z);
      M2_UNROLL
      for (int v = 0; v < 8; v += 2) {
        const Complex2 s = words.load_as<Complex2>(kSpectrum + (v / 2 * kThreads + at.thread) * 4);
        M2_UNROLL
        for (int i = 0; i < 2; ++i) {
          float &re = z.re[v / 4][v % 4 + i], &im = z.im[v / 4][v % 4 + i];
          const Complex product = Complex{re, im} * s.x[i];
          re = product.re, im = product.im;
        }
      }
      multiply(second_back, as_right(z), y);
      multiply_each<true>(y, w);
      multiply(first_back, as_right(y), z);
      __syncwarp();  // all lanes have read the run
      store_sums(words, [&](int a) { return run + spread(at.g + 8 * a) * kPitch + 4 * at.t; }, z);
    }
    wait_for_copies<0>();
    __syncthreads();

    {  // 3: columns to results
      const Place at(transform);
      const Matrix columns = load_right(words, [&](int p) { return at.column(p) + 2 * at.g; });
      M2_UNROLL
      for (int j = 0; j < 2; ++j) {
        const uint32_t re[2] = {columns.re[2 * j], columns.re[2 * j + 1]}, im[2] = {columns.im[2 * j], columns.im[2 * j + 1]};
        M2_UNROLL
        for (int e = 0; e < 4; ++e) y.re[j][e] = 0.0f;
        mma_half(y.re[j], outer_back.re, re);
        mma_half(y.re[j], outer_back.im, im);
      }
      const float back = float(kRun << log) * (exponent > 200 ? 0.0f : power_of_two(exponent - kLargest)) * unscale;
      const int row = at.row() + (slab.slab << log_parts);
      M2_UNROLL
      for (int a = 0; a < 2; ++a) {  // part g + 8 a, columns 4 t ..
        const int part = at.g + 8 * a, n = (part << (4 + log)) + 16 * at.q() + 4 * at.t;
        float result[4];
        M2_UNROLL
        for (int i = 0; i < 4; ++i) result[i] = back * y.re[i % 2][2 * a + i / 2];
        if (args.postgate.data) {
          const Words2 post = words.load_as<Words2>(kPost + ((left & 1) * 16 + part) * kPostPitch + 8 * at.warp + 2 * at.t);
          M2_UNROLL
          for (int i = 0; i < 2; ++i) {
            float gate[2];
            unpack<kElement>(post.x[i], gate);
            result[2 * i] *= gate[0];
            result[2 * i + 1] *= gate[1];
          }
        }
        uint16_t* out = static_cast<uint16_t*>(args.out.data);
        if (transform.vectors) {
          out += n + int64_t(row) * transform.stride_batch[3] + int64_t(slab.d) * transform.stride_dim[3];
          if (row < int(args.batch) && n < int(args.seqlen))
            *reinterpret_cast<Words2*>(out) = {{pack<kElement>(result[0], result[1]), pack<kElement>(result[2], result[3])}};
        } else if (row < int(args.batch)) {
          out += row * args.out.stride_batch + slab.d * args.out.stride_dim;
          M2_UNROLL
          for (int i = 0; i < 4; ++i)
            if (n + i < int(args.seqlen)) out[(n + i) * args.out.stride_seq] = narrowed<true>(kElement, result[i]);
        }
      }
    }
    if (left > 1) read_inputs<kElement>(args.pregate.data != nullptr, x);
  }
}

}  // namespace

bool fft_conv_mma_short_serves(int64_t fft_size) {
  return find_fft_plan(fft_size) && fft_size <= kMaxShortMmaFftSize && fits_block(kBytes) == cudaSuccess;
}

cudaError_t fft_conv_mma_short_fwd(const FftConvArgs& args, cudaStream_t stream, LaunchShape* shape) {
  const FftPlan* plan = find_fft_plan(args.fft_size);
  if (!plan || args.fft_size > kMaxShortMmaFftSize) return cudaErrorInvalidValue;
  Transform transform = {};
  while (kRun << transform.log_runs < args.fft_size) ++transform.log_runs;
  const int last = plan->radix[plan->passes - 1];
  for (int pass = 0; pass < plan->passes; ++pass) {
    while (1 << transform.shifts[pass] < plan->radix[pass]) ++transform.shifts[pass];
    transform.weights[pass] = pass + 1 < plan->passes ? plan->step(pass) / last : plan->size / last;
  }
  transform.channels_contiguous = args.u.stride_seq != 1;
  const auto strides_of = [&](const auto& x, int number) {
    transform.stride_batch[number] = int(x.stride_batch);
    transform.stride_dim[number] = int(x.stride_dim);
  };
  strides_of(args.u, 0), strides_of(args.pregate, 1), strides_of(args.postgate, 2), strides_of(args.out, 3);
  transform.vectors = args.seqlen % 8 == 0 && aligned(args.u, 8) && aligned(args.pregate, 8) && aligned(args.postgate, 8) &&
                      aligned(args.out, 4);
  const int64_t slabs = ceil_div<int64_t>(args.batch, 16 >> transform.log_runs), items = slabs * args.dim;
  transform.slabs = int(slabs);
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const LaunchShape wanted = {items < processors ? items : processors, kThreads, kBytes};
  if (shape) *shape = wanted;
  if (wanted.blocks == 0) return cudaSuccess;
  return launch(args.element == Element::f16 ? &fft_conv_mma_short_kernel<Element::f16>
                                             : &fft_conv_mma_short_kernel<Element::bf16>,
                unsigned(wanted.blocks), unsigned(wanted.threads), wanted.shared_bytes, stream, args, transform, int(items));
}

}  // namespace m2::cuda
