// Label propagation on the CPU, forward (gloss.h: cpu::propagate). Backward: backward_cpu.cpp.
#include <algorithm>
#include <cmath>

#include "panels.h"

namespace gloss::cpu {
namespace {

// Mean of the fixed rows, [num_classes].
template <class T>
std::vector<double> mean_of_fixed(int64_t n, int64_t num_classes, const uint8_t* fixed, const T* boundary) {
  std::vector<double> mean(static_cast<size_t>(num_classes), 0.0);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!fixed[i]) continue;
    ++count;
    for (int64_t c = 0; c < num_classes; ++c) mean[c] += double(boundary[i * num_classes + c]);
  }
  for (double& m : mean) m /= double(std::max<int64_t>(count, 1));
  return mean;
}

// Rows of the exact solution sum to what the fixed rows sum to, 1. What a row lacks (about tol; all of it, in a component
// that hangs on the labelled ones by a weight too small for the arithmetic) goes to the classes in the proportion they
// have among the fixed rows. To first order the gradient does not change: exact rows lack nothing.
template <class T>
void complete_rows(const Hidden<T>& hidden, int64_t num_classes, const std::vector<double>& mean, int threads,
                   T* result) {
  double total = 0;
  for (double m : mean) total += m;
  if (std::abs(total - 1) > 1e-6) return;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < hidden.rows(); ++row) {
    T* f = result + hidden.node[row] * num_classes;
    double lacks = total;
    for (int64_t c = 0; c < num_classes; ++c) lacks -= double(f[c]);
    for (int64_t c = 0; c < num_classes; ++c) f[c] += T(lacks * mean[c]);
  }
}

}  // namespace

template <class T>
int64_t propagate(Csr graph, const T* values, int64_t num_classes, const uint8_t* fixed, const T* boundary,
                  bool has_initial, const T* prior, PropagateOptions options, T* result, double* residual,
                  uint8_t* reachable) {
  const bool spreading = is_spreading(options);
  find_reachable(graph, values, fixed, reachable);
  const Hidden<T> hidden = hidden_system(graph, values, fixed, reachable, options);
  const int64_t rows = hidden.rows(), stride = num_classes;

  // Rows that are not solved for; the panels write the others.
#pragma omp parallel for num_threads(options.threads) schedule(static)
  for (int64_t i = 0; i < graph.n; ++i) {
    T* to = result + i * stride;
    if (hidden.row_of[i] >= 0) continue;
    if (reachable[i]) std::copy_n(boundary + i * stride, num_classes, to);
    else if (spreading) std::fill_n(to, num_classes, T(0));
    else std::copy_n(prior, num_classes, to);
  }

  const PanelKernels<T>& kernels = panel_kernels<T>();
  const auto fill = [&](int64_t first, int64_t columns, int64_t width, T* b, T* x) {
    if (!spreading) kernels.gather(hidden.border_system(), width, columns, stride, boundary + first, b);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = hidden.node[row];
      const double scale = hidden.scale[row];
      const double pull = spreading ? 0 : options.prior_strength * hidden.degree[row] * scale;
      const T* own = boundary + i * stride + first;
      for (int64_t c = 0; c < columns; ++c) {
        if (spreading && fixed[i]) b[row * width + c] = T((1 - options.alpha) * double(own[c]));
        if (pull > 0) b[row * width + c] += T(pull * double(prior[first + c]));
        if (has_initial && !fixed[i]) x[row * width + c] = T(double(own[c]) / scale);
      }
    }
  };
  const auto take = [&](int64_t first, int64_t columns, int64_t width, const T* x) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < columns; ++c)
        result[hidden.node[row] * stride + first + c] = T(hidden.scale[row] * double(x[row * width + c]));
  };
  const int64_t iterations = solve_panels(hidden, num_classes, options, residual, fill, take);
  if (!spreading && options.prior_strength == 0)
    complete_rows(hidden, num_classes, mean_of_fixed(graph.n, num_classes, fixed, boundary), options.threads, result);
  return iterations;
}

#define GLOSS_INSTANTIATE(T)                                                                                       \
  template int64_t propagate<T>(Csr, const T*, int64_t, const uint8_t*, const T*, bool, const T*, PropagateOptions, \
                                T*, double*, uint8_t*);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
