// Bitonic sort of any length, ascending, by the threads of a warp or a block: the form whose comparators all point one
// way, so that what lies past the end counts as the largest and is never touched.
#pragma once
#include "cuda/common.cuh"

namespace gloss::cuda {

using Key = unsigned long long;  // what is sorted: a value above an index, mostly

// sync() separates the steps. O(n log^2 n) comparisons over `threads` threads.
template <class T, class Sync>
__device__ inline void bitonic_sort(T* items, int64_t n, int thread, int threads, const Sync& sync) {
  for (int64_t size = 2; size / 2 < n; size *= 2) {
    for (int64_t step = size / 2; step > 0; step /= 2) {
      // First step of a merge: an item meets its mirror image in the run of `size`; then one `step` away.
      for (int64_t pair = thread; pair < (n + size) / 2; pair += threads) {
        const int64_t run = pair / step * 2 * step, offset = pair % step;
        const int64_t low = run + offset, high = step == size / 2 ? run + 2 * step - 1 - offset : low + step;
        if (high < n && items[high] < items[low]) {
          const T swapped = items[low];
          items[low] = items[high];
          items[high] = swapped;
        }
      }
      sync();
    }
  }
}

}  // namespace gloss::cuda
