// Label propagation on the CPU, forward (gloss.h: cpu::propagate). Backward: backward.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "panels.h"

namespace gloss::cpu {
namespace {

// Mean of the fixed rows, [num_classes]; summed over fixed ranges of rows, then over the ranges.
template <class T>
std::vector<double> mean_of_fixed(int64_t n, int64_t num_classes, const uint8_t* fixed, const T* boundary,
                                  int threads) {
  const int64_t ranges = std::min<int64_t>(n, 64);
  std::vector<double> partial(static_cast<size_t>(ranges * num_classes), 0.0);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t range = 0; range < ranges; ++range) {
    double* sum = partial.data() + range * num_classes;
    for (int64_t i = n * range / ranges; i < n * (range + 1) / ranges; ++i) {
      if (!fixed[i]) continue;
      for (int64_t c = 0; c < num_classes; ++c) sum[c] += double(boundary[i * num_classes + c]);
    }
  }
  const double count = double(std::max<int64_t>(1, std::count(fixed, fixed + n, uint8_t(1))));
  std::vector<double> mean(static_cast<size_t>(num_classes), 0.0);
  for (int64_t range = 0; range < ranges; ++range)
    for (int64_t c = 0; c < num_classes; ++c) mean[c] += partial[range * num_classes + c] / count;
  return mean;
}

// Rows of the exact solution sum to what the fixed rows sum to, 1. What a row lacks (about tol; all of it, in a component
// that hangs on the labelled ones by a weight too small for the arithmetic) goes to the classes in the proportion they
// have among the fixed rows. To first order the gradient does not change: exact rows lack nothing.
template <class T>
void complete_rows(const Hidden<T>& hidden, int64_t num_classes, const std::vector<double>& mean, int threads,
                   T* result) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < hidden.rows(); ++row) {
    T* f = result + hidden.node[row] * num_classes;
    double lacks = 1;
    for (int64_t c = 0; c < num_classes; ++c) lacks -= double(f[c]);
    for (int64_t c = 0; c < num_classes; ++c) f[c] += T(lacks * mean[c]);
  }
}

// The most that a hidden row's sum differs from 1.
template <class T>
double largest_lack(const Hidden<T>& hidden, int64_t num_classes, int threads, const T* result) {
  double largest = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(max : largest)
  for (int64_t row = 0; row < hidden.rows(); ++row) {
    const T* f = result + hidden.node[row] * num_classes;
    double lacks = 1;
    for (int64_t c = 0; c < num_classes; ++c) lacks -= double(f[c]);
    largest = std::max(largest, std::abs(lacks));
  }
  return largest;
}

}  // namespace

template <class T>
int64_t propagate(Csr graph, const T* values, int64_t num_classes, const uint8_t* fixed, const T* boundary,
                  bool has_initial, const T* prior, PropagateOptions options, T* result, double* residual,
                  uint8_t* reachable, double* used_tol) {
  const bool spreading = is_spreading(options);
  find_reachable(graph, values, fixed, reachable, options.threads);
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
  bool again = false;  // a further solve starts from the result of the last
  const auto fill = [&](int64_t first, int64_t columns, int64_t width, T* b, T* x) {
    if (!spreading) kernels.gather(hidden.border_system(), width, columns, stride, boundary + first, b);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = hidden.node[row];
      const double scale = hidden.scale[row];
      const double pull = spreading ? 0 : options.prior_strength * hidden.degree[row] * scale;
      const T *own = boundary + i * stride + first, *last = again ? result + i * stride + first : own;
      T *right = b + row * width, *start = x + row * width;
      if (spreading && fixed[i])
        for (int64_t c = 0; c < columns; ++c) right[c] = T((1 - options.alpha) * double(own[c]));
      if (pull > 0)
        for (int64_t c = 0; c < columns; ++c) right[c] += T(pull * double(prior[first + c]));
      if (again || (has_initial && !fixed[i]))
        for (int64_t c = 0; c < columns; ++c) start[c] = T(double(last[c]) / scale);
    }
  };
  const auto take = [&](int64_t first, int64_t columns, int64_t width, const T* x) {
    for (int64_t row = 0; row < rows; ++row) {
      T* to = result + hidden.node[row] * stride + first;
      const T* from = x + row * width;
      const double scale = hidden.scale[row];
      for (int64_t c = 0; c < columns; ++c) to[c] = T(scale * double(from[c]));
    }
  };
  int64_t iterations = solve_panels(hidden, num_classes, options, residual, has_initial, fill, take);
  *used_tol = options.tol;
  if (spreading || options.prior_strength > 0) return iterations;
  const std::vector<double> mean = mean_of_fixed(graph.n, num_classes, fixed, boundary, options.threads);
  if (std::abs(std::accumulate(mean.begin(), mean.end(), 0.0) - 1) > 1e-6) return iterations;  // no classes of one label

  const double allowed = std::max(10 * options.tol, 0.01), finest = 8 * std::numeric_limits<T>::epsilon();
  const int64_t max_iter = options.max_iter;
  double lacks = largest_lack(hidden, num_classes, options.threads, result);
  again = true;
  while (lacks > allowed && options.tol > finest && iterations < max_iter) {
    options.tol = std::max(options.tol * 1e-2, finest);
    options.max_iter = max_iter - iterations;
    iterations += solve_panels(hidden, num_classes, options, residual, true, fill, take);
    lacks = largest_lack(hidden, num_classes, options.threads, result);
  }
  *used_tol = options.tol;
  if (lacks > allowed)
    for (int64_t c = 0; c < num_classes; ++c) residual[c] = std::max(residual[c], lacks);
  complete_rows(hidden, num_classes, mean, options.threads, result);
  return iterations;
}

#define GLOSS_INSTANTIATE(T)                                                                                       \
  template int64_t propagate<T>(Csr, const T*, int64_t, const uint8_t*, const T*, bool, const T*, PropagateOptions, \
                                T*, double*, uint8_t*, double*);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
