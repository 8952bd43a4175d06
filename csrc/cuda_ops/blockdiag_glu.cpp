// CUDA boundary of blockdiag_glu, forward, for the sizes that a kernel serves; all else is a composition in Python
// (m2ops/_blockdiag.py). Kernels: ../cuda. Test: tests/cuda/test_cuda_emulated.py.
#include "../cuda/blockdiag_glu.h"
#include "boundary.h"

namespace m2::cuda {
namespace {

// The sizes of rows (tokens, blocks_in * in), w_in (blocks_in, rows_in, in) and w_out (blocks_out, out, inner).
BlockdiagGluArgs glu_args(const char* op, const Tensor& rows, const Tensor& w_in, const Tensor& w_out) {
  check_device(op, "rows", rows, rows);
  check_device(op, "w_in", w_in, rows);
  check_device(op, "w_out", w_out, rows);
  require(rows.dim() == 2 && w_in.dim() == 3 && w_out.dim() == 3 && rows.size(1) == w_in.size(0) * w_in.size(2) &&
              w_in.size(0) * w_in.size(1) == 2 * w_out.size(0) * w_out.size(2),
          op, ": rows (tokens, blocks * in), w_in (blocks, 2 * hidden / blocks, in) and w_out (blocks, out, hidden / ",
          "blocks) must agree, got ", shape_of(rows), ", ", shape_of(w_in), " and ", shape_of(w_out));
  BlockdiagGluArgs args;
  args.element = element_of(op, "rows", rows);
  require(w_in.scalar_type() == rows.scalar_type() && w_out.scalar_type() == rows.scalar_type(), op,
          ": the weights must have the dtype of rows, ", torch::headeronly::toString(rows.scalar_type()));
  args.tokens = rows.size(0);
  args.blocks_in = int(w_in.size(0)), args.rows_in = int(w_in.size(1)), args.in = int(w_in.size(2));
  args.blocks_out = int(w_out.size(0)), args.out = int(w_out.size(1)), args.inner = int(w_out.size(2));
  args.stride_x = rows.stride(0);
  args.x = rows.const_data_ptr(), args.w_in = w_in.const_data_ptr(), args.w_out = w_out.const_data_ptr();
  return args;
}

// Whether blockdiag_glu_fused takes these tensors.
bool blockdiag_glu_fits_cuda(const Tensor& rows, const Tensor& w_in, const Tensor& w_out) {
  const BlockdiagGluArgs args = glu_args("blockdiag_glu_fits", rows, w_in, w_out);
  bool aligned = rows.stride(1) == 1 && w_in.is_contiguous() && w_out.is_contiguous(), serves = false;
  for (const void* data : {args.x, args.w_in, args.w_out})
    aligned = aligned && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  const CurrentDevice device(rows);
  const cudaError_t error = blockdiag_glu_serves(args, &serves);
  if (error != cudaSuccess)
    throw std::runtime_error(
        text("blockdiag_glu: cannot ask the GPU for its shared memory: ", cudaGetErrorString(error)));
  return aligned && serves;
}

// Returns (tokens, blocks_out * out), dtype of rows; b_out (blocks_out * out,) of the same dtype.
Tensor blockdiag_glu_fused_cuda(const Tensor& rows, const Tensor& w_in, const Tensor& w_out, const OptTensor& b_out) {
  const char* op = "blockdiag_glu_fused";
  require(blockdiag_glu_fits_cuda(rows, w_in, w_out), op, ": no kernel for rows ", shape_of(rows), ", w_in ",
          shape_of(w_in), " and w_out ", shape_of(w_out), "; call blockdiag_glu, which serves all sizes");
  BlockdiagGluArgs args = glu_args(op, rows, w_in, w_out);
  const int64_t channels = int64_t(args.blocks_out) * args.out;
  OptTensor bias;
  if (b_out) {
    check_device(op, "b_out", *b_out, rows);
    require(b_out->dim() == 1 && b_out->size(0) == channels && b_out->scalar_type() == rows.scalar_type(), op,
            ": b_out must have shape (", channels, ",) and the dtype of rows, got ", shape_of(*b_out));
    bias = torch::stable::contiguous(*b_out);
    args.bias = bias->const_data_ptr();
  }
  const CurrentDevice device(rows);
  Tensor out = torch::stable::new_empty(rows, {args.tokens, channels});
  args.result = out.mutable_data_ptr();
  LaunchShape shape;
  const cudaError_t error = blockdiag_glu_fwd(args, device.stream(), &shape);
  if (error != cudaSuccess)
    throw std::runtime_error(text("blockdiag_glu: launch of blockdiag_glu_fwd_kernel failed: ",
                                  cudaGetErrorString(error), " (", shape.blocks, " blocks of ", shape.threads,
                                  " threads, ", shape.shared_bytes, " bytes of shared memory, rows ", shape_of(rows),
                                  ", w_in ", shape_of(w_in), ", ", device_of(rows), ")"));
  return out;
}

}  // namespace
}  // namespace m2::cuda

// What m2ops/_blockdiag.py asks on CUDA; not in ../ops.cpp because no other device has it.
M2_CUDA_LIBRARY_FRAGMENT(m) {
  m.def("blockdiag_glu_fits(Tensor rows, Tensor w_in, Tensor w_out) -> bool");
  m.def("blockdiag_glu_fused(Tensor rows, Tensor w_in, Tensor w_out, Tensor? b_out) -> Tensor");
}

M2_CUDA_LIBRARY_IMPL(m) {
  m.impl("blockdiag_glu_fits", TORCH_BOX(&m2::cuda::blockdiag_glu_fits_cuda));
  m.impl("blockdiag_glu_fused", TORCH_BOX(&m2::cuda::blockdiag_glu_fused_cuda));
}
