// One row of the kernel table, from the bodies above it. Included last by kernels_<isa>.cpp.

template <class T, int W>
constexpr FftKernels<T> fft_row() {
  using Row = FftRow<T, W>;
  return {Row::forward,         Row::forward_complex, Row::inverse,    Row::convolve,
          Row::convolve_signal, Row::backward_signal, Row::multiply,   Row::accumulate,
          Copies<T, W>::gather, Copies<T, W>::scatter, Copies<T, W>::scatter_product};
}
template <class T, int W>
constexpr ShortConvKernels<T> short_conv_row() {
  return {ShortConv<T, W>::forward, ShortConv<T, W>::backward};
}
template <class T, int W>
constexpr MixerKernels<T> mixer_row() {
  return {Mixer<T, W>::gates, Mixer<T, W>::gather, Mixer<T, W>::scatter_sum, Mixer<T, W>::gates_bwd};
}
template <class T, int W>
constexpr GluKernels<T> glu_row() {
  return {Glu<T, W>::forward};
}
constexpr KernelTable table(const char* name) {
  return {name, fft_row<float, lanes_of<float>()>(), fft_row<double, lanes_of<double>()>(),
          short_conv_row<float, lanes_of<float>()>(), short_conv_row<double, lanes_of<double>()>(),
          mixer_row<float, lanes_of<float>()>(), mixer_row<double, lanes_of<double>()>(),
          glu_row<float, lanes_of<float>()>(), glu_row<double, lanes_of<double>()>()};
}
