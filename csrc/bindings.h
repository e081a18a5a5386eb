// Shared by the two files that know Python. Addresses become pointers, names become options. The functions of both have
// the same names and the same named arguments; after them stands what a side needs to run (`threads`, or `workspace`,
// `device` and `stream`). gloss_kernels/_backends/native.py calls them and has allocated every buffer; _C.pyi lists them.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <tuple>

#include "gloss.h"

#if defined(GLOSS_EMULATE)
#include "cuda_runtime.h"
#endif

namespace gloss::bindings {

namespace py = pybind11;
using py::arg;

using Address = uintptr_t;  // of a tensor's first element; 0 is null

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Runs f(T{}) for T = double or float.
template <class F>
auto by_type(bool is_double, F f) {
  return is_double ? f(double{}) : f(float{});
}

using View = std::tuple<Address, int, int64_t, int64_t, int64_t>;  // data, dtype, rows, cols, stride
inline MatrixView to_view(const View& v) {
  return {at<void>(std::get<0>(v)), DType(std::get<1>(v)), std::get<2>(v), std::get<3>(v), std::get<4>(v)};
}

inline Csr to_csr(Address crow, Address col, int64_t n) { return {at<int64_t>(crow), at<int64_t>(col), n}; }

inline Symmetrize to_symmetrize(const std::string& name) {
  return option_named<Symmetrize>("symmetrize", name, kSymmetrizeNames);
}
inline Normalization to_normalization(const std::string& name) {
  return option_named<Normalization>("normalization", name, kNormalizationNames);
}
inline Target to_target(const std::string& name) { return option_named<Target>("target", name, kTargetNames); }

#if defined(GLOSS_CUDA) || defined(GLOSS_EMULATE)
void bind_cuda(py::module_ m);
#endif

}  // namespace gloss::bindings
