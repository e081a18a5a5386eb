// A small system A x = b, (A x)_i = e_i x_i + sum_j W_ij (x_i - x_j), W >= 0 symmetric, e >= 0, by the elimination without
// a subtraction of the dense loss (loss/kernels.h): every digit is right, however far weights differ.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gloss::cpu {

class Elimination {
 public:
  Elimination() = default;
  // W in CSR form; every row must be joined to a positive excess by a path.
  Elimination(const std::vector<int64_t>& crow, const std::vector<int32_t>& col, const std::vector<double>& weight,
              const std::vector<double>& excess);

  int64_t rows() const { return rows_; }
  // x [rows, width] <- A^-1 x, width a multiple of 16. The error is relative to A^-1 |x|.
  void solve(int64_t width, double* x) const;

 private:
  int64_t rows_ = 0, stride_ = 0;
  std::vector<double> factor_;  // [rows, stride]
};

}  // namespace gloss::cpu
