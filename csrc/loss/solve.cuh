// The solve of the dense mini-batch path as the work of one block: which rows are solved for, the factor of their system,
// a solution. Every function is called by all threads of the block and ends synchronised.
#pragma once
#include "cuda/common.cuh"
#include "gloss.h"

namespace gloss::cuda {

constexpr int kSolveThreads = 512;
constexpr int kMostRows = 512;  // n
constexpr int kPanelRows = 16;  // of the elimination: [16, columns] doubles in shared memory

// Of X = diag(W 1 + e) - W = R^T R the factor R in place, without a subtraction (loss/kernels.h, DenseKernels::eliminate):
// a [n, stride > n] has W right of the diagonal and e in column n; R is without the sign of what is right of its diagonal.
// Panel after panel: one first takes what the rows above it contribute, then is factored in shared memory.
__device__ inline void eliminate(int n, int64_t stride, double* a, double* panel) {
  const int threads = blockDim.x, me = threadIdx.x;
  for (int first = 0; first < n; first += kPanelRows) {
    const int rows = min(kPanelRows, n - first), columns = n + 1 - first;
    for (int at = me; at < rows * columns; at += threads) {
      const int r = at / columns, c = at % columns;
      double value = a[(first + r) * stride + first + c];
      for (int k = 0; k < first; ++k) value += a[k * stride + first + r] * a[k * stride + first + c];
      panel[at] = value;
    }
    __syncthreads();
    for (int j = 0; j < rows; ++j) {
      double* row = panel + j * columns;
      double pivot = 0;  // what is left in the row; every warp takes all of it, so that none waits for another
      for (int c = j + 1 + me % 32; c < columns; c += 32) pivot += row[c];
      const double root = sqrt(warp_sum(pivot));
      __syncthreads();
      for (int c = j + me; c < columns; c += threads) row[c] = c == j ? root : row[c] / root;
      __syncthreads();
      const int wide = columns - j - 1;
      for (int at = me; at < (rows - j - 1) * wide; at += threads) {
        const int r = j + 1 + at / wide, c = j + 1 + at % wide;
        if (c > r) panel[r * columns + c] += row[r] * row[c];
      }
      __syncthreads();
    }
    for (int at = me; at < rows * columns; at += threads) {
      const int r = at / columns, c = at % columns;
      a[(first + r) * stride + first + c] = panel[at];
    }
    __syncthreads();
  }
}

// x <- (R^T R)^-1 x, x [n, columns].
__device__ inline void solve_factor(int n, int64_t stride, const double* a, int columns, double* x) {
  const int threads = blockDim.x, me = threadIdx.x;
  for (int k = 0; k < n; ++k) {
    for (int c = me; c < columns; c += threads) x[k * columns + c] /= a[k * stride + k];
    __syncthreads();
    for (int at = me; at < (n - k - 1) * columns; at += threads) {
      const int r = k + 1 + at / columns, c = at % columns;
      x[r * columns + c] += a[k * stride + r] * x[k * columns + c];
    }
    __syncthreads();
  }
  for (int k = n - 1; k >= 0; --k) {
    for (int c = me; c < columns; c += threads) x[k * columns + c] /= a[k * stride + k];
    __syncthreads();
    for (int at = me; at < k * columns; at += threads) {
      const int r = at / columns, c = at % columns;
      x[r * columns + c] += a[r * stride + k] * x[k * columns + c];
    }
    __syncthreads();
  }
}

// reached[i] <- a path of positive weights leads from i to a labelled row.
__device__ inline void find_reachable(int n, const double* weights, const int* labels, int* reached) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) reached[i] = labels[i] >= 0;
  __syncthreads();
  static_assert(kMostRows <= kSolveThreads, "a thread decides of at most one row");
  for (bool changed = true; changed;) {
    const int i = threadIdx.x;
    bool found = false;
    if (i < n && !reached[i])
      for (int j = 0; j < n && !found; ++j) found = reached[j] && weights[int64_t(j) * n + i] > 0;
    changed = __syncthreads_or(found);
    if (found) reached[i] = 1;
    __syncthreads();
  }
}

// rows[position] = i for the rows with wanted(i), ascending, position_of[i] its position or -1. Returns their number.
template <class Wanted>
__device__ inline int compact(int n, int* rows, int* position_of, const Wanted& wanted) {
  const int i = threadIdx.x;
  int before = 0;
  const bool take = i < n && wanted(i);
  if (i < n) {
    for (int j = 0; j < i; ++j) before += wanted(j);
    position_of[i] = take ? before : -1;
    if (take) rows[before] = i;
  }
  return __syncthreads_count(take);
}

}  // namespace gloss::cuda
