#include "elimination.h"

#include "loss/kernels.h"

namespace gloss::cpu {

Elimination::Elimination(const std::vector<int64_t>& crow, const std::vector<int32_t>& col,
                         const std::vector<double>& weight, const std::vector<double>& excess)
    : rows_(int64_t(excess.size())), stride_(padded(rows_ + 1)), factor_(static_cast<size_t>(rows_ * stride_), 0.0) {
  for (int64_t i = 0; i < rows_; ++i) {
    double* row = factor_.data() + i * stride_;
    for (int64_t e = crow[i]; e < crow[i + 1]; ++e)
      if (col[e] > i) row[col[e]] = weight[e];
    row[rows_] = excess[i];
  }
  dense_kernels().eliminate(rows_, stride_, factor_.data());
}

void Elimination::solve(int64_t width, double* x) const {
  dense_kernels().solve(rows_, stride_, factor_.data(), width, x);
}

}  // namespace gloss::cpu
