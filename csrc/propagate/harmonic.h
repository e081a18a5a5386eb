// The harmonic system of label propagation: which rows to solve for, their weights, and the hierarchy (harmonic.cpp).
//
// Unknown are the reachable rows that are not fixed. Row i of the system is, without a subtraction,
//   e_i F_i + sum_j M_ij (F_i - F_j) = sum_l M_il F_l + eps D_i prior,    e_i = sum_l M_il + eps D_i,
// j the unknown and l the fixed neighbours, D_i the sum of all weights of row i.
#pragma once
#include <cstdint>
#include <vector>

#include "gloss.h"
#include "hierarchy.h"

namespace gloss::cpu {

struct HarmonicRows {
  int64_t rows() const { return int64_t(node.size()); }
  struct Border {
    std::vector<int64_t> crow;   // [rows + 1]
    std::vector<int32_t> col;    // nodes
    std::vector<double> weight;  // M_il
  };
  std::vector<int64_t> node;    // [rows] -> node
  std::vector<int32_t> row_of;  // [n] -> row, or -1
  std::vector<double> pull;     // [rows]: eps D
  Border border;                // to the fixed neighbours
  WeightedGraph graph;          // of the unknown rows, until the hierarchy is built from it
  double spread = 1;            // the largest weight over the smallest
};

HarmonicRows harmonic_rows(Csr graph, const double* values, const uint8_t* fixed, const uint8_t* reachable,
                           const PropagateOptions& options);

// Builds the hierarchy from rows.graph, which is moved, and puts the rows in its order.
template <class S>
Hierarchy<S> order_rows(HarmonicRows& rows, int threads);

// Whether float holds what is needed to solve to tol: a group's residual is lost below the square of its rounding,
// relative to the strongest weight within it.
inline bool needs_double(const HarmonicRows& rows, double tol) { return tol < 1e-5 || rows.spread > 1e9; }

}  // namespace gloss::cpu
