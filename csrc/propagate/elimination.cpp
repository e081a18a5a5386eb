#include "elimination.h"

#include <utility>

namespace gloss::cpu {

Elimination::Elimination(int64_t rows, std::vector<double> weights, std::vector<double> excess)
    : weights_(std::move(weights)), inverse_(static_cast<size_t>(rows)) {
  for (int64_t k = rows - 1; k >= 0; --k) {
    double* own = weights_.data() + k * rows;
    double sum = excess[size_t(k)];
    for (int64_t j = 0; j < k; ++j) sum += own[j];
    const double inverse = sum > 0 ? 1 / sum : 0;
    inverse_[size_t(k)] = inverse;
    for (int64_t i = 0; i < k; ++i) {
      const double share = own[i] * inverse;
      if (share == 0) continue;
      double* row = weights_.data() + i * rows;
      for (int64_t j = 0; j < i; ++j) row[j] += share * own[j];  // below the diagonal: the matrix is symmetric
      excess[size_t(i)] += share * excess[size_t(k)];
    }
  }
}

void Elimination::solve(int64_t width, double* b, double* x) const {
  const int64_t n = rows();
  for (int64_t k = n - 1; k >= 0; --k) {
    const double *own = weights_.data() + k * n, *from = b + k * width;
    for (int64_t i = 0; i < k; ++i) {
      const double share = own[i] * inverse_[size_t(k)];
      for (int64_t c = 0; c < width; ++c) b[i * width + c] += share * from[c];
    }
  }
  for (int64_t k = 0; k < n; ++k) {
    const double* own = weights_.data() + k * n;
    double* sum = b + k * width;
    for (int64_t j = 0; j < k; ++j)
      for (int64_t c = 0; c < width; ++c) sum[c] += own[j] * x[j * width + c];
    for (int64_t c = 0; c < width; ++c) x[k * width + c] = sum[c] * inverse_[size_t(k)];
  }
}

}  // namespace gloss::cpu
