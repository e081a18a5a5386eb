// Label propagation on the CPU, forward (gloss.h: cpu::propagate). Backward: backward.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "harmonic.h"
#include "multilevel.h"
#include "panels.h"
#include "rows.h"
#include "solver.h"
#include "spreading.h"

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

// The most that a hidden row's sum differs from 1.
template <class T>
double largest_lack(const std::vector<int64_t>& node, int64_t num_classes, int threads, const T* result) {
  double largest = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(max : largest)
  for (int64_t row = 0; row < int64_t(node.size()); ++row) {
    const T* f = result + node[row] * num_classes;
    double lacks = 1;
    for (int64_t c = 0; c < num_classes; ++c) lacks -= double(f[c]);
    largest = std::max(largest, std::abs(lacks));
  }
  return largest;
}

// Rows of the exact solution are >= 0 and sum to 1; those of the iteration differ from that by about tol a class. What a
// row lacks goes to the classes in the proportion they have among the fixed rows: every class lacks its own share, and a
// division by the sum would give all of it to the largest. To first order the gradient does not change.
template <class T>
void make_distributions(const std::vector<int64_t>& node, int64_t num_classes, const std::vector<double>& mean,
                        int threads, T* result) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < int64_t(node.size()); ++row) {
    T* f = result + node[row] * num_classes;
    double sum = 0;
    for (int64_t c = 0; c < num_classes; ++c) sum += double(f[c]);
    double total = 0;
    for (int64_t c = 0; c < num_classes; ++c)
      total += double(f[c] = T(std::max(double(f[c]) + (1 - sum) * mean[c], 0.0)));
    for (int64_t c = 0; c < num_classes; ++c) f[c] = T(double(f[c]) / total);  // total >= 1: the numbers above sum to 1
  }
}

template <class T>
struct Call {
  Csr graph;
  const double* values;
  int64_t num_classes;
  const uint8_t* fixed;
  const T* boundary;
  bool has_initial;
  const T* prior;
  T* result;
  double* residual;
};

template <class T>
int64_t propagate_spreading(const Call<T>& call, const PropagateOptions& options, const uint8_t* reachable,
                            Ticker& ticker) {
  const Spreading<T> system = spreading_system<T>(call.graph, call.values, reachable, options);
  const int64_t stride = call.num_classes;
  const auto fill = [&](int64_t first, int64_t columns, int64_t width, T* b, T* x) {
    for (int64_t row = 0; row < system.rows(); ++row) {
      const int64_t i = system.node[row];
      const T* own = call.boundary + i * stride + first;
      for (int64_t c = 0; c < columns; ++c) {
        if (call.fixed[i]) b[row * width + c] = T((1 - options.alpha) * double(own[c]));
        else if (call.has_initial) x[row * width + c] = own[c];
      }
    }
  };
  const auto take = [&](int64_t first, int64_t columns, int64_t width, const T* x) {
    for (int64_t row = 0; row < system.rows(); ++row)
      std::copy_n(x + row * width, columns, call.result + system.node[row] * stride + first);
  };
  const auto make = [&](int threads) {
    return PanelSolver<T>(system.system(), options.tol, options.max_iter, threads);
  };
  return solve_panels<T>(system.rows(), stride, options.threads, ticker, call.residual, call.has_initial, make, fill,
                         take);
}

// S: of the iteration. Tightens options.tol where rows lack much of their sum.
template <class S, class T>
int64_t propagate_harmonic(const Call<T>& call, PropagateOptions& options, HarmonicRows& rows, Ticker& ticker) {
  const Hierarchy<S> hierarchy = order_rows<S>(rows, options.threads);
  const int64_t stride = call.num_classes, count = rows.rows();
  const std::vector<double> mean = mean_of_fixed(call.graph.n, stride, call.fixed, call.boundary, options.threads);
  bool again = false;  // a further solve starts from the result of the last
  const auto fill = [&](int64_t first, int64_t columns, int64_t width, S* b, S* x) {
    for (int64_t row = 0; row < count; ++row) {
      const int64_t i = rows.node[row];
      S* right = b + row * width;
      for (int64_t c = 0; c < columns; ++c) right[c] = S(rows.pull[row] * double(call.prior[first + c]));
      for (int64_t e = rows.border.crow[row]; e < rows.border.crow[row + 1]; ++e) {
        const S weight = S(rows.border.weight[e]);
        const T* label = call.boundary + rows.border.col[e] * stride + first;
        for (int64_t c = 0; c < columns; ++c) right[c] += weight * S(label[c]);
      }
      const T* last = (again ? call.result : call.boundary) + i * stride + first;
      for (int64_t c = 0; c < columns; ++c) x[row * width + c] = again || call.has_initial ? S(last[c]) : S(mean[first + c]);
    }
  };
  const auto take = [&](int64_t first, int64_t columns, int64_t width, const S* x) {
    for (int64_t row = 0; row < count; ++row)
      for (int64_t c = 0; c < columns; ++c) call.result[rows.node[row] * stride + first + c] = T(x[row * width + c]);
  };
  const auto solve = [&] {
    const auto make = [&](int threads) {
      return MultilevelSolver<S>(hierarchy, Until::absolute, options.tol, options.max_iter, threads);
    };
    return solve_panels<S>(count, stride, options.threads, ticker, call.residual, true, make, fill, take);
  };
  int64_t iterations = solve();
  const auto is_one = [](double sum) { return std::abs(sum - 1) <= 1e-6; };
  double of_prior = 0;
  for (int64_t c = 0; c < stride; ++c) of_prior += double(call.prior[c]);
  if (!is_one(std::accumulate(mean.begin(), mean.end(), 0.0)) || (options.prior_strength > 0 && !is_one(of_prior)))
    return iterations;  // no distributions

  const double allowed = std::max(10 * options.tol, 0.01), finest = 8 * std::numeric_limits<S>::epsilon();
  const int64_t max_iter = options.max_iter;
  double lacks = largest_lack(rows.node, stride, options.threads, call.result);
  again = true;
  while (lacks > allowed && options.tol > finest && iterations < max_iter) {
    options.tol = std::max(options.tol * 1e-2, finest);
    options.max_iter = max_iter - iterations;
    iterations += solve();
    lacks = largest_lack(rows.node, stride, options.threads, call.result);
  }
  if (lacks > allowed)
    for (int64_t c = 0; c < stride; ++c) call.residual[c] = std::max(call.residual[c], lacks);
  make_distributions(rows.node, stride, mean, options.threads, call.result);
  return iterations;
}

}  // namespace

template <class T>
int64_t propagate(Csr graph, const double* values, int64_t num_classes, const uint8_t* fixed, const T* boundary,
                  bool has_initial, const T* prior, PropagateOptions options, T* result, double* residual,
                  uint8_t* reachable, double* used_tol) {
  const bool spreading = is_spreading(options);
  find_reachable(graph, values, fixed, reachable, options.threads);
  // Rows that are not solved for; the panels write the others.
#pragma omp parallel for num_threads(options.threads) schedule(static)
  for (int64_t i = 0; i < graph.n; ++i) {
    T* to = result + i * num_classes;
    if (reachable[i]) {
      if (fixed[i] && !spreading) std::copy_n(boundary + i * num_classes, num_classes, to);
    } else if (spreading) std::fill_n(to, num_classes, T(0));
    else std::copy_n(prior, num_classes, to);
  }
  Ticker ticker(options.progress);
  ticker.stage(1, double(Watch::kWork) * double((num_classes + kPanel - 1) / kPanel));
  const Call<T> call{graph, values, num_classes, fixed, boundary, has_initial, prior, result, residual};
  int64_t iterations;
  if (spreading) {
    iterations = propagate_spreading(call, options, reachable, ticker);
  } else {
    HarmonicRows rows = harmonic_rows(graph, values, fixed, reachable, options);
    iterations = needs_double(rows, options.tol) ? propagate_harmonic<double>(call, options, rows, ticker)
                                                 : propagate_harmonic<float>(call, options, rows, ticker);
  }
  *used_tol = options.tol;
  return iterations;
}

#define GLOSS_INSTANTIATE(T)                                                                                  \
  template int64_t propagate<T>(Csr, const double*, int64_t, const uint8_t*, const T*, bool, const T*,        \
                                PropagateOptions, T*, double*, uint8_t*, double*);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
