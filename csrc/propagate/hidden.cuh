// The linear system of the rows to solve for, on the GPU, scaled to unit diagonal: I - B. Label spreading: B = alpha M. The
// harmonic solution of a captured graph: with s_i = 1 / sqrt(D_i (1 + eps)), (D (1 + eps) - M) F = b becomes (I - B) Y =
// s b, B_ij = s_i M_ij s_j, F = s Y. Its number of rows and edges only the device knows: buffers have room for every node
// and every entry of the graph, and kernels loop up to the numbers they find there.
#pragma once
#include <cmath>
#include <type_traits>

#include "cuda/common.cuh"
#include "cuda/workspace.cuh"

namespace gloss::cuda {

// The scaled weight B_ij and the row j, of one size so that an edge is one load.
template <class T>
struct alignas(2 * sizeof(T)) Edge {
  T value;
  std::conditional_t<sizeof(T) == 8, int64_t, int> col;
};

// Edges [begin, begin + count) of a row of B. A long row (by its edges in the graph) is a block's work, not a group's.
struct alignas(16) Row {
  int64_t begin;
  int count, is_long;
};
constexpr int64_t kLongRow = 128;

template <class T>
struct Hidden {
  int64_t n;                            // nodes
  int64_t *position, *begin, *long_at;  // [n + 1]: prefix sums; the last is the number of rows, edges, long rows
  int *row_of, *node;                   // [n]: node -> row or -1, and back
  double *degree, *scale;               // [n], by row: D_i, s_i
  Row* row;                             // [n]
  Edge<T>* edge;                        // [capacity]
  int* long_row;                        // [n]
  // Scratch.
  uint8_t* flag;  // [n]
  int *parent, *count;
  int64_t* sums;

  __device__ int64_t rows() const { return position[n]; }
  __device__ int64_t long_rows() const { return long_at[n]; }
};

template <class T>
Hidden<T> carve_hidden(Workspace& memory, int64_t n, int64_t capacity);

inline bool is_spreading(const cpu::PropagateOptions& options) { return !std::isnan(options.alpha); }

// reachable[i]: a path of positive weights leads from i to a fixed row.
template <class T>
void find_reachable(Csr graph, const T* values, const uint8_t* fixed, uint8_t* reachable, const Hidden<T>& space,
                    Queue queue);

template <class T>
void build_hidden(Csr graph, const T* values, const uint8_t* fixed, const uint8_t* reachable,
                  const cpu::PropagateOptions& options, const Hidden<T>& hidden, Queue queue);

}  // namespace gloss::cuda
