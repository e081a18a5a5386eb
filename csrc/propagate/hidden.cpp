#include "hidden.h"

#include <algorithm>
#include <stdexcept>

namespace gloss::cpu {

void find_reachable(Csr graph, const double* values, const uint8_t* fixed, uint8_t* reachable, int threads) {
  // Nearly every row has a fixed neighbour; a look at each row's own edges finds those, side by side.
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < graph.n; ++i) {
    bool found = fixed[i];
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1] && !found; ++e) found = fixed[graph.col[e]] && values[e] > 0;
    reachable[i] = found;
  }
  // The rest, depth first from each row that has a reachable neighbour: every edge of these rows is seen at most twice.
  std::vector<int64_t> stack;
  for (int64_t start = 0; start < graph.n; ++start) {
    if (reachable[start]) continue;
    for (int64_t e = graph.crow[start]; e < graph.crow[start + 1]; ++e)
      if (reachable[graph.col[e]] && values[e] > 0) {
        reachable[start] = 1;
        stack.push_back(start);
        break;
      }
    while (!stack.empty()) {
      const int64_t i = stack.back();
      stack.pop_back();
      for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e) {
        const int64_t j = graph.col[e];
        if (reachable[j] || !(values[e] > 0)) continue;
        reachable[j] = 1;
        stack.push_back(j);
      }
    }
  }
}

template <class T>
Spreading<T> spreading_system(Csr graph, const double* values, const uint8_t* reachable,
                              const PropagateOptions& options) {
  if (graph.n > INT32_MAX) throw std::invalid_argument("graph must have at most 2^31 - 1 nodes, got more");
  Spreading<T> out;
  out.row_of.assign(static_cast<size_t>(graph.n), -1);
  for (int64_t i = 0; i < graph.n; ++i) {
    if (!reachable[i]) continue;
    out.row_of[i] = int32_t(out.node.size());
    out.node.push_back(i);
  }
  const int64_t rows = out.rows();
  out.crow.assign(static_cast<size_t>(rows + 1), 0);
  for (int64_t row = 0; row < rows; ++row) {  // a positive weight leads to a reachable row
    int64_t count = 0;
    for (int64_t e = graph.crow[out.node[row]]; e < graph.crow[out.node[row] + 1]; ++e) count += values[e] > 0;
    out.crow[row + 1] = out.crow[row] + count;
  }
  out.col.resize(static_cast<size_t>(out.crow[rows]));
  out.value.resize(static_cast<size_t>(out.crow[rows]));
#pragma omp parallel for num_threads(options.threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    int64_t to = out.crow[row];
    for (int64_t e = graph.crow[out.node[row]]; e < graph.crow[out.node[row] + 1]; ++e) {
      if (!(values[e] > 0)) continue;
      out.col[to] = out.row_of[graph.col[e]];
      out.value[to] = T(options.alpha * values[e]);
      ++to;
    }
  }
  return out;
}

template Spreading<float> spreading_system<float>(Csr, const double*, const uint8_t*, const PropagateOptions&);
template Spreading<double> spreading_system<double>(Csr, const double*, const uint8_t*, const PropagateOptions&);

}  // namespace gloss::cpu
