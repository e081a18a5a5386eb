// Sparsity of the symmetrised k-nearest-neighbour graph (gloss.h: cpu::knn_structure).
//
// Row i of the result merges two sorted lists: N(i), the neighbours of i, and R(i), the nodes that have i as neighbour.
// R comes out of a counting sort of all directed edges by target. Sources are visited in ascending order, so each R(i)
// is sorted without a comparison.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "gloss.h"

namespace gloss::cpu {
namespace {

constexpr int64_t kNobody = -1;

struct Edge {
  int64_t node;
  int64_t position;  // i * k + r in the flat [n * k] weights
};

// Sorted copies of the rows of indices; the first bad entry throws.
std::vector<Edge> sorted_neighbors(const int64_t* indices, int64_t n, int64_t k, int threads) {
  std::vector<Edge> edges(static_cast<size_t>(n * k));  // [n, k]
  std::atomic<int64_t> bad{n};
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    Edge* row = edges.data() + i * k;
    bool good = true;
    for (int64_t r = 0; r < k; ++r) {
      const int64_t j = indices[i * k + r];
      good &= j >= 0 && j < n && j != i;
      row[r] = {j, i * k + r};
    }
    std::sort(row, row + k, [](const Edge& a, const Edge& b) { return a.node < b.node; });
    for (int64_t r = 1; r < k; ++r) good &= row[r].node != row[r - 1].node;
    if (!good) {
      int64_t first = bad.load();
      while (i < first && !bad.compare_exchange_weak(first, i)) {
      }
    }
  }
  const int64_t i = bad.load();
  if (i == n) return edges;
  const std::string row = "indices: row " + std::to_string(i);
  for (int64_t r = 0; r < k; ++r) {
    const int64_t j = indices[i * k + r];
    if (j < 0 || j >= n) throw std::invalid_argument(row + " names node " + std::to_string(j) + ", outside 0.." + std::to_string(n - 1));
    if (j == i) throw std::invalid_argument(row + " names itself");
  }
  throw std::invalid_argument(row + " names a node twice");
}

// The directed edges grouped by target, sources ascending: edges[begin[j]] .. edges[begin[j + 1]] - 1.
struct Reversed {
  std::vector<int64_t> begin;  // [n + 1]
  std::vector<Edge> edges;     // [n k]; node is the source
};

Reversed reversed_edges(const int64_t* indices, int64_t n, int64_t k, int threads) {
  // Each thread counts and places the edges of its own range of sources; ranges are in order, so placement is the same
  // for every number of threads.
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, n));
  std::vector<std::vector<int64_t>> next(static_cast<size_t>(parts));  // [parts][n]: counts, then places
  Reversed out;
  out.begin.assign(static_cast<size_t>(n + 1), 0);
  out.edges.resize(static_cast<size_t>(n * k));
  for (auto& counts : next) counts.assign(static_cast<size_t>(n), 0);  // here: nothing may throw in a parallel region
  const auto first = [&](int64_t part) { return n * part / parts; };
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t e = first(part) * k; e < first(part + 1) * k; ++e) ++next[part][indices[e]];
  int64_t total = 0;
  for (int64_t j = 0; j < n; ++j) {
    out.begin[j] = total;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t count = next[part][j];
      next[part][j] = total;
      total += count;
    }
  }
  out.begin[n] = total;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = first(part); i < first(part + 1); ++i)
      for (int64_t r = 0; r < k; ++r) out.edges[next[part][indices[i * k + r]]++] = {i, i * k + r};
  return out;
}

// Calls visit(node, forward, reverse) for every node of N(i) and R(i), ascending.
template <class Visit>
void merge(const Edge* own, const Edge* own_end, const Edge* other, const Edge* other_end, Visit visit) {
  while (own < own_end || other < other_end) {
    if (other == other_end || (own < own_end && own->node < other->node)) {
      visit(own->node, own->position, kNobody);
      ++own;
    } else if (own == own_end || other->node < own->node) {
      visit(other->node, kNobody, other->position);
      ++other;
    } else {
      visit(own->node, own->position, other->position);
      ++own, ++other;
    }
  }
}

}  // namespace

void knn_structure(const int64_t* indices, int64_t n, int64_t k, Symmetrize mode, int64_t capacity, int64_t* crow,
                   int64_t* col, int64_t* forward, int64_t* reverse, int threads) {
  const std::vector<Edge> own = sorted_neighbors(indices, n, k, threads);
  Reversed other;
  const bool directed = !is_edge(mode, false, true) && is_edge(mode, true, false);  // the reverse never matters
  if (directed) other.begin.assign(static_cast<size_t>(n + 1), 0);
  else other = reversed_edges(indices, n, k, threads);

  const auto each = [&](int64_t i, auto visit) {
    merge(own.data() + i * k, own.data() + (i + 1) * k, other.edges.data() + other.begin[i],
          other.edges.data() + other.begin[i + 1], [&](int64_t node, int64_t f, int64_t r) {
            if (is_edge(mode, f != kNobody, r != kNobody)) visit(node, f, r);
          });
  };
  crow[0] = 0;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    int64_t count = 0;
    each(i, [&](int64_t, int64_t, int64_t) { ++count; });
    crow[i + 1] = count;
  }
  for (int64_t i = 0; i < n; ++i) crow[i + 1] += crow[i];
  if (crow[n] > capacity)
    throw std::invalid_argument("capacity must be at least " + std::to_string(crow[n]) + ", got " +
                                std::to_string(capacity));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    int64_t e = crow[i];
    each(i, [&](int64_t node, int64_t f, int64_t r) {
      col[e] = node;
      forward[e] = f;
      reverse[e] = r;
      ++e;
    });
  }
  std::fill(col + crow[n], col + capacity, 0);
  std::fill(forward + crow[n], forward + capacity, kNobody);
  std::fill(reverse + crow[n], reverse + capacity, kNobody);
}

}  // namespace gloss::cpu
