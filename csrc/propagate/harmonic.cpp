#include "harmonic.h"

#include <algorithm>
#include <utility>

#include "rows.h"

namespace gloss::cpu {

HarmonicRows harmonic_rows(Csr graph, const double* values, const uint8_t* fixed, const uint8_t* reachable,
                           const PropagateOptions& options) {
  HarmonicRows out;
  select_rows(graph.n, [&](int64_t i) { return reachable[i] && !fixed[i]; }, out.node, out.row_of);
  const int64_t rows = out.rows();
  out.pull.resize(static_cast<size_t>(rows));
  WeightedGraph& own = out.graph;
  own.excess.resize(static_cast<size_t>(rows));
  own.crow.assign(static_cast<size_t>(rows + 1), 0);
  out.border.crow = own.crow;
  double largest = 0, smallest = 0;
#pragma omp parallel for num_threads(options.threads) schedule(static) reduction(max : largest, smallest)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t i = out.node[row];
    double degree = 0, excess = 0;
    int64_t count = 0, outward = 0;
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e) {
      const double weight = values[e];
      if (!(weight > 0)) continue;
      degree += weight;
      if (out.row_of[graph.col[e]] >= 0) ++count;
      else excess += weight, ++outward;  // a neighbour that is not unknown is fixed: this row reaches it
      largest = std::max(largest, weight), smallest = std::max(smallest, 1 / weight);
    }
    out.pull[row] = options.prior_strength * degree;
    own.excess[row] = excess + out.pull[row];
    own.crow[row + 1] = count, out.border.crow[row + 1] = outward;
  }
  out.spread = largest * smallest;
  const auto lay_out = [rows](auto& part) {
    for (int64_t row = 0; row < rows; ++row) part.crow[row + 1] += part.crow[row];
    part.col.resize(static_cast<size_t>(part.crow[rows]));
    part.weight.resize(static_cast<size_t>(part.crow[rows]));
  };
  lay_out(own), lay_out(out.border);
#pragma omp parallel for num_threads(options.threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    int64_t inward = own.crow[row], outward = out.border.crow[row];
    for (int64_t e = graph.crow[out.node[row]]; e < graph.crow[out.node[row] + 1]; ++e) {
      if (!(values[e] > 0)) continue;
      const int32_t other = out.row_of[graph.col[e]];
      if (other >= 0) own.col[inward] = other, own.weight[inward++] = values[e];
      else out.border.col[outward] = int32_t(graph.col[e]), out.border.weight[outward++] = values[e];
    }
  }
  return out;
}

template <class S>
Hierarchy<S> order_rows(HarmonicRows& rows, int threads) {
  Hierarchy<S> out = build_hierarchy<S>(std::move(rows.graph), threads);
  std::vector<int64_t> node(rows.node.size());
  std::vector<double> pull(rows.pull.size());
  HarmonicRows::Border border;
  border.crow.assign(1, 0);
  border.col.reserve(rows.border.col.size()), border.weight.reserve(rows.border.weight.size());
  for (size_t row = 0; row < node.size(); ++row) {
    const int32_t from = out.order[row];
    node[row] = rows.node[from], pull[row] = rows.pull[from];
    rows.row_of[node[row]] = int32_t(row);
    for (int64_t e = rows.border.crow[from]; e < rows.border.crow[from + 1]; ++e)
      border.col.push_back(rows.border.col[e]), border.weight.push_back(rows.border.weight[e]);
    border.crow.push_back(int64_t(border.col.size()));
  }
  rows.node = std::move(node), rows.pull = std::move(pull), rows.border = std::move(border);
  return out;
}

template Hierarchy<float> order_rows<float>(HarmonicRows&, int);
template Hierarchy<double> order_rows<double>(HarmonicRows&, int);

}  // namespace gloss::cpu
