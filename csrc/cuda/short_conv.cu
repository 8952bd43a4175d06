// Depthwise causal convolution of width 2 .. 7 on CUDA. Interface and formulas: short_conv.h. Compiled by nvcc, or by
// g++ under the emulator. Test: ../testing/test_short_conv_cuda.cpp.
//
// A thread makes kTile positions of one channel from kTile + 6 loads, so that memory is the limit. Neighbouring threads
// take neighbouring channels where those are contiguous, two each of 16 bits, else neighbouring tiles, which aligned rows load 16 bytes at
// a time. Taps are held against the end of an array of 7, which leaves one kernel for all widths; positions outside of
// the window are skipped, not multiplied by 0, which would turn infinities into NaN.
//
// Gradients of the weights: a thread sums the products of a tile, then its tiles, a block its threads in a tree, and a
// second kernel the blocks in a tree. What belongs together depends on the shapes alone, so the same bits come out of
// every run on every device.
#include "short_conv.h"

#include <algorithm>

#include "element.cuh"
#include "short_taps.cuh"

namespace m2::cuda {
namespace {

constexpr int kTile = 8;
constexpr int kWindow = kTile + kPast;
constexpr int kThreads = 256;
constexpr int kSums = kShortSums;

template <bool kNarrow>
struct alignas(16) Pack {
  Raw<kNarrow> values[kTile];
};

struct Quotient {
  int64_t quotient, remainder;
};

__device__ __forceinline__ Quotient divide(int64_t a, int64_t b) {
  if ((a | b) >> 32 == 0) return {uint32_t(a) / uint32_t(b), uint32_t(a) % uint32_t(b)};  // several times as fast
  return {a / b, a % b};
}

// x[i] = row[t + i] for kFirst <= i < kLast and 0 <= t + i < seqlen, else 0. t is a multiple of kTile.
template <bool kNarrow, bool kPacked, int kFirst, int kLast>
__device__ __forceinline__ void load_tile(Element element, const Raw<kNarrow>* row, int64_t stride, int64_t t,
                                          int64_t seqlen, int first, int last, float* x) {
  if (kPacked && t >= 0 && t + kTile <= seqlen) {
    const Pack<kNarrow> pack = *reinterpret_cast<const Pack<kNarrow>*>(row + t);
    M2_UNROLL
    for (int i = kFirst; i < kLast; ++i) x[i - kFirst] = widen<kNarrow>(element, pack.values[i]);
    return;
  }
  M2_UNROLL
  for (int i = kFirst; i < kLast; ++i) {
    const bool wanted = i >= first && i < last && t + i >= 0 && t + i < seqlen;
    x[i - kFirst] = wanted ? widen<kNarrow>(element, row[(t + i) * stride]) : 0.0f;
  }
}

// Positions t - 6 .. t + 7, of which those more than width - 1 before t may be missing.
template <bool kNarrow, bool kPacked>
__device__ __forceinline__ void load_with_past(Element element, const Raw<kNarrow>* row, int64_t stride, int64_t t,
                                               int64_t seqlen, int width, float (&x)[kWindow]) {
  load_tile<kNarrow, kPacked, kTile - kPast, kTile>(element, row, stride, t - kTile, seqlen, kTile + 1 - width, kTile, x);
  load_tile<kNarrow, kPacked, 0, kTile>(element, row, stride, t, seqlen, 0, kTile, x + kPast);
}

// Positions t .. t + 13, of which those more than width - 1 after t + 7 may be missing.
template <bool kNarrow, bool kPacked>
__device__ __forceinline__ void load_with_future(Element element, const Raw<kNarrow>* row, int64_t stride, int64_t t,
                                                 int64_t seqlen, int width, float (&x)[kWindow]) {
  load_tile<kNarrow, kPacked, 0, kTile>(element, row, stride, t, seqlen, 0, kTile, x);
  load_tile<kNarrow, kPacked, 0, kPast>(element, row, stride, t + kTile, seqlen, 0, width - 1, x + kTile);
}

template <bool kNarrow, bool kPacked>
__device__ __forceinline__ void store_tile(Element element, Raw<kNarrow>* row, int64_t stride, int64_t t, int64_t seqlen,
                                           const float (&y)[kTile]) {
  if (kPacked && t + kTile <= seqlen) {
    Pack<kNarrow> pack;
    M2_UNROLL
    for (int i = 0; i < kTile; ++i) pack.values[i] = narrowed<kNarrow>(element, y[i]);
    *reinterpret_cast<Pack<kNarrow>*>(row + t) = pack;
    return;
  }
  M2_UNROLL
  for (int i = 0; i < kTile; ++i)
    if (t + i < seqlen) row[(t + i) * stride] = narrowed<kNarrow>(element, y[i]);
}

template <bool kNarrow, class Void>
__device__ __forceinline__ auto* row_at(const AnyStrided<Void>& x, int64_t b, int64_t d) {
  using Pointer = std::conditional_t<std::is_const_v<Void>, const Raw<kNarrow>*, Raw<kNarrow>*>;
  return static_cast<Pointer>(x.data) + b * x.stride_batch + d * x.stride_dim;
}

// y[p] = bias + sum_i taps[i] x[p + i], of the last `width` taps.
__device__ __forceinline__ void convolve_tile(const float (&x)[kWindow], const float (&taps)[kMaxShortWidth], float bias,
                                              int width, float (&y)[kTile]) {
  M2_UNROLL
  for (int p = 0; p < kTile; ++p) y[p] = bias;
  M2_UNROLL
  for (int i = 0; i < kMaxShortWidth; ++i) {
    if (i + width < kMaxShortWidth) continue;
    M2_UNROLL
    for (int p = 0; p < kTile; ++p) y[p] += taps[i] * x[p + i];
  }
}

template <bool kNarrow, bool kPacked>
__global__ void __launch_bounds__(kThreads) short_conv_fwd_kernel(ShortConvArgs args, bool channels_inner) {
  const int64_t tiles = ceil_div<int64_t>(args.seqlen, kTile);
  const Quotient outer = divide(int64_t(blockIdx.x) * kThreads + threadIdx.x, channels_inner ? args.dim : tiles);
  const Quotient place = divide(outer.quotient, channels_inner ? tiles : args.dim);
  const int64_t b = place.quotient;
  if (b >= args.batch) return;
  const int64_t d = channels_inner ? outer.remainder : place.remainder;
  const int64_t t = (channels_inner ? place.remainder : outer.remainder) * kTile;

  float x[kWindow], taps[kMaxShortWidth], y[kTile];
  load_with_past<kNarrow, kPacked>(args.element, row_at<kNarrow>(args.x, b, d), args.x.stride_seq, t, args.seqlen, args.width, x);
  load_taps(args.weight, d, args.width, taps);
  convolve_tile(x, taps, args.bias ? load_readonly(args.bias + d) : 0.0f, args.width, y);
  store_tile<kNarrow, kPacked>(args.element, row_at<kNarrow>(args.out, b, d), args.out.stride_seq, t, args.seqlen, y);
}

// 16-bit tensors whose channels lie together, two channels a thread: accesses of 2 bytes would be twice as many for half of
// the bytes.
__global__ void __launch_bounds__(kThreads, 3) short_conv_fwd_pairs_kernel(ShortConvArgs args) {
  const int64_t tiles = ceil_div<int64_t>(args.seqlen, kTile);
  const Quotient outer = divide(int64_t(blockIdx.x) * kThreads + threadIdx.x, args.dim / 2);
  const Quotient place = divide(outer.quotient, tiles);
  const int64_t b = place.quotient, d = 2 * outer.remainder, t = place.remainder * kTile;
  if (b >= args.batch) return;
  const uint16_t* from = row_at<true>(args.x, b, d);
  uint32_t words[kWindow];
  M2_UNROLL
  for (int i = 0; i < kWindow; ++i) {
    const int64_t at = t + i - kPast;
    const bool wanted = i > kPast - args.width && at >= 0 && at < args.seqlen;
    words[i] = wanted ? load_readonly(reinterpret_cast<const uint32_t*>(from + at * args.x.stride_seq)) : 0u;
  }
  uint32_t out[kTile] = {};
  M2_NO_UNROLL
  for (int half = 0; half < 2; ++half) {  // one after the other, in the same registers
    float x[kWindow], taps[kMaxShortWidth], y[kTile];
    M2_UNROLL
    for (int i = 0; i < kWindow; ++i) x[i] = widen<true>(args.element, uint16_t(words[i] >> 16 * half));
    load_taps(args.weight, d + half, args.width, taps);
    convolve_tile(x, taps, args.bias ? load_readonly(args.bias + d + half) : 0.0f, args.width, y);
    M2_UNROLL
    for (int p = 0; p < kTile; ++p) out[p] |= uint32_t(narrowed<true>(args.element, y[p])) << 16 * half;
  }
  uint16_t* to = row_at<true>(args.out, b, d);
  M2_UNROLL
  for (int p = 0; p < kTile; ++p)
    if (t + p < args.seqlen) store_word(reinterpret_cast<uint32_t*>(to + (t + p) * args.out.stride_seq), out[p]);
}

// How the gradient's work is dealt out: a block has `channels` neighbouring channels and takes `items` tiles of each.
struct Deal {
  int channels = 1;
  int64_t items = 0, groups = 0, parts = 0;
};

// Sums over the threads that share threadIdx.x % stride, left in the first `stride` threads' places.
__device__ __forceinline__ void sum_over_block(const SharedArray<float>& sums, int count, int stride) {
  for (int half = kThreads / 2; half >= stride; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) >= half) continue;
    for (int i = 0; i < count; ++i) {
      const int at = i * kThreads + int(threadIdx.x);
      sums.store(at, sums.load(at) + sums.load(at + half));
    }
  }
}

template <bool kNarrow, bool kPacked>
__global__ void __launch_bounds__(kThreads) short_conv_bwd_kernel(ShortConvBwdArgs args, Deal deal) {
  const Quotient block = divide(blockIdx.x, deal.groups);  // part, group of channels
  const int64_t d = block.remainder * deal.channels + int(threadIdx.x) % deal.channels;
  const int64_t tiles = ceil_div<int64_t>(args.seqlen, kTile), all = args.batch * tiles;
  const int64_t end = (block.quotient + 1) * deal.items < all ? (block.quotient + 1) * deal.items : all;
  const int workers = kThreads / deal.channels;
  float taps[kMaxShortWidth] = {}, sums[kSums] = {};
  if (d < args.dim) {
    load_taps(args.weight, d, args.width, taps);
    M2_NO_UNROLL
    for (int64_t item = block.quotient * deal.items + int(threadIdx.x) / deal.channels; item < end; item += workers) {
      const Quotient place = divide(item, tiles);
      const int64_t b = place.quotient, t = place.remainder * kTile;
      float x[kWindow], dy[kWindow], dx[kTile] = {};
      load_with_past<kNarrow, kPacked>(args.element, row_at<kNarrow>(args.x, b, d), args.x.stride_seq, t, args.seqlen, args.width, x);
      load_with_future<kNarrow, kPacked>(args.element, row_at<kNarrow>(args.dout, b, d), args.dout.stride_seq, t, args.seqlen, args.width, dy);
      M2_UNROLL
      for (int i = 0; i < kMaxShortWidth; ++i) {
        if (i + args.width < kMaxShortWidth) continue;
        float sum = 0.0f;
        M2_UNROLL
        for (int p = 0; p < kTile; ++p) {
          dx[p] += taps[i] * dy[p + kPast - i];
          if (t + p < args.seqlen) sum += dy[p] * x[p + i];
        }
        sums[i] += sum;
      }
      float sum = 0.0f;
      M2_UNROLL
      for (int p = 0; p < kTile; ++p) sum += dy[p];
      sums[kMaxShortWidth] += sum;
      store_tile<kNarrow, kPacked>(args.element, row_at<kNarrow>(args.dx, b, d), args.dx.stride_seq, t, args.seqlen, dx);
    }
  }
  const SharedArray<float> shared;
  M2_UNROLL
  for (int i = 0; i < kSums; ++i) shared.store(i * kThreads + int(threadIdx.x), sums[i]);
  sum_over_block(shared, kSums, deal.channels);
  if (int(threadIdx.x) >= deal.channels || d >= args.dim) return;
  float* partial = args.partials + (block.quotient * args.dim + d) * kSums;
  M2_UNROLL
  for (int i = 0; i < kSums; ++i) partial[i] = shared.load(i * kThreads + int(threadIdx.x));
}

// One block a channel, thread i % kSums a gradient.
__global__ void __launch_bounds__(kThreads) short_conv_bwd_sum_kernel(ShortConvBwdArgs args, int64_t parts) {
  const int64_t d = blockIdx.x;
  const int i = int(threadIdx.x) % kSums, tap = i - (kMaxShortWidth - args.width);
  float sum = 0.0f;
  for (int64_t part = int(threadIdx.x) / kSums; part < parts; part += kThreads / kSums)
    sum += args.partials[(part * args.dim + d) * kSums + i];
  const SharedArray<float> shared;
  shared.store(int(threadIdx.x), sum);
  sum_over_block(shared, 1, kSums);
  if (int(threadIdx.x) >= kSums) return;
  if (i == kMaxShortWidth) args.dbias[d] = shared.load(i);
  else if (tap >= 0) args.dweight[d * args.width + tap] = shared.load(i);
}

// Whether every tile of a row starts at a 16-byte boundary and is contiguous.
template <class Void>
bool packed(const AnyStrided<Void>& x, Element element) {
  const int64_t bytes = int64_t(element_bytes(element));
  return x.stride_seq == 1 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride_batch * bytes % 16 == 0 &&
         x.stride_dim * bytes % 16 == 0;
}

// Whether two neighbouring channels are one aligned word of 4 bytes everywhere.
template <class Void>
bool paired(const AnyStrided<Void>& x) {
  return x.stride_dim == 1 && x.stride_seq != 1 && reinterpret_cast<uintptr_t>(x.data) % 4 == 0 &&
         x.stride_batch % 2 == 0 && x.stride_seq % 2 == 0;
}

template <class Args>
bool valid(const Args& args) {
  return args.batch >= 0 && args.dim >= 0 && args.seqlen >= 0 && args.width >= 2 && args.width <= kMaxShortWidth &&
         args.dim <= INT32_MAX;
}

// At least 4 tiles a thread, at most 32, about 2048 blocks in between.
Deal deal_for(const ShortConvBwdArgs& args) {
  Deal deal;
  deal.channels = args.x.stride_dim == 1 && args.x.stride_seq != 1 ? 32 : 1;
  deal.groups = ceil_div<int64_t>(args.dim, deal.channels);
  const int64_t workers = kThreads / deal.channels;
  const int64_t all = args.batch * ceil_div<int64_t>(args.seqlen, kTile);
  const int64_t even = all * deal.groups / (2048 * workers);
  deal.items = workers * std::min<int64_t>(32, std::max<int64_t>(4, even));
  deal.parts = ceil_div(all, deal.items);
  return deal;
}

}  // namespace

cudaError_t short_conv_fwd(const ShortConvArgs& args, cudaStream_t stream, LaunchShape* shape) {
  if (!valid(args)) return cudaErrorInvalidValue;
  const bool pairs = args.element != Element::f32 && args.dim % 2 == 0 && paired(args.x) && paired(args.out);
  const int64_t threads = args.batch * (pairs ? args.dim / 2 : args.dim) * ceil_div<int64_t>(args.seqlen, kTile);
  const LaunchShape wanted = {ceil_div<int64_t>(threads, kThreads), kThreads, 0};
  if (shape) *shape = wanted;
  if (wanted.blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (wanted.blocks == 0) return cudaSuccess;
  if (pairs) return launch(&short_conv_fwd_pairs_kernel, unsigned(wanted.blocks), kThreads, 0, stream, args);
  const bool channels_inner = args.x.stride_dim == 1 && args.x.stride_seq != 1;
  return with_width(args.element, [&](auto narrow) {
    const auto kernel = packed(args.x, args.element) && packed(args.out, args.element)
                            ? &short_conv_fwd_kernel<narrow.value, true>
                            : &short_conv_fwd_kernel<narrow.value, false>;
    return launch(kernel, unsigned(wanted.blocks), kThreads, 0, stream, args, channels_inner);
  });
}

int64_t short_conv_bwd_scratch(const ShortConvBwdArgs& args) { return deal_for(args).parts * args.dim * kSums; }

cudaError_t short_conv_bwd(const ShortConvBwdArgs& args, cudaStream_t stream, LaunchShape* shape) {
  if (!valid(args)) return cudaErrorInvalidValue;
  const Deal deal = deal_for(args);
  constexpr size_t kSharedBytes = kSums * kThreads * sizeof(float);
  const LaunchShape wanted = {deal.groups * deal.parts, kThreads, kSharedBytes};
  if (shape) *shape = wanted;
  if (wanted.blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (args.dim == 0) return cudaSuccess;
  if (wanted.blocks > 0) {
    const cudaError_t error = with_width(args.element, [&](auto narrow) {
      const bool pack = packed(args.x, args.element) && packed(args.dout, args.element) &&
                        packed(args.dx, args.element);
      const auto kernel = pack ? &short_conv_bwd_kernel<narrow.value, true> : &short_conv_bwd_kernel<narrow.value, false>;
      return launch(kernel, unsigned(wanted.blocks), kThreads, kSharedBytes, stream, args, deal);
    });
    if (error != cudaSuccess) return error;
  }
  return sum_short_gradients(args, deal.parts, stream);
}

cudaError_t sum_short_gradients(const ShortConvBwdArgs& args, int64_t parts, cudaStream_t stream) {
  return launch(&short_conv_bwd_sum_kernel, unsigned(args.dim), kThreads, kThreads * sizeof(float), stream, args, parts);
}

}  // namespace m2::cuda
