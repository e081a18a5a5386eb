// Python's way to the core: pointers and sizes in, calls of gloss.h with the GIL released. The CUDA half is
// bindings_cuda.cpp. The Python side (gloss_kernels/_cpu.py) allocates every buffer and has checked dtypes and shapes.
#include "bindings.h"
#include "cpu/isa.h"

using namespace gloss;
using namespace gloss::bindings;

namespace {

// Ctrl-C and the caller's progress function; runs on the calling thread, which gave up the GIL.
struct Reporter {
  py::object function;
  Progress progress() {
    return {[](void* self, double done) { return static_cast<Reporter*>(self)->report(done); }, this};
  }
  bool report(double done) {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) return false;
    if (function.is_none()) return true;
    try {
      function(done);
    } catch (py::error_already_set& error) {
      error.restore();
      return false;
    }
    return true;
  }
};

py::dict cosine_topk(View queries, View corpus, int64_t k, bool exclude_self, Address hint, int64_t hint_k,
                     Address values, Address indices, int threads, py::object function) {
  Reporter reporter{std::move(function)};
  cpu::TopkStats stats{};
  try {
    py::gil_scoped_release no_gil;
    cpu::cosine_topk(to_view(queries), to_view(corpus), k, exclude_self, at<int64_t>(hint), hint_k, at<void>(values),
                     at<int64_t>(indices), threads, reporter.progress(), &stats);
  } catch (const Cancelled&) {
    throw py::error_already_set();  // the KeyboardInterrupt or the exception of the progress function
  }
  if (!reporter.report(1)) throw py::error_already_set();
  py::dict out;
  out["candidates"] = stats.candidates;
  out["recomputed_rows"] = stats.recomputed_rows;
  out["workspace_bytes"] = stats.workspace_bytes;
  out["kernel"] = stats.kernel ? stats.kernel : "";
  return out;
}

void cosine_topk_backward(View queries, View corpus, int64_t k, Address indices, bool is_double,
                          Address grad_values, Address grad_queries, Address grad_corpus, int threads) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::cosine_topk_backward<T>(to_view(queries), to_view(corpus), k, at<int64_t>(indices), at<T>(grad_values), at<T>(grad_queries),
                                 at<T>(grad_corpus), threads);
  });
}

void knn_structure(Address indices, int64_t n, int64_t k, int mode, Address crow, Address col, Address forward,
                   Address reverse, int threads) {
  py::gil_scoped_release no_gil;
  cpu::knn_structure(at<int64_t>(indices), n, k, Symmetrize(mode), at<int64_t>(crow), at<int64_t>(col),
                     at<int64_t>(forward), at<int64_t>(reverse), threads);
}

void combine_edges(int64_t nnz, Address forward, Address reverse, int mode, bool is_double, Address weights,
                   Address values, int threads) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::combine_edges<T>(nnz, at<int64_t>(forward), at<int64_t>(reverse), Symmetrize(mode), at<T>(weights),
                          at<T>(values), threads);
  });
}

void combine_edges_backward(int64_t nnz, int64_t num_weights, Address forward, Address reverse, int mode,
                            bool is_double, Address weights, Address grad_values, Address grad_weights, int threads) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::combine_edges_backward<T>(nnz, num_weights, at<int64_t>(forward), at<int64_t>(reverse), Symmetrize(mode),
                                   at<T>(weights), at<T>(grad_values), at<T>(grad_weights), threads);
  });
}

void normalize_edges(Address crow, Address col, int64_t n, bool is_double, Address values, int mode,
                     Address normalized, int threads) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::normalize_edges<T>({at<int64_t>(crow), at<int64_t>(col), n}, at<T>(values), Normalization(mode),
                            at<T>(normalized), threads);
  });
}

void normalize_edges_backward(Address crow, Address col, int64_t n, bool is_double, Address values, int mode,
                              Address grad_normalized, Address grad_values, int threads) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::normalize_edges_backward<T>({at<int64_t>(crow), at<int64_t>(col), n}, at<T>(values), Normalization(mode),
                                     at<T>(grad_normalized), at<T>(grad_values), threads);
  });
}

int64_t propagate(Address crow, Address col, int64_t n, bool is_double, Address values, int64_t num_classes,
                  Address fixed, Address boundary, bool has_initial, Address prior, Options options, Address result,
                  Address residual, Address reachable, Address used_tol) {
  py::gil_scoped_release no_gil;
  return by_type(is_double, [&](auto type) {
    using T = decltype(type);
    return cpu::propagate<T>({at<int64_t>(crow), at<int64_t>(col), n}, at<T>(values), num_classes, at<uint8_t>(fixed),
                             at<T>(boundary), has_initial, at<T>(prior), to_options(options), at<T>(result),
                             at<double>(residual), at<uint8_t>(reachable), at<double>(used_tol));
  });
}

int64_t propagate_backward(Address crow, Address col, int64_t n, bool is_double, Address values, int64_t num_classes,
                           Address fixed, Address reachable, Address prior, Address result, Address grad_result,
                           Options options, Address grad_values, Address residual) {
  py::gil_scoped_release no_gil;
  return by_type(is_double, [&](auto type) {
    using T = decltype(type);
    return cpu::propagate_backward<T>({at<int64_t>(crow), at<int64_t>(col), n}, at<T>(values), num_classes,
                                      at<uint8_t>(fixed), at<uint8_t>(reachable), at<T>(prior), at<T>(result),
                                      at<T>(grad_result), to_options(options), at<T>(grad_values),
                                      at<double>(residual));
  });
}

void dense_unit_rows(int64_t n, int64_t cols, bool is_double, Address x, Address unit, Address inverse_norms,
                     int threads) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::dense_unit_rows<T>(n, cols, at<T>(x), at<T>(unit), at<double>(inverse_norms), threads);
  });
}

void dense_unit_rows_backward(int64_t n, int64_t cols, bool is_double, Address unit, Address inverse_norms,
                              Address grad_unit, Address grad, int threads) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::dense_unit_rows_backward<T>(n, cols, at<T>(unit), at<double>(inverse_norms), at<T>(grad_unit), at<T>(grad),
                                     threads);
  });
}

void dense_product(int64_t n, int64_t k, int64_t m, Address a, Address b, bool transposed, Address c, int threads) {
  py::gil_scoped_release no_gil;
  cpu::dense_product(n, k, m, at<float>(a), at<float>(b), transposed, at<float>(c), threads);
}

void dense_loss(DenseArguments problem, DenseHow how, DenseOutputs outputs) {
  py::gil_scoped_release no_gil;
  by_type(std::get<2>(problem), [&](auto type) {
    using T = decltype(type);
    cpu::dense_loss<T>(to_dense_problem<T>(problem), to_dense_options(how), to_dense_result<T>(outputs));
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of gloss_kernels; gloss_kernels._native calls it.";
  m.def("isa", [] { return cpu::isa_name(cpu::isa()); });
  m.def("cosine_topk", &cosine_topk);
  m.def("cosine_topk_backward", &cosine_topk_backward);
  m.def("knn_structure", &knn_structure);
  m.def("combine_edges", &combine_edges);
  m.def("combine_edges_backward", &combine_edges_backward);
  m.def("normalize_edges", &normalize_edges);
  m.def("normalize_edges_backward", &normalize_edges_backward);
  m.def("propagate", &propagate);
  m.def("propagate_backward", &propagate_backward);
  m.def("dense_unit_rows", &dense_unit_rows);
  m.def("dense_unit_rows_backward", &dense_unit_rows_backward);
  m.def("dense_product", &dense_product);
  m.def("dense_loss", &dense_loss);
#if defined(GLOSS_CUDA)
  m.def("cuda_architectures", [] { return GLOSS_CUDA_ARCHITECTURES; });
  bind_cuda(m);
#else
  m.def("cuda_architectures", [] { return ""; });
  m.def("cuda_problem", [](int) { return "this build has no CUDA core"; });
#endif
}
