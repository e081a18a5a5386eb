// The linear system of the documents whose probabilities are unknown, scaled to unit diagonal (hidden.cpp).
//
// Harmonic: unknown are the reachable rows that are not fixed. With s_i = 1 / sqrt(D_i (1 + eps)) the system
// (D (1 + eps) - M) F = b becomes (I - B) Y = s b, B_ij = s_i M_ij s_j, F = s Y. Plain conjugate gradients on it are
// those with the diagonal as preconditioner on the original, one pass and one dot product cheaper.
// Spreading: unknown are all reachable rows, B = alpha M, s = 1.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "gloss.h"
#include "kernels.h"

namespace gloss::cpu {

template <class T>
struct Hidden {
  std::vector<int64_t> node;    // [rows] -> node
  std::vector<int32_t> row_of;  // [n] -> row, or -1
  std::vector<double> degree;   // [rows], D_i
  std::vector<double> scale;    // [rows], s_i
  struct Entries {
    std::vector<int64_t> crow;  // [rows + 1]
    std::vector<int32_t> col;
    std::vector<T> value;
  };
  Entries inner;   // B; columns are rows of this system
  Entries border;  // harmonic: s_i M_ij of the fixed neighbours; columns are nodes

  int64_t rows() const { return int64_t(node.size()); }
  System<T> system() const { return {rows(), inner.crow.data(), inner.col.data(), inner.value.data()}; }
  System<T> border_system() const { return {rows(), border.crow.data(), border.col.data(), border.value.data()}; }
};

inline bool is_spreading(const PropagateOptions& options) { return !std::isnan(options.alpha); }

// reachable[i]: a path of positive weights leads from i to a fixed row. The graph is symmetric.
template <class T>
void find_reachable(Csr graph, const T* values, const uint8_t* fixed, uint8_t* reachable, int threads);

template <class T>
Hidden<T> hidden_system(Csr graph, const T* values, const uint8_t* fixed, const uint8_t* reachable,
                        const PropagateOptions& options);

}  // namespace gloss::cpu
