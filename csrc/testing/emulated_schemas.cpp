// The schemas of ../ops.cpp that have CUDA kernels, and what tests ask of the emulator, for the emulated library alone.
#include <torch/csrc/stable/library.h>

#include "cuda_emulator.h"

// From now on this thread's launches, on a device of so many processors, are written to `path`; run again if it is empty.
extern "C" __attribute__((visibility("default"))) void m2_emulator_record(const char* path, int processors) {
  m2::emulator::options().record = path;
  m2::emulator::options().processors = processors;
}

STABLE_TORCH_LIBRARY(m2ops_emulated, m) {
  m.def("filter_spectrum(Tensor k, Tensor? k_rev, int fft_size) -> Tensor");
  m.def("fft_conv(Tensor u, Tensor spectrum, Tensor? skip, Tensor? pregate, Tensor? postgate, bool channels_last)"
        " -> Tensor");
  m.def("filter_spectrum_bwd(Tensor dspectrum, int taps, int taps_rev) -> (Tensor, Tensor)");
  m.def("fft_conv_bwd(Tensor dout, Tensor u, Tensor spectrum, Tensor? skip, Tensor? pregate, Tensor? postgate,"
        " bool channels_last) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("monarch_mixer(Tensor p, Tensor u, Tensor short_weight, Tensor? short_bias, Tensor spectrum, Tensor? skip,"
        " Tensor? spectrum2, Tensor? skip2, Tensor? mask) -> Tensor");
  m.def("monarch_mixer_bwd(Tensor dout, Tensor p, Tensor u, Tensor short_weight, Tensor? short_bias, Tensor spectrum,"
        " Tensor? skip, Tensor? spectrum2, Tensor? skip2, Tensor? mask)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("short_conv(Tensor x, Tensor weight, Tensor? bias, bool channels_last) -> Tensor");
  m.def("short_conv_bwd(Tensor dout, Tensor x, Tensor weight, bool channels_last) -> (Tensor, Tensor, Tensor)");
}
