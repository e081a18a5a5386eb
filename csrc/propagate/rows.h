// Which rows to solve for (rows.cpp).
#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "gloss.h"

namespace gloss::cpu {

inline bool is_spreading(const PropagateOptions& options) { return !std::isnan(options.alpha); }

// reachable[i]: a path of positive weights leads from i to a fixed row. The graph is symmetric.
void find_reachable(Csr graph, const double* values, const uint8_t* fixed, uint8_t* reachable, int threads);

// The nodes i < n with wanted(i) as rows, and back: node [rows], row_of [n] (-1: none).
template <class Wanted>
void select_rows(int64_t n, const Wanted& wanted, std::vector<int64_t>& node, std::vector<int32_t>& row_of) {
  if (n > INT32_MAX) throw std::invalid_argument("graph must have at most 2^31 - 1 nodes, got more");
  row_of.assign(static_cast<size_t>(n), -1);
  for (int64_t i = 0; i < n; ++i) {
    if (!wanted(i)) continue;
    row_of[i] = int32_t(node.size());
    node.push_back(i);
  }
}

}  // namespace gloss::cpu
