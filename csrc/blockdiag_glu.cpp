// CPU boundary of blockdiag_glu and its gradient: tiles of tokens times blocks of channels, so that hidden channels never
// leave the cache.
// m2ops/_blockdiag.py decides what comes here. Test: tests/ops/test_blockdiag.py.
#include "boundary.h"
#include "cpu/glu_pairs.h"

#include <vector>

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

// forward(tile, block, work) for tiles of at most `most` tokens times blocks of w_out.
template <class T, class Forward>
void for_glu_tiles(const GluTile& all, int64_t most, int64_t blocks, int64_t element, int64_t work_elements, Forward forward) {
  const int64_t tiles = (all.tokens + most - 1) / most;
  const auto at = [element](const void* p, int64_t offset) { return static_cast<const char*>(p) + offset * element; };
  // Blocks of a tile one after the other, so that a thread finds the tokens in its cache.
  torch::stable::parallel_for(0, tiles * blocks, 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<T> work(work_elements);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / blocks * most;
      GluTile tile = all;
      tile.x = at(all.x, first * all.x_stride);
      tile.out = const_cast<char*>(at(all.out, first * all.out_stride));
      tile.tokens = std::min(most, all.tokens - first);
      forward(tile, i % blocks, work.get());
    }
  });
}

template <class T>
void glu(const GluShape& shape, Dtype dtype, const GluTile& all, int64_t blocks, int64_t element) {
  const auto& kernel = glu_kernels<T>();
  for_glu_tiles<T>(all, kGluTokens, blocks, element, glu_work_elements(shape),
                   [&](const GluTile& tile, int64_t block, T* work) { kernel.forward(shape, dtype, tile, block, work); });
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
  const Dtype dtype = dtype_of("blockdiag_glu", rows);
  if (const GluPairKernels* pairs = dtype == Dtype::bf16 && glu_has_pairs(shape) ? glu_pairs() : nullptr) {
    for_glu_tiles<char>(all, kPairTokens, blocks, rows.element_size(), glu_pairs_work_bytes(shape),
                        [&](const GluTile& tile, int64_t block, char* work) { pairs->forward(shape, tile, block, work); });
    return out;
  }
  with_compute_type(compute_type(rows), [&](auto zero) {
    glu<decltype(zero)>(shape, dtype, all, blocks, rows.element_size());
  });
  return out;
}

// ---- gradients ----

std::vector<GluChunk> glu_chunks(const GluShape& s) {
  std::vector<GluChunk> chunks;
  const int64_t inter = s.blocks_in * s.width / 2;
  for (int64_t c = 0, count; c < inter; c += count) {
    const int64_t value = inter + c;
    count = std::min({kGluChunk, inter - c, s.width - c % s.width, s.width - value % s.width, s.hidden - c % s.hidden});
    chunks.push_back({c, value, c / s.hidden, c % s.hidden, count});
  }
  return chunks;
}

// Gradients of weights are summed over runs of at least kSplitTokens tokens, then over runs in order, so that they do not
// depend on the number of threads. The sums of all runs take up to kSplitBytes, or what one run needs if that is more (the
// weights in the computing precision, in blocks filled up to multiples of 96 channels); packed weights are 5/3 of that.
constexpr int64_t kSplitTokens = 512, kSplitBytes = int64_t{64} << 20, kMostSplits = 32;

int64_t glu_splits(int64_t tokens, int64_t bytes) {
  int64_t splits = 1;
  while (splits < kMostSplits && 2 * splits * kSplitTokens <= tokens && 2 * splits * bytes <= kSplitBytes) splits *= 2;
  return splits;
}

// `all` are the tokens; its channels are those of the whole tensors.
template <class T>
void glu_bwd(const GluShape& s, Dtype dtype, const GluGradTile& all, const Tensor& w_in, const Tensor& w_out, Tensor& dw_in,
             Tensor& dw_out, int64_t element) {
  const auto& kernel = glu_kernels<T>();
  const std::vector<GluChunk> chunks = glu_chunks(s);
  const int64_t number = int64_t(chunks.size()), owners = glu_owners(s), tile_tokens = glu_grad_tokens<T>(s);
  const int64_t packed_size = glu_packed_elements(s), sums_size = glu_sums_elements(s), split = number * sums_size;
  const int64_t splits = glu_splits(all.tokens, split * int64_t(sizeof(T)));
  const Tensor memory = new_output(w_in, {number * packed_size + splits * split}, compute_type(w_in));
  T *packed = static_cast<T*>(memory.data_ptr()), *sums = packed + number * packed_size;
  const auto at = [element](const void* p, int64_t offset) { return static_cast<const char*>(p) + offset * element; };

  torch::stable::parallel_for(0, number, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernel.pack(s, dtype, chunks[i], w_in.const_data_ptr(), w_out.const_data_ptr(), packed + i * packed_size);
  });
  torch::stable::parallel_for(0, splits * owners, 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<T> work(glu_grad_work_elements<T>(s));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t run = unit / owners, owner = unit % owners;
      const auto of_owner = [&](int64_t o) {  // the first of its chunks
        return std::lower_bound(chunks.begin(), chunks.end(), o * s.width,
                                [](const GluChunk& c, int64_t gate) { return c.gate < gate; }) - chunks.begin();
      };
      const int64_t from = of_owner(owner), to = owner + 1 < owners ? of_owner(owner + 1) : number;
      const int64_t first = run * all.tokens / splits, last = (run + 1) * all.tokens / splits;
      for (int64_t t = first; t < last; t += tile_tokens) {
        GluGradTile tile = all;
        tile.x = at(all.x, t * all.x_stride), tile.dout = at(all.dout, t * all.dout_stride);
        tile.dx = const_cast<char*>(at(all.dx, t * all.dx_stride));
        tile.tokens = std::min(tile_tokens, last - t);
        kernel.backward(s, dtype, tile, owner, chunks.data() + from, to - from, packed + from * packed_size,
                        sums + run * split + from * sums_size, t == first, work.get());
      }
    }
  });
  torch::stable::parallel_for(0, number, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernel.weights(s, dtype, chunks[i], sums + i * sums_size, splits, split, dw_in.data_ptr(), dw_out.data_ptr());
  });
}

std::tuple<Tensor, Tensor, Tensor> blockdiag_glu_tiles_bwd(const Tensor& dout, const Tensor& rows, const Tensor& w_in,
                                                           const Tensor& w_out) {
  const GluShape shape = glu_shape(rows, w_in, w_out);
  STD_TORCH_CHECK(dout.is_cpu() && dout.dim() == 2 && dout.scalar_type() == rows.scalar_type() &&
                      dout.size(0) == rows.size(0) && dout.size(1) == w_out.size(0) * shape.out,
                  "blockdiag_glu: dout must have the shape (tokens, channels) and the dtype of the output, on the CPU");
  const auto dense = [](const Tensor& x) { return x.stride(1) == 1 || x.size(1) == 1 ? x : torch::stable::contiguous(x); };
  const Tensor x = dense(rows), grad = dense(dout);
  const Tensor first = torch::stable::contiguous(w_in), second = torch::stable::contiguous(w_out);
  Tensor dx = new_output(rows, {rows.size(0), rows.size(1)});
  Tensor dw_in = new_output(w_in, {w_in.size(0), w_in.size(1), w_in.size(2)});
  Tensor dw_out = new_output(w_out, {w_out.size(0), w_out.size(1), w_out.size(2)});
  if (rows.size(0) == 0) {
    torch::stable::zero_(dw_in), torch::stable::zero_(dw_out);
    return {dx, dw_in, dw_out};
  }
  const GluGradTile all{x.const_data_ptr(), grad.const_data_ptr(), x.stride(0), grad.stride(0), x.size(0), dx.data_ptr(),
                        dx.stride(0)};
  with_compute_type(compute_type(rows), [&](auto zero) {
    glu_bwd<decltype(zero)>(shape, dtype_of("blockdiag_glu", rows), all, first, second, dw_in, dw_out, rows.element_size());
  });
  return {dx, dw_in, dw_out};
}

}  // namespace
}  // namespace m2

// Not operators of their own: what blockdiag_glu and its gradient call on CPUs.
STABLE_TORCH_LIBRARY_FRAGMENT(m2ops, m) {
  m.def("blockdiag_glu_tiles(Tensor rows, Tensor w_in, Tensor w_out, Tensor? b_out) -> Tensor");
  m.def("blockdiag_glu_tiles_bwd(Tensor dout, Tensor rows, Tensor w_in, Tensor w_out) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(m2ops, CPU, m) {
  m.impl("blockdiag_glu_tiles", TORCH_BOX(&m2::blockdiag_glu_tiles));
  m.impl("blockdiag_glu_tiles_bwd", TORCH_BOX(&m2::blockdiag_glu_tiles_bwd));
}
