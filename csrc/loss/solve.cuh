// The solve of the dense mini-batch path as the work of one block: which rows are solved for, their system, its Cholesky
// factor, F, the loss, the adjoint. Every function is called by all threads of the block and ends synchronised.
#pragma once
#include "cuda/common.cuh"
#include "gloss.h"

namespace gloss::cuda {

constexpr int kSolveThreads = 512;
constexpr int kMostRows = 512;     // n
constexpr int kPanelColumns = 16;  // of the factorisation: [rows, 16] doubles in shared memory

// A = L L^T in place, lower triangle of [n, stride], panel after panel: a panel first loses what the columns before it
// contribute, then is factored in shared memory. Returns whether A was positive definite.
__device__ inline bool cholesky(int n, int64_t stride, double* a, double* panel) {
  const int threads = blockDim.x, me = threadIdx.x;
  bool good = true;
  for (int first = 0; first < n; first += kPanelColumns) {
    const int columns = min(kPanelColumns, n - first), rows = n - first;
    for (int at = me; at < rows * columns; at += threads) {
      const int r = at / columns, c = at % columns;
      const double *l = a + (first + r) * stride, *m = a + (first + c) * stride;
      double value = l[first + c];
      for (int k = 0; k < first; ++k) value -= l[k] * m[k];
      panel[r * kPanelColumns + c] = value;
    }
    __syncthreads();
    for (int j = 0; j < columns; ++j) {
      const double pivot = panel[j * kPanelColumns + j];
      good = good && pivot > 0;
      const double root = sqrt(pivot > 0 ? pivot : 1.0);
      __syncthreads();
      for (int r = j + me; r < rows; r += threads) panel[r * kPanelColumns + j] = r == j ? root : panel[r * kPanelColumns + j] / root;
      __syncthreads();
      const int left = columns - j - 1;
      for (int at = me; at < (rows - j - 1) * left; at += threads) {
        const int r = j + 1 + at / left, c = j + 1 + at % left;
        panel[r * kPanelColumns + c] -= panel[r * kPanelColumns + j] * panel[c * kPanelColumns + j];
      }
      __syncthreads();
    }
    for (int at = me; at < rows * columns; at += threads) {
      const int r = at / columns, c = at % columns;
      a[(first + r) * stride + first + c] = panel[r * kPanelColumns + c];
    }
    __syncthreads();
  }
  return good;
}

// x <- (L L^T)^-1 x, x [n, classes].
__device__ inline void solve_factor(int n, int64_t stride, const double* l, int classes, double* x) {
  const int threads = blockDim.x, me = threadIdx.x;
  for (int k = 0; k < n; ++k) {
    for (int c = me; c < classes; c += threads) x[k * classes + c] /= l[k * stride + k];
    __syncthreads();
    for (int at = me; at < (n - k - 1) * classes; at += threads) {
      const int r = k + 1 + at / classes, c = at % classes;
      x[r * classes + c] -= l[r * stride + k] * x[k * classes + c];
    }
    __syncthreads();
  }
  for (int k = n - 1; k >= 0; --k) {
    for (int c = me; c < classes; c += threads) x[k * classes + c] /= l[k * stride + k];
    __syncthreads();
    for (int at = me; at < k * classes; at += threads) {
      const int r = at / classes, c = at % classes;
      x[r * classes + c] -= l[k * stride + r] * x[k * classes + c];
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
