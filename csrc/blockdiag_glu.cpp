// CPU boundary of blockdiag_glu: tiles of tokens times blocks of channels, so that hidden channels never leave the cache.
// m2ops/_blockdiag.py decides what comes here. Test: tests/test_blockdiag.py.
#include "boundary.h"

namespace m2 {
namespace {

GluShape glu_shape(const Tensor& rows, const Tensor& w_in, const Tensor& w_out) {
  const char* op = "blockdiag_glu";
  STD_TORCH_CHECK(rows.is_cpu() && w_in.is_cpu() && w_out.is_cpu() && rows.dim() == 2 && w_in.dim() == 3 &&
                      w_out.dim() == 3, op, ": rows must have shape (tokens, dim), weights (nblocks, out, in), on the CPU");
  STD_TORCH_CHECK(w_in.scalar_type() == rows.scalar_type() && w_out.scalar_type() == rows.scalar_type(), op,
                  ": weights must have the dtype of rows");
  const GluShape s{w_in.size(0), w_in.size(2), w_in.size(1), w_out.size(1), w_out.size(2)};
  STD_TORCH_CHECK(rows.size(1) == s.blocks_in * s.in && s.blocks_in * s.width == 2 * w_out.size(0) * s.hidden, op,
                  ": w_in must take the channels of rows and give twice the channels that w_out takes");
  return s;
}

template <class T>
void glu(const GluShape& shape, Dtype dtype, const GluTile& all, int64_t blocks, int64_t element) {
  const auto& kernel = glu_kernels<T>();
  const int64_t tiles = (all.tokens + kGluTokens - 1) / kGluTokens;
  const auto at = [element](const void* p, int64_t offset) { return static_cast<const char*>(p) + offset * element; };
  // Blocks of a tile one after the other, so that a thread finds the tokens in its cache.
  torch::stable::parallel_for(0, tiles * blocks, 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<T> work(glu_work_elements(shape));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / blocks * kGluTokens;
      GluTile tile = all;
      tile.x = at(all.x, first * all.x_stride);
      tile.out = const_cast<char*>(at(all.out, first * all.out_stride));
      tile.tokens = std::min(kGluTokens, all.tokens - first);
      kernel.forward(shape, dtype, tile, i % blocks, work.get());
    }
  });
}

Tensor blockdiag_glu_tiles(const Tensor& rows, const Tensor& w_in, const Tensor& w_out, const OptTensor& b_out) {
  const GluShape shape = glu_shape(rows, w_in, w_out);
  const int64_t blocks = w_out.size(0);
  const Tensor x = rows.stride(1) == 1 || rows.size(1) == 1 ? rows : torch::stable::contiguous(rows);
  const Tensor first = torch::stable::contiguous(w_in), second = torch::stable::contiguous(w_out);
  OptTensor bias;
  if (b_out) bias = parameter("blockdiag_glu", "b_out", *b_out, rows.scalar_type(), blocks * shape.out);
  Tensor out = new_output(rows, {rows.size(0), blocks * shape.out});
  if (out.numel() == 0) return out;
  const GluTile all{x.const_data_ptr(), x.stride(0), x.size(0), first.const_data_ptr(), second.const_data_ptr(),
                    bias ? bias->const_data_ptr() : nullptr, out.data_ptr(), out.stride(0)};
  with_compute_type(compute_type(rows), [&](auto zero) {
    glu<decltype(zero)>(shape, dtype_of("blockdiag_glu", rows), all, blocks, rows.element_size());
  });
  return out;
}

}  // namespace
}  // namespace m2

// Not an operator of its own: what blockdiag_glu calls on CPUs.
STABLE_TORCH_LIBRARY_FRAGMENT(m2ops, m) {
  m.def("blockdiag_glu_tiles(Tensor rows, Tensor w_in, Tensor w_out, Tensor? b_out) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(m2ops, CPU, m) { m.impl("blockdiag_glu_tiles", TORCH_BOX(&m2::blockdiag_glu_tiles)); }
