// Conjugate gradients for the harmonic system with the multilevel preconditioner, on one panel (multilevel.cpp).
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "hierarchy.h"
#include "kernels.h"
#include "panels.h"

namespace gloss::cpu {

// What is at most tol when a column is done: no number of the correction that a cycle would make exceeds it, so that rows
// of small weights count as much as the others (`absolute`: probabilities); or it times the row's largest number
// (`relative`: the adjoint, whose rows may differ by 70 orders of magnitude).
enum class Until { absolute, relative };

template <class T>
class MultilevelSolver {
 public:
  // Works on `threads` threads; the result does not depend on them.
  MultilevelSolver(const Hierarchy<T>& hierarchy, Until until, double tol, int64_t max_iter, int threads);

  // A x = b for b, x [rows, width] in the hierarchy's order; x holds the start, or zeros without has_start, and receives
  // the solution. residual[c] is what is compared with tol; a column with b = 0 becomes 0. Returns the iterations,
  // 0 of a system so small that it was eliminated.
  int64_t solve(int64_t width, bool has_start, const T* b, T* x, double* residual, Watch& watch);

 private:
  using Columns = double[kPanel];
  struct Space {
    int64_t range, ranges;  // rows in a range, number of ranges
    Buffer<T> r, z, out;    // a level's right side, and its correction before and after the last step
  };
  template <class Body>
  void each(size_t level, const Body& body) const;
  template <class Body>
  void sum(size_t level, int64_t width, Columns sums, const Body& body);
  const T* cycle(size_t level, int64_t width, const T* r, T* z, Columns dots, Columns largest);
  void eliminate(int64_t width, const T* r, T* out);

  const Hierarchy<T>& hierarchy_;
  const PanelKernels<T>& kernels_;
  const Until until_;
  const double tol_;
  const int64_t max_iter_;
  const int threads_;
  std::vector<Space> space_;
  std::vector<double> partial_, largest_, dense_;
  Buffer<T> p_, r_;
  std::vector<double> least_;  // [rows], relative: b / diagonal, the least size of a row
};

}  // namespace gloss::cpu
