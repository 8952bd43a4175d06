// A negative control: an array indexed by a run-time value has to live on the stack.
__global__ void spilling_kernel(const int* index, float* x) {
  float kept[64] = {};
  for (int j = 0; j < 1000; ++j) kept[index[j] & 63] += x[j];
  for (int j = 0; j < 64; ++j) x[j] = kept[j];
}
