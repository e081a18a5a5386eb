// Selection in a candidate list.
#include "kernels.h"

namespace gloss::cpu::GLOSS_ISA {

// Bisection: a dozen counts over a list in L1, without branches on data, are cheaper than one nth_element.
float kth_value(const float* values, int32_t count, int32_t k, float tolerance) {
  float least[16], most[16];  // lanes of their own: a plain minimum is not vectorised without -ffast-math
  for (int l = 0; l < 16; ++l) least[l] = most[l] = values[0];
  int32_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int l = 0; l < 16; ++l) {
      least[l] = values[i + l] < least[l] ? values[i + l] : least[l];
      most[l] = values[i + l] > most[l] ? values[i + l] : most[l];
    }
  for (int l = 0; i < count; ++i, ++l) {
    least[l] = values[i] < least[l] ? values[i] : least[l];
    most[l] = values[i] > most[l] ? values[i] : most[l];
  }
  float low = least[0], high = most[0];
  for (int l = 1; l < 16; ++l) {
    low = least[l] < low ? least[l] : low;
    high = most[l] > high ? most[l] : high;
  }
  while (high - low > tolerance) {
    const float middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) break;
    int32_t reach = 0;
    for (int32_t c = 0; c < count; ++c) reach += values[c] >= middle;
    if (reach >= k) low = middle;
    else high = middle;
    if (reach == k) break;
  }
  return low;
}

}  // namespace gloss::cpu::GLOSS_ISA
