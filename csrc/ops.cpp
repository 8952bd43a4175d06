// Every operator schema: the table of contents of m2ops. The meaning of each is its `<name>_ref` in Python.
// Kernels: fft_conv.cpp, short_conv.cpp, monarch_mixer.cpp, blockdiag_glu.cpp (CPU), cuda_ops (CUDA, a library of its
// own); the other products, and what no kernel serves, are compositions registered in Python (m2ops/_blockdiag.py,
// m2ops/_monarch_mixer.py).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(m2ops, m) {
  m.def("filter_spectrum(Tensor k, Tensor? k_rev, int fft_size) -> Tensor");
  m.def("_empty_spectrum(Tensor like, int dim, int fft_size) -> Tensor");
  m.def("_filter_spectrum_into(Tensor k, Tensor? k_rev, Tensor(a!) out) -> ()");
  m.def("filter_spectrum_bwd(Tensor dspectrum, int taps, int taps_rev) -> (Tensor, Tensor)");
  m.def("fft_conv(Tensor u, Tensor spectrum, Tensor? skip, Tensor? pregate, Tensor? postgate, bool channels_last) -> Tensor");
  m.def("fft_conv_bwd(Tensor dout, Tensor u, Tensor spectrum, Tensor? skip, Tensor? pregate, Tensor? postgate, bool channels_last) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("short_conv(Tensor x, Tensor weight, Tensor? bias, bool channels_last) -> Tensor");
  m.def("short_conv_bwd(Tensor dout, Tensor x, Tensor weight, bool channels_last) -> (Tensor, Tensor, Tensor)");
  m.def("blockdiag_matmul(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("blockdiag_glu(Tensor x, Tensor w_in, Tensor w_out, Tensor? b_out) -> Tensor");
  m.def("blockdiag_glu_bwd(Tensor dout, Tensor x, Tensor w_in, Tensor w_out) -> (Tensor, Tensor, Tensor)");
  m.def("monarch_matmul(Tensor x, Tensor w1, Tensor w2) -> Tensor");
  m.def("monarch_mixer(Tensor p, Tensor u, Tensor short_weight, Tensor? short_bias, Tensor spectrum, Tensor? skip, Tensor? spectrum2, Tensor? skip2, Tensor? mask) -> Tensor");
  m.def("monarch_mixer_bwd(Tensor dout, Tensor p, Tensor u, Tensor short_weight, Tensor? short_bias, Tensor spectrum, Tensor? skip, Tensor? spectrum2, Tensor? skip2, Tensor? mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
