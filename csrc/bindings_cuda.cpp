// The CUDA half of the bindings: in the module _C where nvcc was found, and in _C_emulated over the same sources compiled
// for the CPU (csrc/emulator). gloss_kernels/_cuda.py allocates every buffer and has checked dtypes and shapes.
#include "bindings.h"
#include "gloss_cuda.h"

namespace {

using namespace gloss::bindings;
using gloss::Normalization;
using gloss::Symmetrize;
namespace cuda = gloss::cuda;

using QueueTuple = std::tuple<int, Address>;  // device, stream
cuda::Queue to_queue(const QueueTuple& queue) { return {std::get<0>(queue), at<void>(std::get<1>(queue))}; }

// ------------------------------------------------------------------------------------------------ topk
int64_t cosine_topk_workspace(View queries, View corpus, int64_t k, bool exclude_self, int64_t hint_k) {
  return cuda::cosine_topk_workspace(to_view(queries), to_view(corpus), k, exclude_self, hint_k);
}

void cosine_topk(View queries, View corpus, int64_t k, bool exclude_self, Address hint, int64_t hint_k, Address values,
                 Address indices, Address status, Address workspace, QueueTuple queue) {
  py::gil_scoped_release no_gil;
  cuda::cosine_topk(to_view(queries), to_view(corpus), k, exclude_self, at<int64_t>(hint), hint_k, at<void>(values),
                    at<int64_t>(indices), at<cuda::TopkStatus>(status), at<void>(workspace), to_queue(queue));
}

int64_t cosine_topk_backward_workspace(View queries, View corpus, int64_t k, bool is_double) {
  return by_type(is_double, [&](auto type) {
    return cuda::cosine_topk_backward_workspace<decltype(type)>(to_view(queries), to_view(corpus), k);
  });
}

void cosine_topk_backward(View queries, View corpus, int64_t k, Address indices, bool is_double, Address grad_values,
                          Address grad_queries, Address grad_corpus, Address workspace, QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::cosine_topk_backward<T>(to_view(queries), to_view(corpus), k, at<int64_t>(indices), at<T>(grad_values),
                                  at<T>(grad_queries), at<T>(grad_corpus), at<void>(workspace), to_queue(queue));
  });
}

// ----------------------------------------------------------------------------------------------- graph
void knn_structure(Address indices, int64_t n, int64_t k, int mode, Address crow, Address col, Address forward,
                   Address reverse, Address workspace, QueueTuple queue) {
  py::gil_scoped_release no_gil;
  cuda::knn_structure(at<int64_t>(indices), n, k, Symmetrize(mode), at<int64_t>(crow), at<int64_t>(col),
                      at<int64_t>(forward), at<int64_t>(reverse), at<void>(workspace), to_queue(queue));
}

void combine_edges(int64_t nnz, Address forward, Address reverse, int mode, bool is_double, Address weights,
                   Address values, QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::combine_edges<T>(nnz, at<int64_t>(forward), at<int64_t>(reverse), Symmetrize(mode), at<T>(weights),
                           at<T>(values), to_queue(queue));
  });
}

void combine_edges_backward(int64_t nnz, int64_t num_weights, Address forward, Address reverse, int mode,
                            bool is_double, Address weights, Address grad_values, Address grad_weights,
                            QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::combine_edges_backward<T>(nnz, num_weights, at<int64_t>(forward), at<int64_t>(reverse), Symmetrize(mode),
                                    at<T>(weights), at<T>(grad_values), at<T>(grad_weights), to_queue(queue));
  });
}

int64_t normalize_edges_workspace(int64_t n, int64_t capacity, int mode, bool is_double) {
  return by_type(is_double, [&](auto type) {
    return cuda::normalize_edges_workspace<decltype(type)>(n, capacity, Normalization(mode));
  });
}
int64_t normalize_edges_backward_workspace(int64_t n, int64_t capacity, int mode, bool is_double) {
  return by_type(is_double, [&](auto type) {
    return cuda::normalize_edges_backward_workspace<decltype(type)>(n, capacity, Normalization(mode));
  });
}

void normalize_edges(Address crow, Address col, int64_t n, int64_t capacity, bool is_double, Address values, int mode,
                     Address normalized, Address workspace, QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::normalize_edges<T>({at<int64_t>(crow), at<int64_t>(col), n}, capacity, at<T>(values), Normalization(mode),
                             at<T>(normalized), at<void>(workspace), to_queue(queue));
  });
}

void normalize_edges_backward(Address crow, Address col, int64_t n, int64_t capacity, bool is_double, Address values,
                              int mode, Address grad_normalized, Address grad_values, Address workspace,
                              QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::normalize_edges_backward<T>({at<int64_t>(crow), at<int64_t>(col), n}, capacity, at<T>(values),
                                      Normalization(mode), at<T>(grad_normalized), at<T>(grad_values),
                                      at<void>(workspace), to_queue(queue));
  });
}

// ------------------------------------------------------------------------------------------- propagate
int64_t propagate_workspace(int64_t n, int64_t capacity, int64_t num_classes, bool is_double) {
  return by_type(is_double,
                 [&](auto type) { return cuda::propagate_workspace<decltype(type)>(n, capacity, num_classes); });
}
int64_t propagate_backward_workspace(int64_t n, int64_t capacity, int64_t num_classes, bool is_double) {
  return by_type(is_double,
                 [&](auto type) { return cuda::propagate_backward_workspace<decltype(type)>(n, capacity, num_classes); });
}

void propagate(Address crow, Address col, int64_t n, int64_t capacity, int64_t num_classes, bool is_double,
               Address values, Address fixed, Address boundary, bool has_initial, Address prior, Options options,
               Address result, Address residual, Address reachable, Address used_tol, Address iterations,
               Address workspace, QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::propagate<T>({at<int64_t>(crow), at<int64_t>(col), n}, capacity, at<T>(values), num_classes,
                       at<uint8_t>(fixed), at<T>(boundary), has_initial, at<T>(prior), to_options(options),
                       at<T>(result), at<double>(residual), at<uint8_t>(reachable), at<double>(used_tol),
                       at<int64_t>(iterations), at<void>(workspace), to_queue(queue));
  });
}

void propagate_backward(Address crow, Address col, int64_t n, int64_t capacity, int64_t num_classes, bool is_double,
                        Address values, Address fixed, Address reachable, Address prior, Address result,
                        Address grad_result, Options options, Address tol, Address grad_values, Address residual,
                        Address iterations, Address workspace, QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::propagate_backward<T>({at<int64_t>(crow), at<int64_t>(col), n}, capacity, at<T>(values), num_classes,
                                at<uint8_t>(fixed), at<uint8_t>(reachable), at<T>(prior), at<T>(result),
                                at<T>(grad_result), to_options(options), at<double>(tol), at<T>(grad_values),
                                at<double>(residual), at<int64_t>(iterations), at<void>(workspace), to_queue(queue));
  });
}

// ----------------------------------------------------------------------------------------------- dense
void dense_unit_rows(int64_t n, int64_t cols, bool is_double, Address x, Address unit, Address inverse_norms,
                     QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::dense_unit_rows<T>(n, cols, at<T>(x), at<T>(unit), at<double>(inverse_norms), to_queue(queue));
  });
}

void dense_unit_rows_backward(int64_t n, int64_t cols, bool is_double, Address unit, Address inverse_norms,
                              Address grad_unit, Address grad, QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::dense_unit_rows_backward<T>(n, cols, at<T>(unit), at<double>(inverse_norms), at<T>(grad_unit), at<T>(grad),
                                      to_queue(queue));
  });
}

void dense_loss(DenseArguments problem, DenseHow how, DenseOutputs outputs, Address workspace, QueueTuple queue) {
  py::gil_scoped_release no_gil;
  by_type(std::get<2>(problem), [&](auto type) {
    using T = decltype(type);
    cuda::dense_loss<T>(to_dense_problem<T>(problem), to_dense_options(how), to_dense_result<T>(outputs),
                        at<void>(workspace), to_queue(queue));
  });
}

}  // namespace

namespace gloss::bindings {

void bind_cuda(py::module_& m) {
  m.def("cuda_problem", &cuda::problem, py::arg("device") = 0);
  m.def("cuda_cosine_topk_workspace", &cosine_topk_workspace);
  m.def("cuda_cosine_topk", &cosine_topk);
  m.def("cuda_cosine_topk_backward_workspace", &cosine_topk_backward_workspace);
  m.def("cuda_cosine_topk_backward", &cosine_topk_backward);
  m.def("cuda_knn_structure_workspace",
        [](int64_t n, int64_t k, int mode) { return cuda::knn_structure_workspace(n, k, Symmetrize(mode)); });
  m.def("cuda_knn_structure", &knn_structure);
  m.def("cuda_combine_edges", &combine_edges);
  m.def("cuda_combine_edges_backward", &combine_edges_backward);
  m.def("cuda_normalize_edges_workspace", &normalize_edges_workspace);
  m.def("cuda_normalize_edges_backward_workspace", &normalize_edges_backward_workspace);
  m.def("cuda_normalize_edges", &normalize_edges);
  m.def("cuda_normalize_edges_backward", &normalize_edges_backward);
  m.def("cuda_propagate_workspace", &propagate_workspace);
  m.def("cuda_propagate", &propagate);
  m.def("cuda_propagate_backward_workspace", &propagate_backward_workspace);
  m.def("cuda_propagate_backward", &propagate_backward);
  m.def("cuda_dense_unit_rows", &dense_unit_rows);
  m.def("cuda_dense_unit_rows_backward", &dense_unit_rows_backward);
  m.def("cuda_dense_loss_workspace", &cuda::dense_loss_workspace);
  m.def("cuda_dense_loss", &dense_loss);
}

}  // namespace gloss::bindings

#if defined(GLOSS_EMULATE)
PYBIND11_MODULE(_C_emulated, m) {
  m.doc() = "The CUDA core of gloss_kernels on the CPU, for tests.";
  m.def("seed", [](unsigned seed) { emulator::seed() = seed; });  // of the order of blocks, warps and lanes; 0: in turn
  m.def("pretend", [](int driver_version, int count_error, int kernel_error, int kernel_device) {
    emulator::driver = {driver_version, count_error, kernel_error, kernel_device};
  });
  gloss::bindings::bind_cuda(m);
}
#endif
