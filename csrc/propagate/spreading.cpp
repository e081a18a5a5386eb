#include "spreading.h"


namespace gloss::cpu {

template <class T>
Spreading<T> spreading_system(Csr graph, const double* values, const uint8_t* reachable,
                              const PropagateOptions& options) {
  Spreading<T> out;
  select_rows(graph.n, [&](int64_t i) { return bool(reachable[i]); }, out.node, out.row_of);
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
