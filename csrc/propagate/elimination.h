// Elimination without a subtraction (Grassmann, Taksar and Heyman 1985) of a small dense system A x = b,
// (A x)_i = e_i x_i + sum_j W_ij (x_i - x_j), W >= 0 symmetric, e >= 0: every digit is right, however far weights differ.
//
//   for k = last .. first:  s_k = sum_{j<k} W_kj + e_k;  W_ij += W_ik W_kj / s_k,  e_i += W_ik e_k / s_k  (i, j < k)
//   b_i += W_ik b_k / s_k,  then for k = first .. last:  x_k = (b_k + sum_{j<k} W_kj x_j) / s_k
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gloss::cpu {

class Elimination {
 public:
  Elimination() = default;
  // weights [rows, rows], the diagonal is not read; every row must be joined to a positive excess by a path.
  Elimination(int64_t rows, std::vector<double> weights, std::vector<double> excess);

  int64_t rows() const { return int64_t(inverse_.size()); }
  // x [rows, width] <- A^-1 b; b is used up.
  void solve(int64_t width, double* b, double* x) const;

 private:
  std::vector<double> weights_;  // [rows, rows]: below the diagonal W_kj when k was eliminated
  std::vector<double> inverse_;  // 1 / s
};

}  // namespace gloss::cpu
