#include "hidden.h"

#include <algorithm>
#include <stdexcept>

namespace gloss::cpu {

template <class T>
void find_reachable(Csr graph, const T* values, const uint8_t* fixed, uint8_t* reachable, int threads) {
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
Hidden<T> hidden_system(Csr graph, const T* values, const uint8_t* fixed, const uint8_t* reachable,
                        const PropagateOptions& options) {
  const bool spreading = is_spreading(options);
  if (graph.n > INT32_MAX) throw std::invalid_argument("graph must have at most 2^31 - 1 nodes, got more");
  Hidden<T> out;
  out.row_of.assign(static_cast<size_t>(graph.n), -1);
  for (int64_t i = 0; i < graph.n; ++i) {
    if (!reachable[i] || (fixed[i] && !spreading)) continue;
    out.row_of[i] = int32_t(out.node.size());
    out.node.push_back(i);
  }
  const int64_t rows = out.rows();
  out.degree.resize(static_cast<size_t>(rows));
  out.scale.resize(static_cast<size_t>(rows));
  for (auto* part : {&out.inner, &out.border}) part->crow.assign(static_cast<size_t>(rows + 1), 0);
  // Calls visit(entry, its part, column there) for the edges of a row that count.
  const auto each_edge = [&](int64_t row, auto visit) {
    for (int64_t e = graph.crow[out.node[row]]; e < graph.crow[out.node[row] + 1]; ++e) {
      const int64_t j = graph.col[e];
      if (!(values[e] > 0)) continue;
      if (out.row_of[j] >= 0) visit(e, out.inner, out.row_of[j]);
      else if (fixed[j]) visit(e, out.border, int32_t(j));
    }
  };
#pragma omp parallel for num_threads(options.threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    double degree = 0;
    each_edge(row, [&](int64_t e, auto& part, int32_t) {
      degree += double(values[e]);
      ++part.crow[row + 1];
    });
    out.degree[row] = degree;
    out.scale[row] = spreading ? 1.0 : 1.0 / std::sqrt(degree * (1 + options.prior_strength));
  }
  for (auto* part : {&out.inner, &out.border}) {
    for (int64_t row = 0; row < rows; ++row) part->crow[row + 1] += part->crow[row];
    part->col.resize(static_cast<size_t>(part->crow[rows]));
    part->value.resize(static_cast<size_t>(part->crow[rows]));
  }
#pragma omp parallel for num_threads(options.threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    int64_t to_inner = out.inner.crow[row], to_border = out.border.crow[row];
    each_edge(row, [&](int64_t e, auto& part, int32_t column) {
      const bool inner = &part == &out.inner;
      int64_t& to = inner ? to_inner : to_border;
      const double m = spreading ? options.alpha * double(values[e]) : double(values[e]) * out.scale[row];
      part.col[to] = column;
      part.value[to] = T(inner && !spreading ? m * out.scale[column] : m);
      ++to;
    });
  }
  return out;
}

#define GLOSS_INSTANTIATE(T)                                                                                  \
  template void find_reachable<T>(Csr, const T*, const uint8_t*, uint8_t*, int);                              \
  template Hidden<T> hidden_system<T>(Csr, const T*, const uint8_t*, const uint8_t*, const PropagateOptions&);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
