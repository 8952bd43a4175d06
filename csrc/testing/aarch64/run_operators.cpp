// The CPU operators for another processor: m2ops' boundary and kernels, compiled for it, above a stand-in for the part of
// torch that they call (the C functions behind the stable ABI), so that an emulator needs neither Python nor torch.
// Test: tests/ops/test_aarch64.py, which sends the arguments and judges what comes back; the protocol is that of
// tests/support/aarch64.py: a line of text, then the bytes of the tensors in their order.
#include <torch/csrc/stable/c/shim.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace {

struct Tensor {
  std::vector<int64_t> sizes, strides;  // strides in elements
  int32_t dtype = 0;
  std::shared_ptr<std::vector<char>> data = std::make_shared<std::vector<char>>();
};
using List = std::vector<StableIValue>;

// As torch numbers them; the client sends these.
enum : int32_t { kHalf = 5, kFloat = 6, kDouble = 7, kBool = 11, kBFloat16 = 15 };

int64_t element_size(int32_t dtype) {
  return dtype == kDouble ? 8 : dtype == kFloat ? 4 : dtype == kHalf || dtype == kBFloat16 ? 2 : 1;
}
int64_t count(const std::vector<int64_t>& sizes) {
  int64_t n = 1;
  for (const int64_t size : sizes) n *= size;
  return n;
}

Tensor fresh(std::vector<int64_t> sizes, int32_t dtype, char fill) {
  Tensor t;
  t.strides.resize(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i] > 0 ? sizes[i] : 1) t.strides[i] = stride;
  t.data = std::make_shared<std::vector<char>>(count(sizes) * element_size(dtype), fill);
  t.sizes = std::move(sizes);
  t.dtype = dtype;
  return t;
}

Tensor contiguous(const Tensor& from) {
  Tensor to = fresh(from.sizes, from.dtype, 0);
  const int64_t size = element_size(from.dtype), total = count(from.sizes);
  std::vector<int64_t> at(from.sizes.size(), 0);
  for (int64_t n = 0; n < total; ++n) {
    int64_t offset = 0;
    for (size_t i = 0; i < at.size(); ++i) offset += at[i] * from.strides[i];
    std::memcpy(to.data->data() + n * size, from.data->data() + offset * size, size);
    for (size_t i = at.size(); i-- > 0 && ++at[i] == from.sizes[i];) at[i] = 0;
  }
  return to;
}

Tensor& of(AtenTensorHandle handle) { return *reinterpret_cast<Tensor*>(handle); }
Tensor& of(StableIValue value) { return *reinterpret_cast<Tensor*>(value); }
StableIValue owned(Tensor t) { return reinterpret_cast<StableIValue>(new Tensor(std::move(t))); }

struct Operator {
  std::vector<std::string> arguments;  // types
  uint64_t outputs = 0;
  void (*run)(StableIValue*, uint64_t, uint64_t) = nullptr;
};
std::map<std::string, Operator>& operators() {
  static std::map<std::string, Operator> all;
  return all;
}

// "name(Tensor a, Tensor? b, int c) -> (Tensor, Tensor)"
void define(const std::string& schema) {
  const size_t open = schema.find('('), arrow = schema.find(" -> ");
  Operator& op = operators()[schema.substr(0, open)];
  std::istringstream inside(schema.substr(open + 1, schema.rfind(')', arrow) - open - 1));
  for (std::string argument; std::getline(inside, argument, ',');)
    op.arguments.push_back(argument.substr(argument.find_first_not_of(' '), argument.rfind(' ') - argument.find_first_not_of(' ')));
  for (size_t at = arrow; (at = schema.find("Tensor", at)) != std::string::npos; at += 6) ++op.outputs;
}

}  // namespace

// ---- what the operators call of torch ----

extern "C" {

#define M2_CONSTANT(name, value) int32_t aoti_torch_##name() { return value; }
M2_CONSTANT(device_type_cpu, 0) M2_CONSTANT(device_type_cuda, 1) M2_CONSTANT(device_type_meta, 2) M2_CONSTANT(device_type_mps, 3)
M2_CONSTANT(device_type_xpu, 4) M2_CONSTANT(device_type_privateuse1, 5)
M2_CONSTANT(dtype_uint8, 0) M2_CONSTANT(dtype_int8, 1) M2_CONSTANT(dtype_int16, 2) M2_CONSTANT(dtype_int32, 3)
M2_CONSTANT(dtype_int64, 4) M2_CONSTANT(dtype_float16, kHalf) M2_CONSTANT(dtype_float32, kFloat) M2_CONSTANT(dtype_float64, kDouble)
M2_CONSTANT(dtype_complex32, 8) M2_CONSTANT(dtype_complex64, 9) M2_CONSTANT(dtype_complex128, 10) M2_CONSTANT(dtype_bool, kBool)
M2_CONSTANT(dtype_bfloat16, kBFloat16) M2_CONSTANT(dtype_float8_e5m2, 23) M2_CONSTANT(dtype_float8_e4m3fn, 24)
M2_CONSTANT(dtype_float8_e5m2fnuz, 25) M2_CONSTANT(dtype_float8_e4m3fnuz, 26) M2_CONSTANT(dtype_uint16, 27)
M2_CONSTANT(dtype_uint32, 28) M2_CONSTANT(dtype_uint64, 29)
M2_CONSTANT(layout_strided, 0) M2_CONSTANT(layout_sparse_coo, 1) M2_CONSTANT(layout_sparse_csr, 2) M2_CONSTANT(layout_sparse_csc, 3)
M2_CONSTANT(layout_sparse_bsr, 4) M2_CONSTANT(layout_sparse_bsc, 5) M2_CONSTANT(layout__mkldnn, 6) M2_CONSTANT(layout_jagged, 7)
M2_CONSTANT(memory_format_contiguous_format, 0) M2_CONSTANT(memory_format_preserve_format, 1)
M2_CONSTANT(memory_format_channels_last, 2) M2_CONSTANT(memory_format_channels_last_3d, 3)
#undef M2_CONSTANT

uint64_t aoti_torch_abi_version() { return uint64_t{0x020a} << 48; }
size_t aoti_torch_dtype_element_size(int32_t dtype) { return size_t(element_size(dtype)); }

AOTITorchError aoti_torch_library_init_def(const char*, const char*, uint32_t, TorchLibraryHandle* out) { return *out = nullptr, 0; }
AOTITorchError aoti_torch_library_init_fragment(const char*, const char*, uint32_t, TorchLibraryHandle* out) {
  return *out = nullptr, 0;
}
AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t, TorchLibraryHandle* out) {
  return *out = nullptr, 0;
}
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return 0; }
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char* schema) { return define(schema), 0; }
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, void (*run)(StableIValue*, uint64_t, uint64_t), uint64_t) {
  return operators()[name].run = run, 0;
}

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle from, AtenTensorHandle* to) {
  return *to = reinterpret_cast<AtenTensorHandle>(new Tensor(of(from))), 0;
}
AOTITorchError aoti_torch_new_uninitialized_tensor(AtenTensorHandle* to) {
  return *to = reinterpret_cast<AtenTensorHandle>(new Tensor), 0;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle t) { return delete &of(t), 0; }
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle t, void** out) { return *out = of(t).data->data(), 0; }
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle t, const void** out) { return *out = of(t).data->data(), 0; }
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* out) { return *out = 0, 0; }
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle t, int32_t* out) { return *out = of(t).dtype, 0; }
AOTITorchError aoti_torch_get_dim(AtenTensorHandle t, int64_t* out) { return *out = int64_t(of(t).sizes.size()), 0; }
AOTITorchError aoti_torch_get_numel(AtenTensorHandle t, int64_t* out) { return *out = count(of(t).sizes), 0; }
AOTITorchError aoti_torch_get_size(AtenTensorHandle t, int64_t d, int64_t* out) { return *out = of(t).sizes.at(d), 0; }
AOTITorchError aoti_torch_get_stride(AtenTensorHandle t, int64_t d, int64_t* out) { return *out = of(t).strides.at(d), 0; }

AOTITorchError torch_new_list_reserve_size(size_t, StableListHandle* out) {
  return *out = reinterpret_cast<StableListHandle>(new List), 0;
}
AOTITorchError torch_list_push_back(StableListHandle list, StableIValue value) {
  return reinterpret_cast<List*>(list)->push_back(value), 0;
}
AOTITorchError torch_delete_list(StableListHandle list) { return delete reinterpret_cast<List*>(list), 0; }

// In parts, as threads would take them, the last one first.
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc f, void* context) {
  const int64_t middle = begin + (end - begin) / 2;
  if (middle < end) f(middle, end, context);
  if (begin < middle) f(begin, middle, context);
  return 0;
}

AOTITorchError torch_call_dispatcher(const char* name, const char*, StableIValue* stack, uint64_t) {
  const std::string op = name;
  const std::unique_ptr<Tensor> self(reinterpret_cast<Tensor*>(stack[0]));
  if (op == "aten::contiguous") return stack[0] = owned(contiguous(*self)), 0;
  if (op == "aten::zero_") return std::fill(self->data->begin(), self->data->end(), 0), stack[0] = owned(*self), 0;
  if (op == "aten::new_empty" || op == "aten::new_zeros") {
    const std::unique_ptr<List> sizes(reinterpret_cast<List*>(stack[1]));
    const std::unique_ptr<StableIValue> dtype(reinterpret_cast<StableIValue*>(stack[2]));
    // What is not written is found: all bits set are not a number in every dtype.
    const char fill = op == "aten::new_empty" ? char(0xff) : 0;
    stack[0] = owned(fresh({sizes->begin(), sizes->end()}, dtype ? int32_t(*dtype) : self->dtype, fill));
    return 0;
  }
  std::cerr << "run_operators: knows nothing of " << name << "\n";
  return 1;
}

}  // extern "C"

// ---- the protocol ----

namespace {

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> all;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, ',');) all.push_back(std::stoll(word));
  return all;
}

void read(char* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) throw std::runtime_error("the input ended inside a tensor");
}

// "-" (none), "7" or "6:2,3,4:12,4,1:24" (dtype, sizes, strides, elements of memory).
StableIValue argument(const std::string& word, const std::string& type) {
  if (word == "-") return 0;
  StableIValue value = 0;
  if (word.find(':') == std::string::npos) {
    value = StableIValue(std::stoll(word));
  } else {
    std::vector<std::string> parts;
    std::istringstream in(word);
    for (std::string part; std::getline(in, part, ':');) parts.push_back(part);
    Tensor t;
    t.dtype = std::stoi(parts.at(0)), t.sizes = numbers(parts.at(1)), t.strides = numbers(parts.at(2));
    t.data->resize(std::stoll(parts.at(3)) * element_size(t.dtype));
    read(t.data->data(), t.data->size());
    value = owned(std::move(t));
  }
  return type.back() == '?' ? reinterpret_cast<StableIValue>(new StableIValue(value)) : value;
}

void answer(const std::string& line) { std::printf("%s\n", line.c_str()); }

void call(const std::string& name, std::istringstream& words) {
  const Operator& op = operators().at(name);
  std::vector<StableIValue> stack;
  for (const std::string& type : op.arguments) {
    std::string word;
    words >> word;
    stack.push_back(argument(word, type));
  }
  stack.resize(std::max<size_t>(stack.size(), op.outputs));
  op.run(stack.data(), op.arguments.size(), op.outputs);
  std::ostringstream line;
  line << "ok";
  std::vector<Tensor> results;
  for (uint64_t i = 0; i < op.outputs; ++i) {
    const std::unique_ptr<Tensor> result(&of(stack[i]));
    results.push_back(contiguous(*result));
    line << ' ' << result->dtype << ':';
    for (size_t d = 0; d < result->sizes.size(); ++d) line << (d ? "," : "") << result->sizes[d];
  }
  answer(line.str());
  for (const Tensor& result : results) std::fwrite(result.data->data(), 1, result.data->size(), stdout);
}

bool line_from_stdin(std::string& line) {
  line.clear();
  for (int c; (c = std::getchar()) != EOF && c != '\n';) line.push_back(char(c));
  return !line.empty();
}

}  // namespace

int main() {
  std::ostringstream hello;
  hello << "isas";
  for (const std::string& isa : m2::available_isas()) hello << ' ' << isa;
  hello << " operators";
  for (const auto& [name, op] : operators())
    if (op.run) hello << ' ' << name;
  answer(hello.str());
  std::fflush(stdout);
  for (std::string line; line_from_stdin(line); std::fflush(stdout)) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    try {
      if (name == "isa") {
        words >> name;
        m2::select_isa(name.c_str());
        answer(std::string("ok ") + m2::kernels().name);
      } else if (name == "base") {  // where the kernels lie in memory
        Dl_info info{};
        dladdr(reinterpret_cast<void*>(m2::kernels().fft_f32.forward), &info);
        answer("ok " + std::to_string(reinterpret_cast<uintptr_t>(info.dli_fbase)));
      } else {
        call(name, words);
      }
    } catch (const std::exception& error) {
      std::string text = error.what();
      for (char& c : text)
        if (c == '\n') c = ' ';
      answer("error " + text);
    }
  }
  return 0;
}
