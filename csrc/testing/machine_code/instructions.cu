// Every wrapper of an instruction of the tensor cores, once.
#include "mma.cuh"

__global__ void matrix_kernel(const uint32_t* x, float* out) {
  uint32_t a[4] = {x[0], x[1], x[2], x[3]}, b[2] = {m2::cuda::pack_half(out[0], out[1]), x[4]};
  float c[4] = {};
  m2::cuda::mma_half(c, a, b);
  m2::cuda::mma_bfloat(c, a, b);
  const m2::cuda::SharedArray<uint32_t> words;
  words.store(int(threadIdx.x), b[0]);
  const m2::cuda::Quad quad = m2::cuda::load_transposed(words, 4 * int(threadIdx.x));
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = c[i] + float(quad.words[i]);
}
