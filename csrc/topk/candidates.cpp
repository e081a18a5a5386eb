#include "candidates.h"

#include <algorithm>

namespace gloss::cpu {

void Candidates::thresholds(int64_t first, int64_t count, float* out) {
  int64_t i = 0;
  while (i < count && first + i < rows_) {
    const int64_t row = first + i, stop = std::min({first + count, rows_, (row / kGroup + 1) * kGroup});
    std::lock_guard<std::mutex> hold(lock(row));
    for (; first + i < stop; ++i) {
      State& s = state_[first + i];
      out[i] = s.threshold = s.tau - guard(s);
    }
  }
  for (; i % kGroup != 0 || i < count; ++i) out[i] = kInfinity;
}

float Candidates::kth_value(int64_t row, float tolerance) const {
  return kernels().kth_value(values(row), state_[row].count, int32_t(k_), tolerance);
}

void Candidates::compact(int64_t row) {
  State& s = state_[row];
  if (s.count < k_) {  // only when the list holds every candidate there is
    s.limit = int32_t(capacity_);
    return;
  }
  const float g = guard(s);
  raise(row, kth_value(row, g / 8) - g);

  const float keep = s.threshold = s.tau - g;
  float* v = values_.get() + row * capacity_;
  int32_t* index = indices_.get() + row * capacity_;
  int32_t kept = 0;
  for (int32_t i = 0; i < s.count; ++i) {
    v[kept] = v[i];
    index[kept] = index[i];
    kept += v[i] >= keep;
  }
  // Room for a few more before the next time; a list that stays full has more near ties than it can hold.
  if (capacity_ - kept < 8) {
    s = {kInfinity, kInfinity, s.residual, kFailed, 0};
    failed_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  s.count = kept;
  s.limit = int32_t(std::min<int64_t>(capacity_, kept + std::max<int64_t>({24, k_, kept / 4})));
}

}  // namespace gloss::cpu
