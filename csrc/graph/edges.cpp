// Weights of the symmetrised graph and its normalisations, forward and backward (gloss.h: cpu::combine_edges,
// cpu::normalize_edges). All passes run row by row or entry by entry: no atomics, the same bits for any threads.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gloss.h"

namespace gloss::cpu {
namespace {

// Places and columns come from the caller. A read that compares with `count` costs what one that compares with 0 does;
// that some number was below `least` or above `most` shows in the sign of what is collected here, without a branch.
inline int64_t outside(int64_t x, int64_t least, int64_t most) {
  return int64_t((uint64_t(x) - uint64_t(least)) | (uint64_t(most) - uint64_t(x)));
}

inline bool is_place(int64_t position, int64_t count) { return uint64_t(position) < uint64_t(count); }

template <class T>
T at(const T* weights, int64_t count, int64_t position) {
  return is_place(position, count) ? weights[position] : T(0);
}

// Throws at the first place that is none; called where there is one.
void check_places(int64_t nnz, int64_t count, const int64_t* forward, const int64_t* reverse) {
  for (const auto& [name, places] : {std::pair("forward", forward), std::pair("reverse", reverse)})
    for (int64_t e = 0; e < nnz; ++e)
      if (places[e] != -1 && !is_place(places[e], count))
        throw std::invalid_argument(std::string(name) + " must be -1 or places in 0.." + std::to_string(count - 1) +
                                    ", got " + std::to_string(places[e]) + " for entry " + std::to_string(e));
}

}  // namespace

template <class T>
void combine_edges(int64_t nnz, int64_t num_weights, const int64_t* forward, const int64_t* reverse, Symmetrize mode,
                   const T* weights, T* values, int threads) {
  int64_t signs = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : signs)
  for (int64_t e = 0; e < nnz; ++e) {
    signs |= outside(forward[e], -1, num_weights - 1) | outside(reverse[e], -1, num_weights - 1);
    values[e] = combine(mode, at(weights, num_weights, forward[e]), at(weights, num_weights, reverse[e]));
  }
  if (signs < 0) check_places(nnz, num_weights, forward, reverse);
}

// An edge i -> j with both directions present has two entries, (i, j) as forward and (j, i) as reverse. The forward
// pass over entries first, then the reverse one: each weight is written by one entry a pass.
template <class T>
void combine_edges_backward(int64_t nnz, int64_t num_weights, const int64_t* forward, const int64_t* reverse,
                            Symmetrize mode, const T* weights, const T* grad_values, T* grad_weights, int threads) {
  std::fill(grad_weights, grad_weights + num_weights, T(0));
  int64_t signs = 0;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static) reduction(| : signs)
    for (int64_t e = 0; e < nnz; ++e) {
      const int64_t own = forward[e], other = reverse[e];
      signs |= outside(own, -1, num_weights - 1) | outside(other, -1, num_weights - 1);
      if (is_place(own, num_weights))
        grad_weights[own] = share(mode, weights[own], at(weights, num_weights, other)) * grad_values[e];
    }
    if (mode != Symmetrize::none) {
#pragma omp for schedule(static)
      for (int64_t e = 0; e < nnz; ++e) {
        const int64_t own = reverse[e];
        if (is_place(own, num_weights))
          grad_weights[own] += share(mode, weights[own], at(weights, num_weights, forward[e])) * grad_values[e];
      }
    }
  }
  if (signs < 0) check_places(nnz, num_weights, forward, reverse);
}

namespace {

// result[i] = sum_j term(i, j, e) over the entries e = (i, j) of row i.
template <class Term>
std::vector<double> row_sums(Csr graph, int threads, Term term) {
  std::vector<double> sums(static_cast<size_t>(graph.n));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < graph.n; ++i) {
    double sum = 0;
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e) sum += term(i, graph.col[e], e);
    sums[i] = sum;
  }
  return sums;
}

template <class Body>
void each_entry(Csr graph, int threads, Body body) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < graph.n; ++i)
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e) body(i, graph.col[e], e);
}

// Throws at the first row or column that is outside; called where there is one.
void check_graph(Csr graph, int64_t capacity) {
  for (int64_t i = 0; i < graph.n; ++i) {
    const int64_t begin = graph.crow[i], end = graph.crow[i + 1];
    if (begin < 0 || end < begin || end > capacity)
      throw std::invalid_argument("crow must rise within 0.." + std::to_string(capacity) + ", got " +
                                  std::to_string(begin) + " and " + std::to_string(end) + " around row " +
                                  std::to_string(i));
    for (int64_t e = begin; e < end; ++e)
      if (!is_place(graph.col[e], graph.n))
        throw std::invalid_argument("col must be nodes in 0.." + std::to_string(graph.n - 1) + ", got " +
                                    std::to_string(graph.col[e]) + " in row " + std::to_string(i));
  }
}

// A 1: the first pass, which checks the graph for those that follow. (Each addition waits for the one before, so that
// looking at the columns meanwhile costs little.)
template <class T>
std::vector<double> degrees(Csr graph, int64_t capacity, const T* a, int threads) {
  std::vector<double> sums(static_cast<size_t>(graph.n));
  int64_t signs = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : signs)
  for (int64_t i = 0; i < graph.n; ++i) {
    const int64_t begin = graph.crow[i], end = graph.crow[i + 1];
    if (begin < 0 || end < begin || end > capacity) {
      signs = -1;
      continue;
    }
    double sum = 0;
    for (int64_t e = begin; e < end; ++e) {
      sum += double(a[e]);
      signs |= outside(graph.col[e], 0, graph.n - 1);
    }
    sums[i] = sum;
  }
  if (signs < 0) check_graph(graph, capacity);
  return sums;
}

// Without a scale the entries stay as they are.
template <class T>
void copy_entries(Csr graph, int64_t capacity, const T* from, T* to) {
  const int64_t nnz = graph.crow[graph.n];
  if (nnz < 0 || nnz > capacity)
    throw std::invalid_argument("crow must rise within 0.." + std::to_string(capacity) + ", got " +
                                std::to_string(nnz) + " at its end");
  std::copy(from, from + nnz, to);
}

// x^exponent, and 0 for 0: a node without weight.
std::vector<double> powers(std::vector<double> x, double exponent) {
  for (double& v : x) v = v > 0 ? std::pow(v, exponent) : 0;
  return x;
}

// With d = A 1: r = d^-1/2; published: s = 1 / (A r). symmetric: s = r.
struct Scales {
  std::vector<double> r, s;
};

template <class T>
Scales scales(Csr graph, int64_t capacity, const T* a, Normalization mode, int threads) {
  Scales out;
  out.r = powers(degrees(graph, capacity, a, threads), -0.5);
  out.s = out.r;
  if (mode == Normalization::published)
    out.s = powers(row_sums(graph, threads, [&](int64_t, int64_t j, int64_t e) { return a[e] * out.r[j]; }), -1);
  return out;
}

}  // namespace

template <class T>
void normalize_edges(Csr graph, int64_t capacity, const T* values, Normalization mode, T* normalized, int threads) {
  if (mode == Normalization::row) return copy_entries(graph, capacity, values, normalized);
  const Scales by = scales(graph, capacity, values, mode, threads);
  each_entry(graph, threads,
             [&](int64_t i, int64_t j, int64_t e) { normalized[e] = T(values[e] * by.s[i] * by.s[j]); });
}

// M_ij = A_ij s_i s_j. With G = dL/dM symmetric, h_i = dL/ds_i = 2 sum_j G_ij A_ij s_j.
//   symmetric: s = d^-1/2, so dL/dd_i = -1/2 s_i^3 h_i.
//   published: s = 1/t, so dL/dt_i = -s_i^2 h_i; t_i = sum_j A_ij r_j gives A_ij the term dt_i r_j and
//              dL/dr = A dt; r = d^-1/2, so dL/dd_i = -1/2 r_i^3 (A dt)_i.
// d_i = sum_j A_ij gives A_ij the term dd_i. Terms that are not symmetric are shared between (i, j) and (j, i).
template <class T>
void normalize_edges_backward(Csr graph, int64_t capacity, const T* values, Normalization mode,
                              const T* grad_normalized, T* grad_values, int threads) {
  if (mode == Normalization::row) return copy_entries(graph, capacity, grad_normalized, grad_values);
  const Scales by = scales(graph, capacity, values, mode, threads);
  const auto& [r, s] = by;
  const T *a = values, *g = grad_normalized;
  std::vector<double> h = row_sums(
      graph, threads, [&, &s = s](int64_t, int64_t j, int64_t e) { return 2.0 * g[e] * a[e] * s[j]; });
  std::vector<double> dt(static_cast<size_t>(graph.n), 0.0), dr = h;
  if (mode == Normalization::published) {
    for (int64_t i = 0; i < graph.n; ++i) dt[i] = -h[i] * s[i] * s[i];
    dr = row_sums(graph, threads, [&](int64_t, int64_t j, int64_t e) { return a[e] * dt[j]; });
  }
  std::vector<double> dd(static_cast<size_t>(graph.n));
  for (int64_t i = 0; i < graph.n; ++i) dd[i] = -0.5 * r[i] * r[i] * r[i] * dr[i];
  each_entry(graph, threads, [&, &r = r, &s = s](int64_t i, int64_t j, int64_t e) {
    grad_values[e] = T(g[e] * s[i] * s[j] + 0.5 * (dt[i] * r[j] + dt[j] * r[i] + dd[i] + dd[j]));
  });
}

#define GLOSS_INSTANTIATE(T)                                                                                         \
  template void combine_edges<T>(int64_t, int64_t, const int64_t*, const int64_t*, Symmetrize, const T*, T*, int);   \
  template void combine_edges_backward<T>(int64_t, int64_t, const int64_t*, const int64_t*, Symmetrize, const T*,    \
                                          const T*, T*, int);                                                        \
  template void normalize_edges<T>(Csr, int64_t, const T*, Normalization, T*, int);                                  \
  template void normalize_edges_backward<T>(Csr, int64_t, const T*, Normalization, const T*, T*, int);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
