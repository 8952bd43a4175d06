// pybind11: what is not a tensor. Plans with their flop and byte counts, instruction sets, build facts.
// A module of its own, apart from the torch library (their headers do not mix). Test: tests/ops/test_plan.py, tests/ops/test_isa.py, tests/ops/test_amx.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "cpu/amx.h"
#include "cpu/glu_pairs.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/plan_timing.h"
#include "cpu/pool.h"
#include "plan/toeplitz_cost.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Plans, instruction sets and build facts of m2ops.";
  py::class_<m2::FftPlan>(m, "FftPlan", "Factorisation of a right-angle transform.")
      .def_readonly("size", &m2::FftPlan::size)
      .def_readonly("outer", &m2::FftPlan::outer)
      .def_readonly("n1", &m2::FftPlan::n1)
      .def_readonly("n2", &m2::FftPlan::n2)
      .def_readonly("lanes", &m2::FftPlan::lanes)
      .def_readonly("radices1", &m2::FftPlan::radices1)
      .def_readonly("radices2", &m2::FftPlan::radices2)
      .def_property_readonly("flops", &m2::FftPlan::flops, "Operations of one gated convolution, spectrum given.")
      .def_property_readonly("table_bytes", &m2::FftPlan::table_bytes, "Bytes of twiddles one convolution reads.");
  m.def("fft_plan", [](int64_t size) { return m2::make_fft_plan(size); }, py::arg("fft_size"));
  m.def("fft_plan", [](int64_t size, int64_t outer, int64_t n1) { return m2::make_fft_plan(size, {outer, n1}); },
        py::arg("fft_size"), py::arg("outer"), py::arg("n1"));
  m.def("fft_factors", [](int64_t size) {
    std::vector<std::pair<int64_t, int64_t>> all;
    for (const m2::FftFactors& f : m2::fft_factors(size)) all.emplace_back(f.outer, f.n1);
    return all;
  }, py::arg("fft_size"), "All (outer, n1) that a transform can be built from.");
  m.def("usual_fft_factors", [](int64_t size) {
    const m2::FftFactors f = m2::usual_fft_factors(size);
    return std::make_pair(f.outer, f.n1);
  }, py::arg("fft_size"), "The (outer, n1) taken where none were chosen.");
  m.def("choose_fft_factors", [](int64_t size, int64_t outer, int64_t n1) { m2::choose_fft_factors(size, {outer, n1}); },
        py::arg("fft_size"), py::arg("outer"), py::arg("n1"));
  m.def("time_convolution", &m2::time_convolution, py::arg("plan"), py::call_guard<py::gil_scoped_release>());
  m.def("fft_size", &m2::fft_size_for, py::arg("seqlen"));
  m.def("available_isas", &m2::available_isas);
  m.def("current_isa", [] { return m2::kernels().name; });
  m.def("select_isa", [](const std::string& name) { m2::select_isa(name.c_str()); }, py::arg("name"));
  m.def("has_products", [](const std::string& dtype) {
    return m2::has_products(dtype == "bfloat16" ? m2::Dtype::bf16 : dtype == "float16" ? m2::Dtype::f16 : m2::Dtype::f32);
  }, py::arg("dtype"), "Whether this CPU has instructions that multiply numbers of a dtype ('float16', 'bfloat16').");
  m.def("keep_freed_memory", [] {
#if defined(__GLIBC__)
    if (mallopt(M_MMAP_MAX, 0) != 1 || mallopt(M_TRIM_THRESHOLD, -1) != 1) return false;
    m2::pool_limit(0);  // one of the two is enough
    return true;
#else
    return false;
#endif
  }, "Keep freed memory for the next allocation; false where the C library cannot.");
  m.def("pool_empty", &m2::pool_empty, py::call_guard<py::gil_scoped_release>(), "Bytes given back to the system.");
  m.def("pool_limit", &m2::pool_limit, py::arg("megabytes"));
  m.def("pool_state", [] {
    const m2::PoolState state = m2::pool_state();
    return std::make_tuple(state.used, state.unused, state.limit);
  }, "Bytes in use, bytes that lie unused, the most that may.");
  m.def("amx_state", &m2::amx_state, "In words: whether matrix tiles (AMX) are used. Raises ValueError for an unknown M2OPS_AMX.");
  m.def("select_amx", [](const std::optional<std::string>& mode, bool always) {
    m2::select_amx(mode ? mode->c_str() : nullptr, always);
  }, py::arg("mode"), py::arg("always") = false, "As M2OPS_AMX; None: back to it. `always`: whatever it costs.");
  m.def("bf16_state", &m2::bf16_state,
        "In words: whether products of pairs of bfloat16 numbers are used. Raises ValueError for an unknown M2OPS_BF16.");
  m.def("select_bf16", [](const std::optional<std::string>& mode) { m2::select_bf16(mode ? mode->c_str() : nullptr); },
        py::arg("mode"), "As M2OPS_BF16; None: back to it.");
  m.def("glu_in_pairs", [](int64_t blocks_in, int64_t in, int64_t width, int64_t out, int64_t hidden) {
    return m2::glu_pairs() != nullptr && m2::glu_has_pairs({blocks_in, in, width, out, hidden});
  }, "Whether blockdiag_glu of bfloat16 tensors is made of products of pairs.");
  m.def("multiply_pairs", [](const std::vector<uint32_t>& a, const std::vector<uint32_t>& b, std::vector<float> out) {
    const m2::GluPairKernels* kernels = m2::glu_pairs();
    if (!kernels || a.size() != 16 || b.size() != 16 || out.size() != 16)
      throw std::invalid_argument("multiply_pairs: needs 16 pairs, 16 pairs and 16 sums, and a kernel in use");
    kernels->multiply(a.data(), b.data(), out.data());
    return out;
  }, "out + the products of 16 times 2 pairs, as the kernels make them.");
  m.def("toeplitz_seconds", [](int64_t batch, int64_t seqlen, int64_t fft_size, bool gated, bool causal) {
    return m2::toeplitz_seconds({batch, seqlen, fft_size, gated, causal});
  }, py::arg("batch"), py::arg("seqlen"), py::arg("fft_size"), py::arg("gated"), py::arg("causal"));
  m.def("transform_seconds", &m2::transform_seconds, py::arg("batch"), py::arg("fft_size"));
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = M2_COMPILER;
    info["build_type"] = M2_BUILD_TYPE;
    info["torch_built_against"] = M2_TORCH_VERSION;
    info["cuda_archs"] = M2_CUDA_ARCHS;
    return info;
  });
}
