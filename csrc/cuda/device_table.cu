#include "device_table.h"

#include <map>
#include <mutex>
#include <utility>

namespace m2::cuda {
namespace {

// Lets this thread allocate and copy although one of its streams may be being captured: the table is no part of the
// graph, it only has to be there before the graph runs.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Copies on a stream of its own and waits: whichever stream asks next finds the table complete.
cudaError_t copy_to_device(const std::vector<float>& host, float* device) {
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return error;
  error = cudaMemcpyAsync(device, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  return error;
}

}  // namespace

cudaError_t device_table(int number, const std::function<std::vector<float>()>& make, const float** table) {
  static auto& mutex = *new std::mutex;
  static auto& tables = *new std::map<std::pair<int, int>, const float*>;  // by device and number; outlives statics
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  const float*& entry = tables[{device, number}];
  if (!entry) {
    const RelaxedCapture relaxed;
    const std::vector<float> host = make();
    void* memory = nullptr;
    error = cudaMalloc(&memory, host.size() * sizeof(float));
    if (error != cudaSuccess) return error;
    error = copy_to_device(host, static_cast<float*>(memory));
    if (error != cudaSuccess) {
      cudaFree(memory);
      return error;
    }
    entry = static_cast<const float*>(memory);
  }
  *table = entry;
  return cudaSuccess;
}

cudaError_t device_table(const FftPlan& plan, const Complex** table) {
  const float* floats = nullptr;
  const cudaError_t error = device_table(plan.size, [&] { return fft_table(plan); }, &floats);
  *table = reinterpret_cast<const Complex*>(floats);
  return error;
}

}  // namespace m2::cuda
