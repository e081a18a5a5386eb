// What a hidden document's probabilities are scored by, for C++ and CUDA. A new target is a case here and a name in the
// table, and the same in gloss_kernels/reference.py and _backends/triton/target.py.
#pragma once
#include <cmath>
#include <cstdint>

#include "options.h"

namespace gloss {

enum class Target : int32_t { nll, published };
inline constexpr const char* kTargetNames[] = {"nll", "published"};

// The loss of one document of class y with probabilities p(0), ..., p(classes - 1). Where `grad` [classes] is not null,
// weight * dloss/dp is added to it.
//   nll:       -log((1 - s) p_y + s / C), s = smoothing
//   published: log(sum_c exp p_c) - p_y, the cross entropy with probabilities used as logits
template <class P>
GLOSS_HOST_DEVICE inline double target_loss(Target target, double smoothing, int64_t classes, int64_t y, const P& p,
                                            double weight, double* grad) {
  const double p_y = p(y);
  switch (target) {  // a target without a case is a warning of the compiler, and NaN
    case Target::nll: {
      const double q = (1 - smoothing) * (p_y < 0 ? 0.0 : p_y) + smoothing / double(classes);  // a solve may give -1e-17
      if (grad) grad[y] -= weight * (1 - smoothing) / q;
      return -log(q);
    }
    case Target::published: {
      double sum = 0;
      for (int64_t c = 0; c < classes; ++c) sum += exp(p(c));
      if (grad) {
        for (int64_t c = 0; c < classes; ++c) grad[c] += weight * exp(p(c)) / sum;
        grad[y] -= weight;
      }
      return log(sum) - p_y;
    }
  }
  return NAN;
}

}  // namespace gloss
