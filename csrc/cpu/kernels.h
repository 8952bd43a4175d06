// The table of CPU kernels: one row per instruction set, best first. Raw pointers and sizes only: no torch, no
// Python, no allocation inside a kernel. Test: tests/ops/test_isa.py and the test of each operator.
//
// Numerics: float32, bfloat16 and float16 tensors are computed in float32 (relative error of one convolution
// about 3e-7), float64 in float64. Bound: 1e-6 / 1e-12 relative L2.
#pragma once
#include <cstdint>

#include "../plan/fft_plan.h"

namespace m2 {

enum class Dtype { f32, f64, bf16, f16 };

// A block of up to kLanes channels of a strided tensor. Strides are in elements; that of the contiguous axis
// (positions if `time_contiguous`, else channels) is 1.
struct Block {
  void* data;
  Dtype dtype;
  int64_t stride_channel, stride_seq;
  bool time_contiguous;
};

// `seqlen` contiguous elements of a dtype, times as many of a gate unless that is null; zeros behind them.
struct Signal {
  const void *data, *gate;
  int64_t seqlen;
};
// Where `seqlen` results go: one or two rows (data[1] may be null), each times its gate unless that is null.
struct Result {
  void* data[2];
  const void* gate[2];
  int64_t seqlen;
};
// Rows as long as the one in work that are written at its end or read next, in this order, to be asked for ahead of time;
// null: none.
constexpr int kAheadRows = 7;
struct Ahead {
  const void* rows[kAheadRows];
};

// All row pointers below are contiguous and hold `plan.size` elements; `work` holds 2 * size elements in the order
// [outer][n1 / lanes][n2][re lanes][im lanes]; `scratch` holds plan.scratch_elements().
template <class T>
struct FftKernels {
  // work = F(theta * row), frequencies in the plan's permuted order.
  void (*forward)(const FftTables<T>&, const T* row, T* work, T* scratch);
  // work = F(theta * (re + i im)); im may be null.
  void (*forward_complex)(const FftTables<T>&, const T* re, const T* im, T* work, T* scratch);
  // out_re + i out_im = conj(theta) * F^-1(work), unnormalised; out_im may be null. Destroys work.
  void (*inverse)(const FftTables<T>&, T* work, T* out_re, T* out_im, T* scratch);
  // out = post * (Re(conj(theta) F^-1(spectrum F(theta u pre))) + skip u pre); pre, post may be null; out may be u.
  void (*convolve)(const FftTables<T>&, const T* u, const T* spectrum, T skip, const T* pre, const T* post, T* out,
                   T* work, T* scratch);
  // The same from and to tensors of any dtype computed in T.
  void (*convolve_signal)(const FftTables<T>&, Dtype, const Signal& u, const T* spectrum, T skip, const Result& out,
                          const Ahead&, T* work, T* scratch);
  // With U = F(theta u), D = F(theta dy): dspectrum += conj(U) D, du = Re(conj(theta) F^-1(conj(spectrum) D)) + skip dy,
  // and, unless y.data[0] is null, y = convolution of u. work holds 4 * size elements.
  void (*backward_signal)(const FftTables<T>&, Dtype, const Signal& u, const Signal& dy, const T* spectrum, T skip,
                          T* dspectrum, const Result& du, const Result& y, const Ahead&, T* work, T* scratch);
  // out = spectrum * x, or conj(spectrum) * x; all in the order of work.
  void (*multiply)(int64_t size, const T* x, const T* spectrum, bool conjugate, T* out);
  // acc += conj(a) * b.
  void (*accumulate)(int64_t size, const T* a, const T* b, T* acc);
  // rows[c][t] = x[c, t] * gate[c, t] for t < seqlen, 0 up to plan size `row_size`; gate.data may be null.
  void (*gather)(Block x, Block gate, int64_t channels, int64_t seqlen, int64_t row_size, T* rows);
  // out[c, t] = rows[c][t] * gate[c, t].
  void (*scatter)(const T* rows, Block gate, int64_t channels, int64_t seqlen, int64_t row_size, Block out);
  // out[c, t] = a[c][t] * b[c][t].
  void (*scatter_product)(const T* a, const T* b, int64_t channels, int64_t seqlen, int64_t row_size, Block out);
};

// Depthwise causal convolution of one batch row; the blocks describe `channels` channels.
struct ShortConvShape {
  int64_t channels, seqlen;
  int width;
};
template <class T>
struct ShortConvKernels {
  // out[c, t] = bias[c] + sum_j weight[c][j] x[c, t - (width - 1 - j)]; weight, bias in T, bias may be null.
  void (*forward)(ShortConvShape, Block x, const T* weight, const T* bias, Block out);
  // dx from dout; adds to dweight [channels][width] and dbias [channels]. dx.data may be null.
  void (*backward)(ShortConvShape, Block x, const T* weight, Block dout, Block dx, T* dweight, T* dbias);
};

// Up to kMixerChannels channels of one batch row of the mixer's projected input: a cache line of 16-bit elements. Rows of the computing precision hold
// `row_size` elements, `pitch` apart; they are written for every channel, 0 from seqlen on.
constexpr int64_t kMixerChannels = 2 * kLanes;
template <class T>
struct MixerTile {
  int64_t channels, seqlen, row_size, pitch;
  int width;
  Block p[3];          // the slices x1, x2, v
  const T* weight[3];  // [channels][width] of each slice
  const T* bias[3];    // [channels], or null
  const bool* mask;    // [seqlen], true at positions that exist, or null
};
// Where the gradients of the short convolution go, per slice as in MixerTile; weight and bias are added to.
template <class T>
struct MixerGradients {
  Block dp[3];
  T *dweight[3], *dbias[3];
};
template <class T>
struct MixerKernels {
  // With x1, x2, v = short_conv(p): g = x1 v, x2 (times dout unless its data is null); both 0 under the mask.
  void (*gates)(const MixerTile<T>&, Block dout, T* g, T* x2);
  // rows = x, 0 under the mask.
  void (*gather)(const MixerTile<T>&, Block x, T* rows);
  // out = a + b, 0 under the mask; b may be null.
  void (*scatter_sum)(const MixerTile<T>&, const T* a, const T* b, Block out);
  // From y, the gated convolution before the gate x2, and dg, the gradient of g: x1 gets dg v, x2 dout y, v dg x1; and
  // back through the short convolution, which is computed again.
  void (*gates_bwd)(const MixerTile<T>&, Block dout, const T* y, const T* dg, const MixerGradients<T>&);
};

// The gated MLP out = w_out (gelu(w_in x, first half) * (w_in x, second half)) + bias with block-diagonal matrices, one
// block of w_out at a time. w_in has blocks_in blocks of width x in, w_out any number of out x hidden, both contiguous.
struct GluShape {
  int64_t blocks_in, in, width, out, hidden;
};
constexpr int64_t kGluTokens = 192;  // at most so many tokens at a time: their channels fit into L2 beside the weights
constexpr int64_t kGluHidden = 48;   // hidden channels that exist at a time
struct GluTile {
  const void* x;  // [tokens], x_stride apart
  int64_t x_stride, tokens;
  const void *w_in, *w_out, *bias;  // bias may be null
  void* out;
  int64_t out_stride;
};
inline int64_t glu_work_elements(const GluShape& s) {
  return (2 * s.in + s.out) * (kGluTokens + kGluHidden) + 2 * kLanes * kGluHidden;
}

// Gradients. Hidden channels in chunks of up to kGluChunk over which neither matrix changes its block: made of rows `gate`
// and `value` of w_in, and column `column` of block `out` of w_out, and those that follow.
constexpr int64_t kGluChunk = 96;
struct GluChunk {
  int64_t gate, value, out, column, count;
};
// Parts that share no channel of x: part i owns blocks i, i + glu_owners(), ... of w_in and of x.
inline int64_t glu_owners(const GluShape& s) { return s.blocks_in % 2 ? 1 : s.blocks_in / 2; }
struct GluGradTile {
  const void *x, *dout;
  int64_t x_stride, dout_stride, tokens;
  void* dx;
  int64_t dx_stride;
};
// Room for n channels: whole registers and rows of every instruction set.
constexpr int64_t glu_padded(int64_t n) { return (n + kGluChunk - 1) / kGluChunk * kGluChunk; }
// The same for rows that are read down the columns: an odd number of cache lines, so that they share no sets.
template <class T>
constexpr int64_t glu_pitch(int64_t n) {
  constexpr int64_t line = 64 / int64_t(sizeof(T));
  return (glu_padded(n) / line | 1) * line;
}
// Elements of a chunk: its packed weights, and the sums of its gradients.
inline int64_t glu_packed_elements(const GluShape& s) { return kGluChunk * (2 * s.in + s.out + 2 * glu_padded(s.in)); }
inline int64_t glu_sums_elements(const GluShape& s) { return kGluChunk * (2 * glu_padded(s.in) + glu_padded(s.out)); }
// Tokens of a tile: x, dx and dout of that many fill most of L2; a multiple of the rows of every instruction set.
template <class T>
int64_t glu_grad_tokens(const GluShape& s) {
  const int64_t token = (2 * s.blocks_in / glu_owners(s) * glu_pitch<T>(s.in) + glu_pitch<T>(s.out)) * int64_t(sizeof(T));
  const int64_t fit = (int64_t{400} << 10) / token / 12 * 12;
  return fit < 48 ? 48 : fit > kGluTokens ? kGluTokens : fit;
}
template <class T>
int64_t glu_grad_work_elements(const GluShape& s) {
  return glu_grad_tokens<T>(s) * (2 * s.blocks_in / glu_owners(s) * glu_pitch<T>(s.in) + glu_pitch<T>(s.out) +
                                  3 * glu_pitch<T>(kGluChunk));
}

template <class T>
struct GluKernels {
  // The channels of `block` of out. Tensors of one dtype, computed in T; gelu is exact to 1e-7 in float32. `work` holds
  // glu_work_elements().
  void (*forward)(const GluShape&, Dtype, const GluTile&, int64_t block, T* work);
  // The weights of a chunk as `backward` reads them, glu_packed_elements().
  void (*pack)(const GluShape&, Dtype, const GluChunk&, const void* w_in, const void* w_out, T* packed);
  // Of at most glu_grad_tokens() tokens: dx in the blocks of `owner`, and the gradients of the weights of its `count` chunks
  // set, or added to, in `sums`, glu_sums_elements() a chunk. gelu' is exact to 2e-7 in float32. `work` holds
  // glu_grad_work_elements().
  void (*backward)(const GluShape&, Dtype, const GluGradTile&, int64_t owner, const GluChunk*, int64_t count, const T* packed,
                   T* sums, bool first, T* work);
  // The gradients of the weights of a chunk: `splits` sums, `split` elements apart, added in order.
  void (*weights)(const GluShape&, Dtype, const GluChunk&, const T* sums, int64_t splits, int64_t split, void* dw_in,
                  void* dw_out);
};

struct KernelTable {
  const char* name;
  const FftKernels<float>& fft_f32;
  const FftKernels<double>& fft_f64;
  const ShortConvKernels<float>& short_conv_f32;
  const ShortConvKernels<double>& short_conv_f64;
  const MixerKernels<float>& mixer_f32;
  const MixerKernels<double>& mixer_f64;
  const GluKernels<float>& glu_f32;
  const GluKernels<double>& glu_f64;
};

// One row each: csrc/cpu/table.cpp.
namespace scalar { extern const KernelTable table; }
namespace avx2 { extern const KernelTable table; }
namespace avx512 { extern const KernelTable table; }
namespace neon { extern const KernelTable table; }
namespace neon_bf16 { extern const KernelTable table; }

// The row in use (isa.h), by precision.
template <class T>
const FftKernels<T>& fft_kernels();
template <class T>
const ShortConvKernels<T>& short_conv_kernels();
template <class T>
const MixerKernels<T>& mixer_kernels();
template <class T>
const GluKernels<T>& glu_kernels();

}  // namespace m2
