// Conjugate gradients for (I - B) X = b, all columns at once (solver.cpp).
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace gloss::cpu {

struct SolveReport {
  int64_t iterations = 0;
  std::vector<double> residual;  // [width], |b - (I - B) x| / |b| of each column; 0 where b = 0
};

// The width of a block that holds so many columns: full vectors, with short ones for few classes.
inline int64_t padded_width(int64_t columns) {
  if (columns <= 4) return 4;
  if (columns <= 8) return 8;
  return (columns + 15) / 16 * 16;
}

// x [rows, width] holds the start and receives the solution; b [rows, width]; width is a padded_width, with 0 in the
// padding. A column is done when its residual is at most tol |b|; a column with b = 0 becomes 0.
template <class T>
SolveReport solve_columns(const System<T>& system, int64_t width, const T* b, T* x, double tol, int64_t max_iter,
                          int threads);

}  // namespace gloss::cpu
