// Prefix sums over device memory in three launches: sums of tiles, their prefix sums, the tiles again. 2 reads and a write.
#pragma once
#include "cuda/common.cuh"
#include "cuda/workspace.cuh"

namespace gloss::cuda {

constexpr int kScanThreads = 256, kScanItems = 8, kScanTile = kScanThreads * kScanItems;

// The sum of value over the threads before this one; *total is that of all. `partial` has room for 33 numbers.
__device__ inline int64_t block_exclusive_scan(int64_t value, int64_t* partial, int64_t* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  int64_t sum = value;
  for (int offset = 1; offset < 32; offset *= 2) {
    const int64_t other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += other;
  }
  __syncthreads();  // `partial` may still be read
  if (lane == 31) partial[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    int64_t own = lane < warps ? partial[lane] : 0;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int64_t other = __shfl_up_sync(0xffffffffu, own, offset);
      if (lane >= offset) own += other;
    }
    partial[lane] = own;
  }
  __syncthreads();
  *total = partial[warps - 1];
  return sum - value + (warp > 0 ? partial[warp - 1] : 0);
}

template <class In>
__global__ void __launch_bounds__(kScanThreads) scan_tiles_kernel(const In* __restrict__ in, int64_t n, int64_t* __restrict__ sums) {
  GLOSS_SHARED(int64_t, partial, [33]);
  int64_t sum = 0, total;
  for (int item = 0; item < kScanItems; ++item) {
    const int64_t at = int64_t(blockIdx.x) * kScanTile + item * kScanThreads + threadIdx.x;
    if (at < n) sum += int64_t(in[at]);
  }
  block_exclusive_scan(sum, partial, &total);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

static __global__ void __launch_bounds__(kScanThreads) scan_sums_kernel(int64_t* __restrict__ sums, int64_t tiles, int64_t* __restrict__ total) {
  GLOSS_SHARED(int64_t, partial, [33]);
  int64_t before = 0;
  for (int64_t first = 0; first < tiles; first += kScanThreads) {
    const int64_t at = first + threadIdx.x;
    int64_t all;
    const int64_t own = at < tiles ? sums[at] : 0, prefix = block_exclusive_scan(own, partial, &all);
    if (at < tiles) sums[at] = before + prefix;
    before += all;
  }
  if (threadIdx.x == 0) *total = before;
}

template <class In>
__global__ void __launch_bounds__(kScanThreads)
scan_apply_kernel(const In* __restrict__ in, int64_t n, const int64_t* __restrict__ sums, int64_t* __restrict__ out) {
  GLOSS_SHARED(int64_t, partial, [33]);
  const int64_t first = int64_t(blockIdx.x) * kScanTile + int64_t(threadIdx.x) * kScanItems;
  int64_t own[kScanItems], sum = 0, total;
  for (int item = 0; item < kScanItems; ++item) sum += own[item] = first + item < n ? int64_t(in[first + item]) : 0;
  int64_t prefix = sums[blockIdx.x] + block_exclusive_scan(sum, partial, &total);
  for (int item = 0; item < kScanItems; ++item) {
    if (first + item < n) out[first + item] = prefix;
    prefix += own[item];
  }
}

inline int64_t* take_scan_space(Workspace& memory, int64_t n) { return memory.take<int64_t>(n / kScanTile + 1); }

// out[i] = in[0] + .. + in[i - 1] for i = 0 .. n; `sums` from take_scan_space(n). `in` may not be `out`.
template <class In>
void exclusive_scan(const In* in, int64_t n, int64_t* out, int64_t* sums, Queue queue) {
  const int64_t tiles = (n + kScanTile - 1) / kScanTile;
  if (tiles > 0) launch(scan_tiles_kernel<In>, unsigned(tiles), kScanThreads, 0, queue.stream, in, n, sums);
  launch(scan_sums_kernel, 1, kScanThreads, 0, queue.stream, sums, tiles, out + n);
  if (tiles > 0) launch(scan_apply_kernel<In>, unsigned(tiles), kScanThreads, 0, queue.stream, in, n, sums, out);
}

}  // namespace gloss::cuda
