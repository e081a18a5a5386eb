#include "hierarchy.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cpu/parallel.h"

namespace gloss::cpu {
namespace {

constexpr double kDamping = 0.7;     // of Jacobi: D^-1 A has eigenvalues up to 2, so the step has them within (-0.4, 1)
constexpr double kHeld = 0.25;       // a row whose excess is this share of its diagonal needs no coarse level
constexpr double kStrong = 0.5;      // of both rows' strongest weights: a pair may form where its weight is at least this
constexpr double kJoin = 0.1;        // of a row's diagonal: it may join its strongest neighbour's pair
constexpr double kStall = 0.9;       // a level that keeps more of its rows is the last
constexpr int64_t kSmall = 100;      // rows of a level that is not coarsened any more
constexpr int64_t kDirect = 256;     // rows of a system that is eliminated as it is
constexpr int64_t kMostDense = 512;  // rows that are eliminated
constexpr int kPairRounds = 8;
constexpr int32_t kHeldRow = -2, kFree = -1;

// The same for (i, j) and (j, i); orders equal weights in no pattern, or pairs of equal weights would form one by one.
inline uint32_t shuffled(int32_t i, int32_t j) {
  uint64_t x = uint64_t(uint32_t(std::min(i, j))) << 32 | uint32_t(std::max(i, j));
  x = (x ^ (x >> 31)) * 0x7fb5d329728ea185u;
  x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44du;
  return uint32_t(x >> 32);
}

struct Grouping {
  std::vector<int32_t> of;  // [rows] -> group, or kHeldRow
  int64_t groups = 0;
};

// Heavy-edge matching. Pairs: rows that are each other's strongest free neighbour, by strong edges only (a row whose
// strong neighbours are taken must not pair with what it hardly hangs on), in rounds; then what is left joins the pair
// of its strongest neighbour. Every round looks at the state before it, so the result does not depend on the threads.
Grouping group_rows(const WeightedGraph& graph, int threads) {
  const int64_t n = graph.rows();
  Grouping out;
  out.of.assign(static_cast<size_t>(n), kFree);
  std::vector<double> strongest(static_cast<size_t>(n)), diagonal(static_cast<size_t>(n));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    double sum = graph.excess[i];
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e) sum += graph.weight[e];
    diagonal[i] = sum;
    if (graph.excess[i] >= kHeld * sum) out.of[i] = kHeldRow;
  }
  const auto best = [&](int64_t i, auto allowed) {
    int32_t found = kFree;
    double weight = 0;
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e) {
      const int32_t j = graph.col[e];
      const double w = graph.weight[e];
      if (w < weight || !allowed(j, w)) continue;
      if (w > weight || shuffled(int32_t(i), j) > shuffled(int32_t(i), found)) found = j, weight = w;
    }
    return std::pair(found, weight);
  };
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i)
    strongest[i] = out.of[i] == kHeldRow ? 0 : best(i, [&](int32_t j, double) { return out.of[j] != kHeldRow; }).second;

  std::vector<int32_t> wanted(static_cast<size_t>(n), kFree);
  for (int round = 0; round < kPairRounds; ++round) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i)
      wanted[i] = out.of[i] != kFree ? kFree : best(i, [&](int32_t j, double w) {
        return out.of[j] == kFree && w >= kStrong * std::max(strongest[i], strongest[j]);
      }).first;
    bool any = false;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t j = wanted[i];
      if (j <= i || wanted[j] != i) continue;
      out.of[i] = out.of[j] = int32_t(out.groups++);
      any = true;
    }
    if (!any) break;
  }
  for (int round = 0; round < 2; ++round) {
    std::copy(out.of.begin(), out.of.end(), wanted.begin());
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      if (wanted[i] != kFree) continue;
      const auto [j, w] = best(i, [&](int32_t k, double) { return wanted[k] != kHeldRow; });
      if (j >= 0 && wanted[j] >= 0 && w >= kJoin * diagonal[i]) out.of[i] = wanted[j];
    }
  }
  for (int32_t& group : out.of)
    if (group == kFree) group = int32_t(out.groups++);
  return out;
}

// Sums of weights between groups; weights to held rows count as excess: there the correction is 0.
WeightedGraph coarse_graph(const WeightedGraph& fine, const Grouping& grouping, int threads) {
  const int64_t groups = grouping.groups;
  std::vector<int64_t> begin(static_cast<size_t>(groups + 1), 0);
  for (const int32_t g : grouping.of)
    if (g >= 0) ++begin[g + 1];
  for (int64_t g = 0; g < groups; ++g) begin[g + 1] += begin[g];
  std::vector<int32_t> member(static_cast<size_t>(begin[groups]));
  {
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t i = 0; i < fine.rows(); ++i)
      if (grouping.of[i] >= 0) member[next[grouping.of[i]]++] = int32_t(i);
  }
  WeightedGraph out;
  out.excess.assign(static_cast<size_t>(groups), 0.0);
  out.crow.assign(static_cast<size_t>(groups + 1), 0);
  struct Part {
    std::vector<int32_t> col;
    std::vector<double> weight;
  };
  std::vector<Part> parts(static_cast<size_t>(threads));
  parallel(threads, [&](int thread) {
    Part& part = parts[thread];
    std::vector<int64_t> place(static_cast<size_t>(groups), -1);
    for (int64_t g = groups * thread / threads; g < groups * (thread + 1) / threads; ++g) {
      const int64_t start = int64_t(part.col.size());
      double excess = 0;
      for (int64_t m = begin[g]; m < begin[g + 1]; ++m) {
        const int64_t i = member[m];
        excess += fine.excess[i];
        for (int64_t e = fine.crow[i]; e < fine.crow[i + 1]; ++e) {
          const int32_t to = grouping.of[fine.col[e]];
          if (to < 0) excess += fine.weight[e];
          else if (to != g) {
            if (place[to] < start) {
              place[to] = int64_t(part.col.size());
              part.col.push_back(to);
              part.weight.push_back(0);
            }
            part.weight[place[to]] += fine.weight[e];
          }
        }
      }
      out.excess[g] = excess;
      out.crow[g + 1] = int64_t(part.col.size()) - start;
    }
  });
  for (int64_t g = 0; g < groups; ++g) out.crow[g + 1] += out.crow[g];
  out.col.reserve(static_cast<size_t>(out.crow[groups]));
  out.weight.reserve(static_cast<size_t>(out.crow[groups]));
  for (Part& part : parts) {
    out.col.insert(out.col.end(), part.col.begin(), part.col.end());
    out.weight.insert(out.weight.end(), part.weight.begin(), part.weight.end());
    part = Part();
  }
  return out;
}

// Rows in the order `order`; columns by `position`, its inverse.
template <class T>
Level<T> ordered_level(const WeightedGraph& graph, const std::vector<int32_t>& order,
                       const std::vector<int32_t>& position, int threads) {
  Level<T> out;
  out.rows = graph.rows();
  out.crow.assign(static_cast<size_t>(out.rows + 1), 0);
  for (int64_t p = 0; p < out.rows; ++p)
    out.crow[p + 1] = out.crow[p] + graph.crow[order[p] + 1] - graph.crow[order[p]];
  out.col.resize(static_cast<size_t>(out.crow[out.rows]));
  out.weight.resize(static_cast<size_t>(out.crow[out.rows]));
  out.excess.resize(static_cast<size_t>(out.rows));
  out.damped.resize(static_cast<size_t>(out.rows));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < out.rows; ++p) {
    const int64_t i = order[p];
    double diagonal = graph.excess[i];
    int64_t to = out.crow[p];
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e, ++to) {
      diagonal += graph.weight[e];
      out.col[to] = position[graph.col[e]];
      out.weight[to] = T(graph.weight[e]);
    }
    out.excess[p] = T(graph.excess[i]);
    out.damped[p] = T(diagonal > 0 ? kDamping / diagonal : 0);
  }
  return out;
}

}  // namespace

template <class T>
Hierarchy<T> build_hierarchy(WeightedGraph finest, int threads) {
  std::vector<WeightedGraph> graphs;
  std::vector<Grouping> groupings;
  graphs.push_back(std::move(finest));
  while (graphs.back().rows() > (graphs.size() == 1 ? kDirect : kSmall)) {
    Grouping grouping = group_rows(graphs.back(), threads);
    if (double(grouping.groups) > kStall * double(graphs.back().rows())) break;
    graphs.push_back(coarse_graph(graphs.back(), grouping, threads));
    groupings.push_back(std::move(grouping));
  }
  Hierarchy<T> out;
  out.levels.resize(graphs.size());
  const WeightedGraph& last = graphs.back();
  std::vector<int32_t> order(static_cast<size_t>(last.rows())), position, above;
  std::iota(order.begin(), order.end(), 0);
  above = order;
  if (last.rows() <= kMostDense) out.coarsest = Elimination(last.crow, last.col, last.weight, last.excess);
  out.levels.back() = ordered_level<T>(last, order, above, threads);
  out.levels.back().first.assign(1, 0);
  for (int64_t l = int64_t(graphs.size()) - 2; l >= 0; --l) {
    const WeightedGraph& graph = graphs[l];
    const Grouping& grouping = groupings[l];
    const int64_t n = graph.rows();
    std::vector<int32_t> first(static_cast<size_t>(grouping.groups + 2), 0);  // one more: the rows of no group
    const auto place = [&](int64_t i) { return grouping.of[i] < 0 ? grouping.groups : above[grouping.of[i]]; };
    for (int64_t i = 0; i < n; ++i) ++first[place(i) + 1];
    for (int64_t g = 0; g <= grouping.groups; ++g) first[g + 1] += first[g];
    order.assign(static_cast<size_t>(n), 0);
    position.assign(static_cast<size_t>(n), 0);
    std::vector<int32_t> next(first.begin(), first.end() - 1);
    for (int64_t i = 0; i < n; ++i) {
      position[i] = next[place(i)]++;
      order[position[i]] = int32_t(i);
    }
    out.levels[l] = ordered_level<T>(graph, order, position, threads);
    first.pop_back();
    out.levels[l].first = std::move(first);
    graphs[l] = WeightedGraph();
    above = position;
  }
  out.order = std::move(order);
  return out;
}

template Hierarchy<float> build_hierarchy<float>(WeightedGraph, int);
template Hierarchy<double> build_hierarchy<double>(WeightedGraph, int);

}  // namespace gloss::cpu
