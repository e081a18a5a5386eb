// Runs the panels of a solve: side by side, one thread each, where there are enough of them; else one after the other,
// each on all threads. A panel needs no synchronisation of its own, so side by side is the faster way.
#pragma once
#include <algorithm>
#include <mutex>

#include "cpu/parallel.h"
#include "gloss.h"
#include "kernels.h"

namespace gloss::cpu {

// Where a panel's iterations are reported: each panel is kWork units, of which an iteration takes a part of the rest.
class Watch {
 public:
  Watch(Ticker& ticker, int thread) : ticker_(ticker), thread_(thread) {}
  void begin() { done_ = 0; }
  // False when the solve is to stop.
  bool step() { return advance((kWork - done_) / 8); }
  void end() { advance(kWork - done_); }
  bool stopped() const { return ticker_.cancelled(); }
  static constexpr int64_t kWork = 1 << 16;

 private:
  bool advance(int64_t work) {
    done_ += work;
    return ticker_.advance(thread_, work);
  }
  Ticker& ticker_;
  const int thread_;
  int64_t done_ = 0;
};

// For each panel of columns [first, first + columns): fill(first, columns, width, b, x) sets the right-hand sides and,
// with has_start, the start [rows, width]; take(first, columns, width, x) receives the solutions. Both run on one thread.
// make(threads) makes a solver: solve(width, has_start, b, x, residual, watch) -> iterations. residual [num_classes]. Returns the iterations of the slowest panel; throws Cancelled.
template <class S, class Make, class Fill, class Take>
int64_t solve_panels(int64_t rows, int64_t num_classes, int threads, Ticker& ticker, double* residual, bool has_start,
                     const Make& make, const Fill& fill, const Take& take) {
  const int64_t panels = (num_classes + kPanel - 1) / kPanel;
  const bool side_by_side = panels >= threads;
  int64_t slowest = 0;
  std::mutex slowest_lock;
  Queue queue(panels, 1);
  parallel(side_by_side ? threads : 1, [&](int thread) {
    auto solver = make(side_by_side ? 1 : threads);
    Watch watch(ticker, thread);
    Buffer<S> b(rows * kPanel), x(rows * kPanel);
    double measured[kPanel];
    for (Range range; queue.next(range) && !ticker.cancelled();) {
      const int64_t first = range.begin * kPanel, columns = std::min(kPanel, num_classes - first);
      const int64_t width = panel_width(columns);
      std::fill_n(b.get(), rows * width, S(0));
      std::fill_n(x.get(), rows * width, S(0));
      fill(first, columns, width, b.get(), x.get());
      watch.begin();
      const int64_t iterations = solver.solve(width, has_start, b.get(), x.get(), measured, watch);
      watch.end();
      std::copy_n(measured, columns, residual + first);
      take(first, columns, width, x.get());
      const std::lock_guard<std::mutex> lock(slowest_lock);
      slowest = std::max(slowest, iterations);
    }
  });
  ticker.check();
  return slowest;
}

}  // namespace gloss::cpu
