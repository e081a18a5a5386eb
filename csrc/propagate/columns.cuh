// Sums over the rows of a panel, one a column, in an order that does not depend on timing: over a thread's rows, over
// the groups of a block, over the blocks by the block that comes last. No block waits for another.
#pragma once
#include "cuda/common.cuh"

namespace gloss::cuda {

constexpr int kPanelThreads = 512;
constexpr int kMostBlocks = 1024;  // of a grid
constexpr int kMostColumns = 128;  // of a panel

// A block's threads in groups of `lanes`, one row a group at a time. Lanes need not divide the block: the rest is idle.
struct Place {
  int groups, group, lane;
  bool valid;
  __device__ explicit Place(int lanes)
      : groups(kPanelThreads / lanes),
        group(int(threadIdx.x) / lanes),
        lane(int(threadIdx.x) % lanes),
        valid(group < groups) {}
  // Rows are fewer than 2^31 and a grid's groups fewer than 2^20: the row after the last fits as well.
  __device__ unsigned first_row() const { return blockIdx.x * unsigned(groups) + unsigned(group); }
  __device__ unsigned stride() const { return gridDim.x * unsigned(groups); }
};

// space[c] = sum over g of space[g * width + c]. Called by all threads of the block; synchronises before and after.
__device__ inline void fold(double* space, int count, int width) {
  int half = 1;
  while (2 * half < count) half *= 2;
  __syncthreads();
  for (; half > 0; half /= 2) {
    for (int at = threadIdx.x; at < half * width; at += kPanelThreads)
      if (at + half * width < count * width) space[at] += space[at + half * width];
    __syncthreads();
    count = half;
  }
}

// Whether all other blocks of the launch were here already; what they wrote before is then visible.
__device__ inline bool is_last_block(unsigned* ticket) {
  GLOSS_SHARED(bool, last);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (last) *ticket = 0;
  }
  __syncthreads();
  const bool is_last = last;
  if (is_last) __threadfence();
  return is_last;
}

// `space` holds [count, width] numbers. In the last block space[c] becomes the sum over all blocks, and it returns
// true. width <= kMostColumns, so partials [blocks, width] are read by several threads a column.
__device__ inline bool column_sums(double* space, int count, int width, double* partials, unsigned* ticket) {
  fold(space, count, width);
  if (int(threadIdx.x) < width) partials[int64_t(blockIdx.x) * width + threadIdx.x] = space[threadIdx.x];
  if (!is_last_block(ticket)) return false;
  const Place at(width);
  double sum = 0;
  if (at.valid) {
#pragma unroll 8
    for (int block = at.group; block < int(gridDim.x); block += at.groups)
      sum += __ldcg(partials + int64_t(block) * width + at.lane);
    space[threadIdx.x] = sum;
  }
  fold(space, at.groups, width);
  return true;
}

}  // namespace gloss::cuda
