#include "toeplitz.h"

#include "cpu/amx.h"
#include "plan/toeplitz_cost.h"

namespace m2 {
namespace {

// Reverse taps smaller than this share of the others are the rounding of the transforms they went through: the bound of
// float32 convolutions.
constexpr double kRounding = 1e-6;

// The taps of one channel at a time, from its spectrum.
class Taps {
 public:
  Taps(int64_t fft_size, int64_t seqlen)
      : tables_(fft_tables<float>(fft_size)), size_(fft_size), seqlen_(seqlen), positions_(toeplitz_positions(seqlen)) {}

  int64_t elements() const { return 2 * positions_ + 4 * size_ + tables_->plan.scratch_elements(); }

  // memory [elements()] starts with the taps: lag i at [positions + i], zero from +- seqlen on. True if none is at a negative
  // lag. The spectrum is that of b, re b[m] at lag m, -im b[N - d] at lag -d; the inverse transform gives b back to the
  // rounding of float32. A skip is one tap more at lag 0.
  bool recover(const float* spectrum, float skip, float* memory) const {
    float *taps = memory, *work = taps + 2 * positions_, *re = work + 2 * size_, *im = re + size_, *scratch = im + size_;
    std::copy(spectrum, spectrum + 2 * size_, work);
    fft_kernels<float>().inverse(*tables_, work, re, im, scratch);
    std::fill(taps, taps + 2 * positions_, 0.0f);
    double forward = 0, reverse = 0;
    for (int64_t m = 0; m < seqlen_; ++m) taps[positions_ + m] = re[m], forward += double(re[m]) * re[m];
    for (int64_t d = 1; d < seqlen_; ++d) reverse += double(im[size_ - d]) * im[size_ - d];
    taps[positions_] += skip;
    if (reverse <= kRounding * kRounding * forward) return true;
    for (int64_t d = 1; d < seqlen_; ++d) taps[positions_ - d] = -im[size_ - d];
    return false;
  }

 private:
  std::shared_ptr<const FftTables<float>> tables_;
  int64_t size_, seqlen_, positions_;
};

// Tiles against transforms. Whether a filter is causal is seen in its first channel, and asked only where it matters.
bool tiles_are_faster(const ConvolutionViews& views, const float* spectrum, int64_t fft_size) {
  ToeplitzShape shape{views.u.batch, views.u.seqlen, fft_size, views.pregate.data != nullptr, true};
  const double transforms = transform_seconds(shape.batch, fft_size);
  if (toeplitz_seconds(shape) >= transforms) return false;
  shape.causal = false;
  if (toeplitz_seconds(shape) < transforms) return true;
  const Taps taps(fft_size, shape.seqlen);
  const KeptWorkspace<float> memory(taps.elements());
  return taps.recover(spectrum, 0.0f, memory.get());
}

const void* row(const View& x, int64_t b, int64_t c) { return x.block(b, c).data; }

}  // namespace

bool convolve_with_tiles(const ConvolutionViews& views, const Tensor& spectrum, const OptTensor& skip, int64_t fft_size) {
  const View &u = views.u, &pre = views.pregate, &post = views.postgate, &out = views.out;
  const ToeplitzKernels* kernels = u.dtype == Dtype::bf16 && u.time_contiguous ? toeplitz_kernels() : nullptr;
  if (!kernels) return false;
  const float* filters = static_cast<const float*>(spectrum.const_data_ptr());
  const float* skips = skip ? static_cast<const float*>(skip->const_data_ptr()) : nullptr;
  if (!toeplitz_always() && !tiles_are_faster(views, filters, fft_size)) return false;
  const Taps taps(fft_size, u.seqlen);
  const int64_t positions = toeplitz_positions(u.seqlen), groups = (u.batch + kToeplitzRows - 1) / kToeplitzRows;
  const int64_t tiles = toeplitz_work_bytes(positions) / int64_t(sizeof(float)), pairs = toeplitz_pairs(positions);
  torch::stable::parallel_for(0, u.dim * groups, 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<float> memory(tiles + pairs + taps.elements());
    uint32_t* packed = reinterpret_cast<uint32_t*>(memory.get() + tiles);
    float* recovered = memory.get() + tiles + pairs;
    bool causal = false;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i / groups, b = i % groups * kToeplitzRows;
      if (i == begin || b == 0) {
        causal = taps.recover(filters + c * 2 * fft_size, skips ? skips[c] : 0.0f, recovered);
        kernels->pack(positions, recovered, packed);
      }
      kernels->convolve({row(u, b, c), row(pre, b, c), row(post, b, c), const_cast<void*>(row(out, b, c)), u.stride_batch,
                         pre.stride_batch, post.stride_batch, out.stride_batch, std::min(kToeplitzRows, u.batch - b), u.seqlen,
                         causal}, packed, memory.get());
    }
  });
  return true;
}

}  // namespace m2
