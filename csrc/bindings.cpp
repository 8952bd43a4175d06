// pybind11: what is not a tensor. Plans with their flop and byte counts, instruction sets, build facts.
// A module of its own, apart from the torch library (their headers do not mix). Test: tests/test_plan.py, test_isa.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Plans, instruction sets and build facts of m2ops.";
  py::class_<m2::FftPlan>(m, "FftPlan", "Factorisation of a right-angle transform.")
      .def_readonly("size", &m2::FftPlan::size)
      .def_readonly("n1", &m2::FftPlan::n1)
      .def_readonly("n2", &m2::FftPlan::n2)
      .def_readonly("lanes", &m2::FftPlan::lanes)
      .def_readonly("radices1", &m2::FftPlan::radices1)
      .def_readonly("radices2", &m2::FftPlan::radices2)
      .def_property_readonly("flops", &m2::FftPlan::flops, "Operations of one gated convolution, spectrum given.")
      .def_property_readonly("table_bytes", &m2::FftPlan::table_bytes, "Bytes of twiddles one convolution reads.");
  m.def("fft_plan", &m2::make_fft_plan, py::arg("fft_size"));
  m.def("fft_size", &m2::fft_size_for, py::arg("seqlen"));
  m.def("available_isas", &m2::available_isas);
  m.def("current_isa", [] { return m2::kernels().name; });
  m.def("select_isa", [](const std::string& name) { m2::select_isa(name.c_str()); }, py::arg("name"));
  m.def("has_products", [](const std::string& dtype) {
    return m2::has_products(dtype == "bfloat16" ? m2::Dtype::bf16 : dtype == "float16" ? m2::Dtype::f16 : m2::Dtype::f32);
  }, py::arg("dtype"), "Whether this CPU has instructions that multiply numbers of a dtype ('float16', 'bfloat16').");
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = M2_COMPILER;
    info["build_type"] = M2_BUILD_TYPE;
    info["torch_built_against"] = M2_TORCH_VERSION;
    info["cuda_archs"] = M2_CUDA_ARCHS;
    return info;
  });
}
