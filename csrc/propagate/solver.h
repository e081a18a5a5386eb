// Conjugate gradients for label spreading, (I - B) x = b, on one panel of right-hand sides (solver.cpp).
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "kernels.h"
#include "panels.h"

namespace gloss::cpu {

template <class T>
class PanelSolver {
 public:
  // Works on `threads` threads; the result does not depend on them.
  PanelSolver(const System<T>& system, double tol, int64_t max_iter, int threads);

  // b, x [rows, width]; x holds the start, or zeros without has_start, and receives the solution. A column is done when its residual is at most
  // tol |b|; a column with b = 0 becomes 0. residual[c] = |b - (I - B) x| / |b|, 0 where b = 0. Returns the iterations.
  int64_t solve(int64_t width, bool has_start, const T* b, T* x, double* residual, Watch& watch);

 private:
  using Columns = double[kPanel];
  void correct(int64_t width, const Columns squared, const bool* wanted, T* x, int64_t& iterations, Watch& watch);
  template <class Body>
  void each(const Body& body) const;
  template <class Body>
  void sum(int64_t width, Columns sums, const Body& body);

  const System<T> system_;
  const PanelKernels<T>& kernels_;
  const double tol_;
  double target_;  // of a round's own recurrence, at most tol
  const int64_t max_iter_;
  int64_t range_, ranges_;  // rows in a range, number of ranges
  int threads_;
  Columns norm_;                  // |b|
  std::vector<double> partial_;   // [ranges, width]
  Buffer<T> r_, p_, q_, e_;       // [rows, width]
};

}  // namespace gloss::cpu
