// The CUDA half of the bindings: _C.cuda where nvcc was found, and the module _C_emulated over the same sources compiled
// for the CPU (csrc/emulator). A function that needs device memory takes it as `workspace`, of the size that the function
// NAME_workspace returns for the same leading arguments.
#include "bindings.h"
#include "gloss_cuda.h"

namespace {

using namespace gloss::bindings;
namespace cuda = gloss::cuda;

cuda::Queue to_queue(int device, Address stream) { return {device, at<void>(stream)}; }

// ------------------------------------------------------------------------------------------------ topk
int64_t cosine_topk_workspace(View queries, View corpus, int64_t k, bool exclude_self, int64_t hint_k) {
  return cuda::cosine_topk_workspace(to_view(queries), to_view(corpus), k, exclude_self, hint_k);
}
void cosine_topk(View queries, View corpus, int64_t k, bool exclude_self, Address hint, int64_t hint_k, Address values,
                 Address indices, Address status, Address workspace, int device, Address stream) {
  py::gil_scoped_release no_gil;
  cuda::cosine_topk(to_view(queries), to_view(corpus), k, exclude_self, at<int64_t>(hint), hint_k, at<void>(values),
                    at<int64_t>(indices), at<cuda::TopkStatus>(status), at<void>(workspace), to_queue(device, stream));
}

int64_t cosine_topk_backward_workspace(View queries, View corpus, int64_t k, bool is_double) {
  return by_type(is_double, [&](auto type) {
    return cuda::cosine_topk_backward_workspace<decltype(type)>(to_view(queries), to_view(corpus), k);
  });
}
void cosine_topk_backward(View queries, View corpus, int64_t k, bool is_double, Address indices, Address grad_values,
                          Address grad_queries, Address grad_corpus, Address workspace, int device, Address stream) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::cosine_topk_backward<T>(to_view(queries), to_view(corpus), k, at<int64_t>(indices), at<T>(grad_values),
                                  at<T>(grad_queries), at<T>(grad_corpus), at<void>(workspace),
                                  to_queue(device, stream));
  });
}

// ----------------------------------------------------------------------------------------------- graph
void knn_structure(int64_t n, int64_t k, Address indices, const std::string& symmetrize, int64_t capacity, Address crow,
                   Address col, Address forward, Address reverse, Address workspace, int device, Address stream) {
  const gloss::Symmetrize mode = to_symmetrize(symmetrize);
  py::gil_scoped_release no_gil;
  cuda::knn_structure(at<int64_t>(indices), n, k, mode, capacity, at<int64_t>(crow), at<int64_t>(col),
                      at<int64_t>(forward), at<int64_t>(reverse), at<void>(workspace), to_queue(device, stream));
}

void combine_edges(int64_t nnz, int64_t num_weights, bool is_double, Address forward, Address reverse,
                   const std::string& symmetrize, Address weights, Address values, int device, Address stream) {
  const gloss::Symmetrize mode = to_symmetrize(symmetrize);
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::combine_edges<T>(nnz, num_weights, at<int64_t>(forward), at<int64_t>(reverse), mode, at<T>(weights),
                           at<T>(values), to_queue(device, stream));
  });
}

void combine_edges_backward(int64_t nnz, int64_t num_weights, bool is_double, Address forward, Address reverse,
                            const std::string& symmetrize, Address weights, Address grad_values, Address grad_weights,
                            int device, Address stream) {
  const gloss::Symmetrize mode = to_symmetrize(symmetrize);
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::combine_edges_backward<T>(nnz, num_weights, at<int64_t>(forward), at<int64_t>(reverse), mode, at<T>(weights),
                                    at<T>(grad_values), at<T>(grad_weights), to_queue(device, stream));
  });
}

int64_t normalize_edges_workspace(int64_t n, int64_t capacity, bool is_double, const std::string& normalization) {
  const gloss::Normalization mode = to_normalization(normalization);
  return by_type(is_double,
                 [&](auto type) { return cuda::normalize_edges_workspace<decltype(type)>(n, capacity, mode); });
}
void normalize_edges(int64_t n, int64_t capacity, bool is_double, const std::string& normalization, Address crow,
                     Address col, Address values, Address normalized, Address workspace, int device, Address stream) {
  const gloss::Normalization mode = to_normalization(normalization);
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::normalize_edges<T>(to_csr(crow, col, n), capacity, at<T>(values), mode, at<T>(normalized),
                             at<void>(workspace), to_queue(device, stream));
  });
}

int64_t normalize_edges_backward_workspace(int64_t n, int64_t capacity, bool is_double,
                                           const std::string& normalization) {
  const gloss::Normalization mode = to_normalization(normalization);
  return by_type(is_double, [&](auto type) {
    return cuda::normalize_edges_backward_workspace<decltype(type)>(n, capacity, mode);
  });
}
void normalize_edges_backward(int64_t n, int64_t capacity, bool is_double, const std::string& normalization,
                              Address crow, Address col, Address values, Address grad_normalized, Address grad_values,
                              Address workspace, int device, Address stream) {
  const gloss::Normalization mode = to_normalization(normalization);
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::normalize_edges_backward<T>(to_csr(crow, col, n), capacity, at<T>(values), mode, at<T>(grad_normalized),
                                      at<T>(grad_values), at<void>(workspace), to_queue(device, stream));
  });
}

// ------------------------------------------------------------------------------------------- propagate
int64_t propagate_workspace(int64_t n, int64_t capacity, int64_t num_classes, bool is_double) {
  return by_type(is_double,
                 [&](auto type) { return cuda::propagate_workspace<decltype(type)>(n, capacity, num_classes); });
}
void propagate(int64_t n, int64_t capacity, int64_t num_classes, bool is_double, Address crow, Address col,
               Address values, Address fixed, Address boundary, bool has_initial, Address prior, double alpha,
               double prior_strength, double tol, int64_t max_iter, Address result, Address residual, Address reachable,
               Address used_tol, Address iterations, Address workspace, int device, Address stream) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::propagate<T>(to_csr(crow, col, n), capacity, at<T>(values), num_classes, at<uint8_t>(fixed), at<T>(boundary),
                       has_initial, at<T>(prior), {alpha, prior_strength, tol, max_iter, 1}, at<T>(result),
                       at<double>(residual), at<uint8_t>(reachable), at<double>(used_tol), at<int64_t>(iterations),
                       at<void>(workspace), to_queue(device, stream));
  });
}

int64_t propagate_backward_workspace(int64_t n, int64_t capacity, int64_t num_classes, bool is_double) {
  return by_type(is_double, [&](auto type) {
    return cuda::propagate_backward_workspace<decltype(type)>(n, capacity, num_classes);
  });
}
void propagate_backward(int64_t n, int64_t capacity, int64_t num_classes, bool is_double, Address crow, Address col,
                        Address values, Address fixed, Address reachable, Address prior, Address result,
                        Address grad_result, double alpha, double prior_strength, Address tol, int64_t max_iter,
                        Address grad_values, Address residual, Address iterations, Address workspace, int device,
                        Address stream) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::propagate_backward<T>(to_csr(crow, col, n), capacity, at<T>(values), num_classes, at<uint8_t>(fixed),
                                at<uint8_t>(reachable), at<T>(prior), at<T>(result), at<T>(grad_result),
                                {alpha, prior_strength, 0.0, max_iter, 1}, at<double>(tol),
                                at<T>(grad_values), at<double>(residual), at<int64_t>(iterations), at<void>(workspace),
                                to_queue(device, stream));
  });
}

// ------------------------------------------------------------------------------------------------ loss
void flow(int64_t rows, int64_t columns, bool is_double, Address crow, Address col, Address weight, Address excess,
          Address x, Address right, Address out, int device, Address stream) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::flow<T>({rows, at<int64_t>(crow), at<int32_t>(col), at<T>(weight), at<T>(excess)}, columns, at<T>(x),
                  at<T>(right), at<T>(out), to_queue(device, stream));
  });
}
void flow_gradient(int64_t n, int64_t columns, Address crow, Address col, Address lam, Address f, Address pull,
                   Address reachable, double lam_noise, double f_noise, Address grad_values, int device,
                   Address stream) {
  py::gil_scoped_release no_gil;
  cuda::flow_gradient(to_csr(crow, col, n), columns,
                      {at<double>(lam), at<double>(f), at<double>(pull), at<uint8_t>(reachable), lam_noise, f_noise},
                      at<double>(grad_values), to_queue(device, stream));
}

void eliminate(int64_t n, int64_t stride, Address a, int device, Address stream) {
  py::gil_scoped_release no_gil;
  cuda::eliminate(n, stride, at<double>(a), to_queue(device, stream));
}
void dense_unit_rows(int64_t n, int64_t cols, bool is_double, Address x, Address unit, Address inverse_norms,
                     int device, Address stream) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::dense_unit_rows<T>(n, cols, at<T>(x), at<T>(unit), at<double>(inverse_norms), to_queue(device, stream));
  });
}
void dense_unit_rows_backward(int64_t n, int64_t cols, bool is_double, Address unit, Address inverse_norms,
                              Address grad_unit, Address grad, int device, Address stream) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::dense_unit_rows_backward<T>(n, cols, at<T>(unit), at<double>(inverse_norms), at<T>(grad_unit), at<T>(grad),
                                      to_queue(device, stream));
  });
}

void dense_loss(int64_t n, int64_t num_classes, bool is_double, Address cosines, Address inverse_sigma, Address labels,
                Address targets, Address scored, Address class_weight, double alpha, const std::string& normalization,
                const std::string& target, double smoothing, Address loss, Address result, Address reachable,
                Address lacks, Address grad_cosines, Address grad_inverse_sigma, Address workspace, int device,
                Address stream) {
  const gloss::cpu::DenseOptions options{alpha, to_normalization(normalization), to_target(target),
                                         smoothing, 1};
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cuda::dense_loss<T>({n, num_classes, at<T>(cosines), at<double>(inverse_sigma), at<int64_t>(labels),
                         at<int64_t>(targets), at<uint8_t>(scored), at<double>(class_weight)},
                        options,
                        {at<T>(loss), at<T>(result), at<uint8_t>(reachable), at<double>(lacks), at<T>(grad_cosines),
                         at<double>(grad_inverse_sigma)},
                        at<void>(workspace), to_queue(device, stream));
  });
}

}  // namespace

namespace gloss::bindings {

void bind_cuda(py::module_ m) {
  m.def("problem", &cuda::problem, arg("device"));
  m.def("cosine_topk_workspace", &cosine_topk_workspace, arg("queries"), arg("corpus"), arg("k"), arg("exclude_self"),
        arg("hint_k"));
  m.def("cosine_topk", &cosine_topk, arg("queries"), arg("corpus"), arg("k"), arg("exclude_self"), arg("hint"),
        arg("hint_k"), arg("values"), arg("indices"), arg("status"), arg("workspace"), arg("device"), arg("stream"));
  m.def("cosine_topk_backward_workspace", &cosine_topk_backward_workspace, arg("queries"), arg("corpus"), arg("k"),
        arg("is_double"));
  m.def("cosine_topk_backward", &cosine_topk_backward, arg("queries"), arg("corpus"), arg("k"), arg("is_double"),
        arg("indices"), arg("grad_values"), arg("grad_queries"), arg("grad_corpus"), arg("workspace"), arg("device"),
        arg("stream"));
  m.def("knn_structure_workspace", &cuda::knn_structure_workspace, arg("n"), arg("k"));
  m.def("knn_structure", &knn_structure, arg("n"), arg("k"), arg("indices"), arg("symmetrize"), arg("capacity"),
        arg("crow"), arg("col"), arg("forward"), arg("reverse"), arg("workspace"), arg("device"), arg("stream"));
  m.def("combine_edges", &combine_edges, arg("nnz"), arg("num_weights"), arg("is_double"), arg("forward"),
        arg("reverse"), arg("symmetrize"), arg("weights"), arg("values"), arg("device"), arg("stream"));
  m.def("combine_edges_backward", &combine_edges_backward, arg("nnz"), arg("num_weights"), arg("is_double"),
        arg("forward"), arg("reverse"), arg("symmetrize"), arg("weights"), arg("grad_values"), arg("grad_weights"),
        arg("device"), arg("stream"));
  m.def("normalize_edges_workspace", &normalize_edges_workspace, arg("n"), arg("capacity"), arg("is_double"),
        arg("normalization"));
  m.def("normalize_edges", &normalize_edges, arg("n"), arg("capacity"), arg("is_double"), arg("normalization"),
        arg("crow"), arg("col"), arg("values"), arg("normalized"), arg("workspace"), arg("device"), arg("stream"));
  m.def("normalize_edges_backward_workspace", &normalize_edges_backward_workspace, arg("n"), arg("capacity"),
        arg("is_double"), arg("normalization"));
  m.def("normalize_edges_backward", &normalize_edges_backward, arg("n"), arg("capacity"), arg("is_double"),
        arg("normalization"), arg("crow"), arg("col"), arg("values"), arg("grad_normalized"), arg("grad_values"),
        arg("workspace"), arg("device"), arg("stream"));
  m.def("propagate_workspace", &propagate_workspace, arg("n"), arg("capacity"), arg("num_classes"), arg("is_double"));
  m.def("propagate", &propagate, arg("n"), arg("capacity"), arg("num_classes"), arg("is_double"), arg("crow"),
        arg("col"), arg("values"), arg("fixed"), arg("boundary"), arg("has_initial"), arg("prior"),
        arg("alpha"), arg("prior_strength"), arg("tol"), arg("max_iter"), arg("result"), arg("residual"),
        arg("reachable"), arg("used_tol"), arg("iterations"), arg("workspace"), arg("device"), arg("stream"));
  m.def("propagate_backward_workspace", &propagate_backward_workspace, arg("n"), arg("capacity"), arg("num_classes"),
        arg("is_double"));
  m.def("propagate_backward", &propagate_backward, arg("n"), arg("capacity"), arg("num_classes"), arg("is_double"),
        arg("crow"), arg("col"), arg("values"), arg("fixed"), arg("reachable"), arg("prior"), arg("result"),
        arg("grad_result"), arg("alpha"), arg("prior_strength"), arg("tol"), arg("max_iter"),
        arg("grad_values"), arg("residual"), arg("iterations"), arg("workspace"), arg("device"), arg("stream"));
  m.def("flow", &flow, arg("rows"), arg("columns"), arg("is_double"), arg("crow"), arg("col"), arg("weight"),
        arg("excess"), arg("x"), arg("right"), arg("out"), arg("device"), arg("stream"));
  m.def("flow_gradient", &flow_gradient, arg("n"), arg("columns"), arg("crow"), arg("col"), arg("lam"), arg("f"),
        arg("pull"), arg("reachable"), arg("lam_noise"), arg("f_noise"), arg("grad_values"), arg("device"),
        arg("stream"));
  m.def("dense_unit_rows", &dense_unit_rows, arg("n"), arg("cols"), arg("is_double"), arg("x"), arg("unit"),
        arg("inverse_norms"), arg("device"), arg("stream"));
  m.def("dense_unit_rows_backward", &dense_unit_rows_backward, arg("n"), arg("cols"), arg("is_double"), arg("unit"),
        arg("inverse_norms"), arg("grad_unit"), arg("grad"), arg("device"), arg("stream"));
  m.def("eliminate", &eliminate, arg("n"), arg("stride"), arg("a"), arg("device"), arg("stream"));
  m.def("dense_loss_workspace", &cuda::dense_loss_workspace, arg("n"), arg("num_classes"));
  m.def("dense_loss", &dense_loss, arg("n"), arg("num_classes"), arg("is_double"), arg("cosines"),
        arg("inverse_sigma"), arg("labels"), arg("targets"), arg("scored"), arg("class_weight"),
        arg("alpha"), arg("normalization"), arg("target"), arg("smoothing"), arg("loss"), arg("result"),
        arg("reachable"), arg("lacks"), arg("grad_cosines"), arg("grad_inverse_sigma"), arg("workspace"),
        arg("device"), arg("stream"));
}

}  // namespace gloss::bindings

#if defined(GLOSS_EMULATE)
PYBIND11_MODULE(_C_emulated, m) {
  m.doc() = "The CUDA core of gloss_kernels on the CPU, for tests.";
  m.def("seed", [](unsigned seed) { emulator::seed() = seed; });  // of the order of blocks, warps and lanes; 0: in turn
  m.def("pretend", [](int driver_version, int count_error, int kernel_error, int kernel_device) {
    emulator::driver = {driver_version, count_error, kernel_error, kernel_device};
  });
  // Capture of stream 0, the stream of CPU tensors; replay(first, last) runs a part of what was kept (emulator/capture.h).
  m.def("begin_capture", [] { emulator::begin_capture(nullptr); });
  m.def("end_capture", &emulator::end_capture);
  m.def("is_capturing", [] { return emulator::capture.on; });
  m.def("captured", [] { return emulator::capture.work.size(); });
  m.def("replay", [](size_t first, size_t last) {
    py::gil_scoped_release no_gil;
    emulator::replay(first, last);
  });
  m.def("device_switches", [] { return emulator::device_switches; });  // calls of cudaSetDevice so far
  gloss::bindings::bind_cuda(m);
}
#endif
