// Shared by the two files that know Python: addresses to pointers, tuples to the structures of gloss.h.
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

// alpha, prior_strength, tol, max_iter, threads
using Options = std::tuple<double, double, double, int64_t, int>;
inline cpu::PropagateOptions to_options(const Options& o) {
  return {std::get<0>(o), std::get<1>(o), std::get<2>(o), std::get<3>(o), std::get<4>(o)};
}

// n, num_classes, is_double, cosines, inverse_sigma, labels, targets, scored, class_weight
using DenseArguments = std::tuple<int64_t, int64_t, bool, Address, Address, Address, Address, Address, Address>;
template <class T>
cpu::DenseProblem<T> to_dense_problem(const DenseArguments& a) {
  return {std::get<0>(a),           std::get<1>(a),
          at<T>(std::get<3>(a)),    at<double>(std::get<4>(a)),
          at<int64_t>(std::get<5>(a)), at<int64_t>(std::get<6>(a)),
          at<uint8_t>(std::get<7>(a)), at<double>(std::get<8>(a))};
}
// alpha, normalization, paper_target, smoothing, threads
using DenseHow = std::tuple<double, int, bool, double, int>;
inline cpu::DenseOptions to_dense_options(const DenseHow& o) {
  return {std::get<0>(o), Normalization(std::get<1>(o)), std::get<2>(o), std::get<3>(o), std::get<4>(o)};
}
// loss, result, reachable, lacks, grad_cosines, grad_inverse_sigma
using DenseOutputs = std::tuple<Address, Address, Address, Address, Address, Address>;
template <class T>
cpu::DenseResult<T> to_dense_result(const DenseOutputs& o) {
  return {at<T>(std::get<0>(o)),      at<T>(std::get<1>(o)), at<uint8_t>(std::get<2>(o)),
          at<double>(std::get<3>(o)), at<T>(std::get<4>(o)), at<double>(std::get<5>(o))};
}

#if defined(GLOSS_CUDA) || defined(GLOSS_EMULATE)
void bind_cuda(py::module_& m);
#endif

}  // namespace gloss::bindings
