// Runs the panels of a solve: side by side, one thread each, where there are enough of them; else one after the other,
// each on all threads. A panel needs no synchronisation of its own, so side by side is the faster way.
#pragma once
#include <algorithm>
#include <mutex>

#include "hidden.h"
#include "solver.h"
#include "cpu/parallel.h"

namespace gloss::cpu {

// For each panel of columns [first, first + columns): fill(first, columns, width, b, x) sets the right-hand sides and,
// with has_start, the start [rows, width]; take(first, columns, width, x) receives the solutions. Both run on one thread.
// residual [num_classes]. Returns the iterations of the slowest panel.
template <class T, class Fill, class Take>
int64_t solve_panels(const Hidden<T>& hidden, int64_t num_classes, const PropagateOptions& options, double* residual,
                     bool has_start, const Fill& fill, const Take& take) {
  const int64_t panels = (num_classes + kPanel - 1) / kPanel;
  const bool side_by_side = panels >= options.threads;
  int64_t slowest = 0;
  std::mutex slowest_lock;
  Queue queue(panels, 1);
  parallel(side_by_side ? options.threads : 1, [&](int) {
    PanelSolver<T> solver(hidden.system(), options.tol, options.max_iter, side_by_side ? 1 : options.threads);
    Buffer<T> b(hidden.rows() * kPanel), x(hidden.rows() * kPanel);
    double measured[kPanel];
    for (Range range; queue.next(range);) {
      const int64_t first = range.begin * kPanel, columns = std::min(kPanel, num_classes - first);
      const int64_t width = panel_width(columns);
      std::fill_n(b.get(), hidden.rows() * width, T(0));
      std::fill_n(x.get(), hidden.rows() * width, T(0));
      fill(first, columns, width, b.get(), x.get());
      const int64_t iterations = solver.solve(width, has_start, b.get(), x.get(), measured);
      std::copy_n(measured, columns, residual + first);
      take(first, columns, width, x.get());
      const std::lock_guard<std::mutex> lock(slowest_lock);
      slowest = std::max(slowest, iterations);
    }
  });
  return slowest;
}

}  // namespace gloss::cpu
