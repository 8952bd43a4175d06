// The long convolution as the boundaries of other operators call it. Its own boundary: fft_conv.cpp.
#pragma once
#include "boundary.h"

namespace m2::cuda {

// u, pregate, postgate (batch, dim, seqlen), or (batch, seqlen, dim) with channels_last, any strides; spectrum (dim,
// 2 * fft_size) from filter_spectrum, skip (dim,), float32. Returns a new contiguous tensor of the shape and dtype of u.
Tensor fft_conv_cuda(const Tensor& u, const Tensor& spectrum, const OptTensor& skip, const OptTensor& pregate,
                     const OptTensor& postgate, bool channels_last);

// Gradients of u, spectrum, skip, pregate and postgate; those of absent gates have no elements. Deterministic.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fft_conv_bwd_cuda(const Tensor& dout, const Tensor& u,
                                                                     const Tensor& spectrum, const OptTensor& skip,
                                                                     const OptTensor& pregate, const OptTensor& postgate,
                                                                     bool channels_last);

}  // namespace m2::cuda
