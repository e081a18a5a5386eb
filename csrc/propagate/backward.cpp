// Gradient of label propagation (gloss.h: cpu::propagate_backward): one solve with the same system, one pass over edges.
//
// Harmonic, A = D (1 + eps) - M on the hidden rows U: A F_U = M_UL F_L + eps D_U prior and A Lam = G give, for an
// independent entry M_ij in a hidden row i, with Lam = 0 elsewhere,
//   dL/dM_ij = Lam_i . (F_j - F_i) - eps Lam_i . (F_i - prior)
// (M_ij stands in the sum M F, and through D_i on the diagonal and in the right side). An undirected weight is two
// entries; each gets half the sum of both: -(Lam_i - Lam_j) . (F_i - F_j) / 2 - (h_i + h_j) / 2, with
// h_i = eps Lam_i . (F_i - prior). Spreading: dL/dM_ij = alpha Lam_i . F_j, so alpha (Lam_i . F_j + Lam_j . F_i) / 2.
#include <algorithm>

#include "panels.h"

namespace gloss::cpu {

template <class T>
int64_t propagate_backward(Csr graph, const T* values, int64_t num_classes, const uint8_t* fixed,
                           const uint8_t* reachable, const T* prior, const T* result, const T* grad_result,
                           PropagateOptions options, T* grad_values, double* residual) {
  const bool spreading = is_spreading(options);
  const double eps = options.prior_strength;
  const Hidden<T> hidden = hidden_system(graph, values, fixed, reachable, options);
  const int64_t rows = hidden.rows(), stride = num_classes;
  std::vector<T> lam(static_cast<size_t>(rows * stride));  // [rows, num_classes]
  const auto fill = [&](int64_t first, int64_t columns, int64_t width, T* b, T*) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < columns; ++c)
        b[row * width + c] = T(hidden.scale[row] * double(grad_result[hidden.node[row] * stride + first + c]));
  };
  const auto take = [&](int64_t first, int64_t columns, int64_t width, const T* x) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < columns; ++c)
        lam[row * stride + first + c] = T(hidden.scale[row] * double(x[row * width + c]));
  };
  const int64_t iterations = solve_panels(hidden, num_classes, options, residual, false, fill, take);

  const PanelKernels<T>& kernels = panel_kernels<T>();
  const std::vector<T> nothing(static_cast<size_t>(num_classes), T(0));  // Lam of a fixed row
  std::vector<double> pull(static_cast<size_t>(rows), 0.0);              // h
  if (eps > 0 && !spreading) {
#pragma omp parallel for num_threads(options.threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const T *own = lam.data() + row * stride, *f = result + hidden.node[row] * stride;
      pull[row] = eps * (kernels.dot(num_classes, own, f) - kernels.dot(num_classes, own, prior));
    }
  }

  const auto gradient = [&](int64_t i, int64_t j) -> double {
    const int32_t row_i = hidden.row_of[i], row_j = hidden.row_of[j];
    if (!reachable[i] || !reachable[j] || (row_i < 0 && row_j < 0)) return 0;
    const T* lam_i = row_i < 0 ? nothing.data() : lam.data() + row_i * stride;
    const T* lam_j = row_j < 0 ? nothing.data() : lam.data() + row_j * stride;
    const T *f_i = result + i * num_classes, *f_j = result + j * num_classes;
    if (spreading)
      return 0.5 * options.alpha * (kernels.dot(num_classes, lam_i, f_j) + kernels.dot(num_classes, lam_j, f_i));
    const double own = (row_i < 0 ? 0 : pull[row_i]) + (row_j < 0 ? 0 : pull[row_j]);
    return -0.5 * (kernels.dot_differences(num_classes, lam_i, lam_j, f_i, f_j) + own);
  };
  // Each pair once, by its lower row, which also writes the mirror entry.
#pragma omp parallel for num_threads(options.threads) schedule(dynamic, 256)
  for (int64_t i = 0; i < graph.n; ++i)
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e) {
      const int64_t j = graph.col[e];
      if (j <= i) continue;
      const int64_t *begin = graph.col + graph.crow[j], *end = graph.col + graph.crow[j + 1];
      const int64_t* mirror = std::lower_bound(begin, end, i);
      const T g = T(gradient(i, j));
      grad_values[e] = g;
      if (mirror != end && *mirror == i) grad_values[mirror - graph.col] = g;
    }
  return iterations;
}

#define GLOSS_INSTANTIATE(T)                                                                                         \
  template int64_t propagate_backward<T>(Csr, const T*, int64_t, const uint8_t*, const uint8_t*, const T*, const T*, \
                                         const T*, PropagateOptions, T*, double*);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
