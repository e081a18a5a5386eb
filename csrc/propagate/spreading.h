// The system of label spreading, (I - alpha M) F = (1 - alpha) Y, on the reachable rows (spreading.cpp).
#pragma once
#include <cstdint>
#include <vector>

#include "gloss.h"
#include "kernels.h"
#include "rows.h"

namespace gloss::cpu {

template <class T>
struct Spreading {
  std::vector<int64_t> node;    // [rows] -> node: the reachable ones
  std::vector<int32_t> row_of;  // [n] -> row, or -1
  std::vector<int64_t> crow;    // [rows + 1], of alpha M
  std::vector<int32_t> col;
  std::vector<T> value;

  int64_t rows() const { return int64_t(node.size()); }
  System<T> system() const { return {rows(), crow.data(), col.data(), value.data()}; }
};

template <class T>
Spreading<T> spreading_system(Csr graph, const double* values, const uint8_t* reachable,
                              const PropagateOptions& options);

}  // namespace gloss::cpu
