// Gradient of label propagation (gloss.h: cpu::propagate_backward): one solve with the same system, one pass over edges.
//
// Harmonic, A = D (1 + eps) - M on the hidden rows U: A F_U = M_UL F_L + eps D_U prior and A Lam = G give, for an
// independent entry M_ij in a hidden row i, with Lam = 0 elsewhere,
//   dL/dM_ij = Lam_i . (F_j - F_i) - eps Lam_i . (F_i - prior)
// (M_ij stands in the sum M F, and through D_i on the diagonal and in the right side). An undirected weight is two
// entries; each gets half the sum of both: -(Lam_i - Lam_j) . (F_i - F_j) / 2 - (h_i + h_j) / 2, with
// h_i = eps Lam_i . (F_i - prior). Spreading: dL/dM_ij = alpha Lam_i . F_j, so alpha (Lam_i . F_j + Lam_j . F_i) / 2.
#include <algorithm>
#include <type_traits>

#include "harmonic.h"
#include "multilevel.h"
#include "panels.h"
#include "rows.h"
#include "solver.h"
#include "spreading.h"

namespace gloss::cpu {
namespace {

// Each pair once, by its lower row, which also writes the mirror entry.
template <class Gradient>
void write_pairs(Csr graph, int threads, double* grad_values, const Gradient& gradient) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 256)
  for (int64_t i = 0; i < graph.n; ++i)
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e) {
      const int64_t j = graph.col[e];
      if (j <= i) continue;
      const int64_t *begin = graph.col + graph.crow[j], *end = graph.col + graph.crow[j + 1];
      const int64_t* mirror = std::lower_bound(begin, end, i);
      grad_values[e] = gradient(i, j);
      if (mirror != end && *mirror == i) grad_values[mirror - graph.col] = grad_values[e];
    }
}

// Solves for Lam [rows, C] with dL/dF on the right.
template <class S, class T, class Make>
std::vector<S> solve_adjoint(const std::vector<int64_t>& node, int64_t num_classes, const T* grad_result,
                             const PropagateOptions& options, Ticker& ticker, double* residual, int64_t& iterations,
                             const Make& make) {
  const int64_t rows = int64_t(node.size());
  std::vector<S> lam(static_cast<size_t>(rows * num_classes));
  const auto fill = [&](int64_t first, int64_t columns, int64_t width, S* b, S*) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < columns; ++c)
        b[row * width + c] = S(grad_result[node[row] * num_classes + first + c]);
  };
  const auto take = [&](int64_t first, int64_t columns, int64_t width, const S* x) {
    for (int64_t row = 0; row < rows; ++row)
      std::copy_n(x + row * width, columns, lam.data() + row * num_classes + first);
  };
  iterations = solve_panels<S>(rows, num_classes, options.threads, ticker, residual, false, make, fill, take);
  return lam;
}

template <class S, class T>
int64_t harmonic_backward(Csr graph, int64_t num_classes, HarmonicRows& rows, const uint8_t* reachable, const T* prior,
                          const T* result, const T* grad_result, const PropagateOptions& options, Ticker& ticker,
                          double* grad_values, double* residual) {
  const Hierarchy<S> hierarchy = order_rows<S>(rows, options.threads);
  int64_t iterations;
  const std::vector<S> lam = solve_adjoint<S>(
      rows.node, num_classes, grad_result, options, ticker, residual, iterations,
      [&](int threads) { return MultilevelSolver<S>(hierarchy, Until::relative, options.tol, options.max_iter, threads); });
  const PanelKernels<S>& kernels = panel_kernels<S>();
  const std::vector<S> nothing(static_cast<size_t>(num_classes), S(0));    // Lam of a fixed row
  std::vector<double> pull(static_cast<size_t>(rows.rows()), 0.0);         // h
  if (options.prior_strength > 0) {
#pragma omp parallel for num_threads(options.threads) schedule(static)
    for (int64_t row = 0; row < rows.rows(); ++row) {
      double sum = 0;
      for (int64_t c = 0; c < num_classes; ++c)
        sum += double(lam[row * num_classes + c]) * (double(result[rows.node[row] * num_classes + c]) - double(prior[c]));
      pull[row] = options.prior_strength * sum;
    }
  }
  write_pairs(graph, options.threads, grad_values, [&](int64_t i, int64_t j) -> double {
    const int32_t row_i = rows.row_of[i], row_j = rows.row_of[j];
    if (!reachable[i] || !reachable[j] || (row_i < 0 && row_j < 0)) return 0;
    const S* lam_i = row_i < 0 ? nothing.data() : lam.data() + row_i * num_classes;
    const S* lam_j = row_j < 0 ? nothing.data() : lam.data() + row_j * num_classes;
    const T *f_i = result + i * num_classes, *f_j = result + j * num_classes;
    const double own = (row_i < 0 ? 0 : pull[row_i]) + (row_j < 0 ? 0 : pull[row_j]);
    if constexpr (std::is_same_v<T, float>)
      return -0.5 * (kernels.dot_differences_f32(num_classes, lam_i, lam_j, f_i, f_j) + own);
    else return -0.5 * (kernels.dot_differences_f64(num_classes, lam_i, lam_j, f_i, f_j) + own);
  });
  return iterations;
}

template <class T>
int64_t spreading_backward(Csr graph, const double* values, int64_t num_classes, const uint8_t* reachable,
                           const T* result, const T* grad_result, const PropagateOptions& options, Ticker& ticker,
                           double* grad_values, double* residual) {
  const Spreading<T> system = spreading_system<T>(graph, values, reachable, options);
  int64_t iterations;
  const std::vector<T> lam = solve_adjoint<T>(
      system.node, num_classes, grad_result, options, ticker, residual, iterations,
      [&](int threads) { return PanelSolver<T>(system.system(), options.tol, options.max_iter, threads); });
  const PanelKernels<T>& kernels = panel_kernels<T>();
  write_pairs(graph, options.threads, grad_values, [&](int64_t i, int64_t j) -> double {
    if (!reachable[i] || !reachable[j]) return 0;
    const T *lam_i = lam.data() + system.row_of[i] * num_classes, *lam_j = lam.data() + system.row_of[j] * num_classes;
    const T *f_i = result + i * num_classes, *f_j = result + j * num_classes;
    return 0.5 * options.alpha * (kernels.dot(num_classes, lam_i, f_j) + kernels.dot(num_classes, lam_j, f_i));
  });
  return iterations;
}

}  // namespace

template <class T>
int64_t propagate_backward(Csr graph, const double* values, int64_t num_classes, const uint8_t* fixed,
                           const uint8_t* reachable, const T* prior, const T* result, const T* grad_result,
                           PropagateOptions options, double* grad_values, double* residual) {
  Ticker ticker(options.progress);
  ticker.stage(1, double(Watch::kWork) * double((num_classes + kPanel - 1) / kPanel));
  if (is_spreading(options))
    return spreading_backward(graph, values, num_classes, reachable, result, grad_result, options, ticker, grad_values,
                              residual);
  HarmonicRows rows = harmonic_rows(graph, values, fixed, reachable, options);
  return needs_double(rows, options.tol)
             ? harmonic_backward<double>(graph, num_classes, rows, reachable, prior, result, grad_result, options,
                                         ticker, grad_values, residual)
             : harmonic_backward<float>(graph, num_classes, rows, reachable, prior, result, grad_result, options,
                                        ticker, grad_values, residual);
}

#define GLOSS_INSTANTIATE(T)                                                                                         \
  template int64_t propagate_backward<T>(Csr, const double*, int64_t, const uint8_t*, const uint8_t*, const T*,      \
                                         const T*, const T*, PropagateOptions, double*, double*);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
