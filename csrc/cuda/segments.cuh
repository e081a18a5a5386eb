// Sorts the segments keys[start[i] .. start[i + 1]) of device memory, each on its own: short ones by a warp, longer ones by a
// block, in shared memory where they fit.
#pragma once
#include "cuda/common.cuh"
#include "cuda/sort.cuh"
#include "cuda/workspace.cuh"

namespace gloss::cuda {

constexpr int kSortWarps = 4;
constexpr int kShort = 256;       // keys that a warp sorts
constexpr int kBlockKeys = 4096;  // that a block sorts in shared memory
constexpr int kLongThreads = 512, kLongBlocks = 256;

struct LongSegments {
  int* rows;   // [n]
  int* count;  // []
};
inline LongSegments take_long_segments(Workspace& memory, int64_t n) { return {memory.take<int>(n), memory.take<int>(1)}; }

// Sorts the short rows, one warp each, and lists the others.
static __global__ void __launch_bounds__(32 * kSortWarps)
sort_short_kernel(int64_t n, const int64_t* __restrict__ start, Key* __restrict__ keys, LongSegments others) {
  GLOSS_SHARED(Key, sorted, [kSortWarps][kShort]);
  const int64_t row = int64_t(blockIdx.x) * kSortWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= n) return;
  const int64_t first = start[row], count = start[row + 1] - first;
  if (count > kShort) {
    if (lane == 0) others.rows[atomicAdd(others.count, 1)] = int(row);
    return;
  }
  Key* mine = sorted[threadIdx.x / 32];
  for (int64_t c = lane; c < count; c += 32) mine[c] = keys[first + c];
  __syncwarp();
  bitonic_sort(mine, count, lane, 32, [] { __syncwarp(); });
  for (int64_t c = lane; c < count; c += 32) keys[first + c] = mine[c];
}

static __global__ void __launch_bounds__(kLongThreads)
sort_long_kernel(const int64_t* __restrict__ start, Key* keys, LongSegments others) {
  GLOSS_DYNAMIC_SHARED(Key, sorted);
  for (int at = blockIdx.x; at < *others.count; at += gridDim.x) {
    const int64_t first = start[others.rows[at]], count = start[others.rows[at] + 1] - first;
    const bool fits = count <= kBlockKeys;
    Key* items = fits ? sorted : keys + first;
    for (int64_t c = threadIdx.x; fits && c < count; c += blockDim.x) items[c] = keys[first + c];
    __syncthreads();
    bitonic_sort(items, count, int(threadIdx.x), int(blockDim.x), [] { __syncthreads(); });
    for (int64_t c = threadIdx.x; fits && c < count; c += blockDim.x) keys[first + c] = items[c];
    __syncthreads();
  }
}

inline void sort_segments(int64_t n, const int64_t* start, Key* keys, LongSegments others, Queue queue) {
  check(cudaMemsetAsync(others.count, 0, 4, static_cast<cudaStream_t>(queue.stream)), "cudaMemsetAsync");
  launch(sort_short_kernel, unsigned((n + kSortWarps - 1) / kSortWarps), 32 * kSortWarps, 0, queue.stream, n, start, keys,
         others);
  launch(sort_long_kernel, kLongBlocks, kLongThreads, kBlockKeys * sizeof(Key), queue.stream, start, keys, others);
}

}  // namespace gloss::cuda
