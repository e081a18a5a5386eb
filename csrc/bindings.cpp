// Python's way to the C++ core: the module _C with the CPU's functions in _C.cpu, called with the GIL released, and, where
// nvcc was found, those of bindings_cuda.cpp in _C.cuda.
#include <algorithm>

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

// operation(progress), reporting to a Python function, or only looking for Ctrl-C where that is None.
template <class Operation>
void watched(py::object report, const Operation& operation) {
  Reporter reporter{std::move(report)};
  try {
    py::gil_scoped_release no_gil;
    operation(reporter.progress());
  } catch (const Cancelled&) {
    throw py::error_already_set();  // the KeyboardInterrupt or the exception of the progress function
  }
  if (!reporter.report(1)) throw py::error_already_set();
}

py::dict cosine_topk(View queries, View corpus, int64_t k, bool exclude_self, Address hint, int64_t hint_k,
                     Address values, Address indices, int threads, py::object report) {
  cpu::TopkStats stats{};
  watched(std::move(report), [&](Progress progress) {
    cpu::cosine_topk(to_view(queries), to_view(corpus), k, exclude_self, at<int64_t>(hint), hint_k, at<void>(values),
                     at<int64_t>(indices), threads, progress, &stats);
  });
  py::dict out;
  out["candidates"] = stats.candidates;
  out["recomputed_rows"] = stats.recomputed_rows;
  out["workspace_bytes"] = stats.workspace_bytes;
  out["kernel"] = stats.kernel ? stats.kernel : "";
  return out;
}

void cosine_topk_backward(View queries, View corpus, int64_t k, bool is_double, Address indices, Address grad_values,
                          Address grad_queries, Address grad_corpus, int threads) {
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::cosine_topk_backward<T>(to_view(queries), to_view(corpus), k, at<int64_t>(indices), at<T>(grad_values),
                                 at<T>(grad_queries), at<T>(grad_corpus), threads);
  });
}

void knn_structure(int64_t n, int64_t k, Address indices, const std::string& symmetrize, int64_t capacity, Address crow,
                   Address col, Address forward, Address reverse, int threads) {
  const Symmetrize mode = to_symmetrize(symmetrize);
  py::gil_scoped_release no_gil;
  cpu::knn_structure(at<int64_t>(indices), n, k, mode, capacity, at<int64_t>(crow), at<int64_t>(col),
                     at<int64_t>(forward), at<int64_t>(reverse), threads);
}

void combine_edges(int64_t nnz, int64_t num_weights, bool is_double, Address forward, Address reverse,
                   const std::string& symmetrize, Address weights, Address values, int threads) {
  const Symmetrize mode = to_symmetrize(symmetrize);
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::combine_edges<T>(nnz, num_weights, at<int64_t>(forward), at<int64_t>(reverse), mode, at<T>(weights),
                          at<T>(values), threads);
  });
}

void combine_edges_backward(int64_t nnz, int64_t num_weights, bool is_double, Address forward, Address reverse,
                            const std::string& symmetrize, Address weights, Address grad_values, Address grad_weights,
                            int threads) {
  const Symmetrize mode = to_symmetrize(symmetrize);
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::combine_edges_backward<T>(nnz, num_weights, at<int64_t>(forward), at<int64_t>(reverse), mode, at<T>(weights),
                                   at<T>(grad_values), at<T>(grad_weights), threads);
  });
}

void normalize_edges(int64_t n, int64_t capacity, bool is_double, const std::string& normalization, Address crow,
                     Address col, Address values, Address normalized, int threads) {
  const Normalization mode = to_normalization(normalization);
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::normalize_edges<T>(to_csr(crow, col, n), capacity, at<T>(values), mode, at<T>(normalized), threads);
  });
}

void normalize_edges_backward(int64_t n, int64_t capacity, bool is_double, const std::string& normalization,
                              Address crow, Address col, Address values, Address grad_normalized, Address grad_values,
                              int threads) {
  const Normalization mode = to_normalization(normalization);
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::normalize_edges_backward<T>(to_csr(crow, col, n), capacity, at<T>(values), mode, at<T>(grad_normalized),
                                     at<T>(grad_values), threads);
  });
}

void propagate(int64_t n, int64_t, int64_t num_classes, bool is_double, Address crow, Address col, Address values,
               Address fixed, Address boundary, bool has_initial, Address prior, double alpha, double prior_strength,
               double tol, int64_t max_iter, Address result, Address residual, Address reachable, Address used_tol,
               Address iterations, int threads, py::object report) {
  watched(std::move(report), [&](Progress progress) {
    by_type(is_double, [&](auto type) {
      using T = decltype(type);
      *at<int64_t>(iterations) = cpu::propagate<T>(
          to_csr(crow, col, n), at<double>(values), num_classes, at<uint8_t>(fixed), at<T>(boundary), has_initial,
          at<T>(prior), {alpha, prior_strength, tol, max_iter, threads, progress}, at<T>(result), at<double>(residual),
          at<uint8_t>(reachable), at<double>(used_tol));
    });
  });
}

void propagate_backward(int64_t n, int64_t, int64_t num_classes, bool is_double, Address crow, Address col,
                        Address values, Address fixed, Address reachable, Address prior, Address result,
                        Address grad_result, double alpha, double prior_strength, Address tol, int64_t max_iter,
                        Address grad_values, Address residual, Address iterations, int threads, py::object report) {
  watched(std::move(report), [&](Progress progress) {
    by_type(is_double, [&](auto type) {
      using T = decltype(type);
      const double within = std::max(*at<double>(tol), cpu::finest_tol<T>());
      *at<int64_t>(iterations) = cpu::propagate_backward<T>(
          to_csr(crow, col, n), at<double>(values), num_classes, at<uint8_t>(fixed), at<uint8_t>(reachable),
          at<T>(prior), at<T>(result), at<T>(grad_result),
          {alpha, prior_strength, within, max_iter, threads, progress}, at<double>(grad_values), at<double>(residual));
    });
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

void eliminate(int64_t n, int64_t stride, Address a) {
  py::gil_scoped_release no_gil;
  cpu::eliminate(n, stride, at<double>(a));
}

void edge_gradients(int64_t n, int64_t classes, int64_t stride, Address x, Address adjoint, Address gradient,
                    int threads) {
  py::gil_scoped_release no_gil;
  cpu::edge_gradients(n, classes, stride, at<double>(x), at<double>(adjoint), at<double>(gradient), threads);
}

void dense_loss(int64_t n, int64_t num_classes, bool is_double, Address cosines, Address inverse_sigma, Address labels,
                Address targets, Address scored, Address class_weight, double alpha, const std::string& normalization,
                const std::string& target, double smoothing, Address loss, Address result, Address reachable,
                Address lacks, Address grad_cosines, Address grad_inverse_sigma, int threads) {
  const cpu::DenseOptions options{alpha, to_normalization(normalization), to_target(target), smoothing,
                                  threads};
  py::gil_scoped_release no_gil;
  by_type(is_double, [&](auto type) {
    using T = decltype(type);
    cpu::dense_loss<T>({n, num_classes, at<T>(cosines), at<double>(inverse_sigma), at<int64_t>(labels),
                        at<int64_t>(targets), at<uint8_t>(scored), at<double>(class_weight)},
                       options,
                       {at<T>(loss), at<T>(result), at<uint8_t>(reachable), at<double>(lacks), at<T>(grad_cosines),
                        at<double>(grad_inverse_sigma)});
  });
}

void bind_cpu(py::module_ m) {
  m.def("cosine_topk", &cosine_topk, arg("queries"), arg("corpus"), arg("k"), arg("exclude_self"), arg("hint"),
        arg("hint_k"), arg("values"), arg("indices"), arg("threads"), arg("report"));
  m.def("cosine_topk_backward", &cosine_topk_backward, arg("queries"), arg("corpus"), arg("k"), arg("is_double"),
        arg("indices"), arg("grad_values"), arg("grad_queries"), arg("grad_corpus"), arg("threads"));
  m.def("knn_structure", &knn_structure, arg("n"), arg("k"), arg("indices"), arg("symmetrize"), arg("capacity"),
        arg("crow"), arg("col"), arg("forward"), arg("reverse"), arg("threads"));
  m.def("combine_edges", &combine_edges, arg("nnz"), arg("num_weights"), arg("is_double"), arg("forward"),
        arg("reverse"), arg("symmetrize"), arg("weights"), arg("values"), arg("threads"));
  m.def("combine_edges_backward", &combine_edges_backward, arg("nnz"), arg("num_weights"), arg("is_double"),
        arg("forward"), arg("reverse"), arg("symmetrize"), arg("weights"), arg("grad_values"), arg("grad_weights"),
        arg("threads"));
  m.def("normalize_edges", &normalize_edges, arg("n"), arg("capacity"), arg("is_double"), arg("normalization"),
        arg("crow"), arg("col"), arg("values"), arg("normalized"), arg("threads"));
  m.def("normalize_edges_backward", &normalize_edges_backward, arg("n"), arg("capacity"), arg("is_double"),
        arg("normalization"), arg("crow"), arg("col"), arg("values"), arg("grad_normalized"), arg("grad_values"),
        arg("threads"));
  m.def("propagate", &propagate, arg("n"), arg("capacity"), arg("num_classes"), arg("is_double"), arg("crow"),
        arg("col"), arg("values"), arg("fixed"), arg("boundary"), arg("has_initial"), arg("prior"),
        arg("alpha"), arg("prior_strength"), arg("tol"), arg("max_iter"), arg("result"), arg("residual"),
        arg("reachable"), arg("used_tol"), arg("iterations"), arg("threads"), arg("report"));
  m.def("propagate_backward", &propagate_backward, arg("n"), arg("capacity"), arg("num_classes"), arg("is_double"),
        arg("crow"), arg("col"), arg("values"), arg("fixed"), arg("reachable"), arg("prior"), arg("result"),
        arg("grad_result"), arg("alpha"), arg("prior_strength"), arg("tol"), arg("max_iter"),
        arg("grad_values"), arg("residual"), arg("iterations"), arg("threads"), arg("report"));
  m.def("dense_unit_rows", &dense_unit_rows, arg("n"), arg("cols"), arg("is_double"), arg("x"), arg("unit"),
        arg("inverse_norms"), arg("threads"));
  m.def("dense_unit_rows_backward", &dense_unit_rows_backward, arg("n"), arg("cols"), arg("is_double"), arg("unit"),
        arg("inverse_norms"), arg("grad_unit"), arg("grad"), arg("threads"));
  m.def("dense_product", &dense_product, arg("n"), arg("k"), arg("m"), arg("a"), arg("b"), arg("transposed"), arg("c"),
        arg("threads"));
  m.def("eliminate", &eliminate, arg("n"), arg("stride"), arg("a"));
  m.def("edge_gradients", &edge_gradients, arg("n"), arg("classes"), arg("stride"), arg("x"), arg("adjoint"),
        arg("gradient"), arg("threads"));
  m.def("dense_loss", &dense_loss, arg("n"), arg("num_classes"), arg("is_double"), arg("cosines"),
        arg("inverse_sigma"), arg("labels"), arg("targets"), arg("scored"), arg("class_weight"),
        arg("alpha"), arg("normalization"), arg("target"), arg("smoothing"), arg("loss"), arg("result"),
        arg("reachable"), arg("lacks"), arg("grad_cosines"), arg("grad_inverse_sigma"), arg("threads"));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of gloss_kernels; gloss_kernels/_backends/native.py calls it.";
  m.def("isa", [] { return cpu::isa_name(cpu::isa()); }, "The instruction set that the CPU kernels run on.");
  bind_cpu(m.def_submodule("cpu", "The C++ core."));
#if defined(GLOSS_CUDA)
  m.attr("cuda_architectures") = GLOSS_CUDA_ARCHITECTURES;
  bind_cuda(m.def_submodule("cuda", "The CUDA core."));
#else
  m.attr("cuda_architectures") = "";
#endif
}
