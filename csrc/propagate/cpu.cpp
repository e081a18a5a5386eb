// Label propagation on the CPU, forward (gloss.h: cpu::propagate). Backward: backward_cpu.cpp.
#include <algorithm>

#include "hidden.h"
#include "solver.h"

namespace gloss::cpu {
namespace {

// Mean of the fixed rows: where the iteration starts. A component that hangs on the labelled ones by a weight too small
// for the arithmetic then keeps it, and still sums to 1. [num_classes]
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

}  // namespace

template <class T>
int64_t propagate(Csr graph, const T* values, int64_t num_classes, const uint8_t* fixed, const T* boundary,
                  bool has_initial, const T* prior, PropagateOptions options, T* result, double* residual,
                  uint8_t* reachable) {
  const bool spreading = is_spreading(options);
  find_reachable(graph, values, fixed, reachable);
  const Hidden<T> hidden = hidden_system(graph, values, fixed, reachable, options);
  const int64_t rows = hidden.rows(), width = padded_width(num_classes);
  std::vector<T> b(static_cast<size_t>(rows * width), T(0)), x(b.size(), T(0));  // [rows, width]
  std::vector<double> start(static_cast<size_t>(num_classes), 0.0);
  if (!spreading) start = mean_of_fixed(graph.n, num_classes, fixed, boundary);
  const BlockKernels<T>& kernels = block_kernels<T>();

#pragma omp parallel num_threads(options.threads)
  {
    std::vector<double> sum(static_cast<size_t>(num_classes));
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = hidden.node[row];
      const double scale = hidden.scale[row];
      const T* own = boundary + i * num_classes;
      std::fill(sum.begin(), sum.end(), 0.0);
      if (spreading) {
        if (fixed[i]) kernels.add_scaled(num_classes, 1 - options.alpha, own, sum.data());
      } else {
        if (options.prior_strength > 0)
          kernels.add_scaled(num_classes, options.prior_strength * hidden.degree[row], prior, sum.data());
        for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e)
          if (fixed[graph.col[e]])
            kernels.add_scaled(num_classes, double(values[e]), boundary + graph.col[e] * num_classes, sum.data());
      }
      const bool given = has_initial && !fixed[i];
      for (int64_t c = 0; c < num_classes; ++c) {
        b[row * width + c] = T(scale * sum[c]);
        x[row * width + c] = T((given ? double(own[c]) : start[c]) / scale);
      }
    }
  }

  const SolveReport report =
      solve_columns(hidden.system(), width, b.data(), x.data(), options.tol, options.max_iter, options.threads);
  std::copy_n(report.residual.begin(), num_classes, residual);

#pragma omp parallel for num_threads(options.threads) schedule(static)
  for (int64_t i = 0; i < graph.n; ++i) {
    T* to = result + i * num_classes;
    const int32_t row = hidden.row_of[i];
    if (row >= 0) {
      for (int64_t c = 0; c < num_classes; ++c) to[c] = T(hidden.scale[row] * double(x[row * width + c]));
    } else if (reachable[i]) {
      std::copy_n(boundary + i * num_classes, num_classes, to);
    } else if (spreading) {
      std::fill_n(to, num_classes, T(0));
    } else {
      std::copy_n(prior, num_classes, to);
    }
  }
  return report.iterations;
}

#define GLOSS_INSTANTIATE(T)                                                                                       \
  template int64_t propagate<T>(Csr, const T*, int64_t, const uint8_t*, const T*, bool, const T*, PropagateOptions, \
                                T*, double*, uint8_t*);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
