// Weights of the symmetrised graph and its normalisations, forward and backward (gloss.h: cpu::combine_edges,
// cpu::normalize_edges). All passes run row by row or entry by entry: no atomics, the same bits for any threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "gloss.h"

namespace gloss::cpu {
namespace {

template <class T>
T at(const T* weights, int64_t position) {
  return position < 0 ? T(0) : weights[position];
}

}  // namespace

template <class T>
void combine_edges(int64_t nnz, const int64_t* forward, const int64_t* reverse, Symmetrize mode, const T* weights,
                   T* values, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t e = 0; e < nnz; ++e) values[e] = combine(mode, at(weights, forward[e]), at(weights, reverse[e]));
}

// An edge i -> j with both directions present has two entries, (i, j) as forward and (j, i) as reverse. The forward
// pass over entries first, then the reverse one: each weight is written by one entry a pass.
template <class T>
void combine_edges_backward(int64_t nnz, int64_t num_weights, const int64_t* forward, const int64_t* reverse,
                            Symmetrize mode, const T* weights, const T* grad_values, T* grad_weights, int threads) {
  std::fill(grad_weights, grad_weights + num_weights, T(0));
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t e = 0; e < nnz; ++e)
      if (forward[e] >= 0)
        grad_weights[forward[e]] = share(mode, weights[forward[e]], at(weights, reverse[e])) * grad_values[e];
    if (mode != Symmetrize::none) {
#pragma omp for schedule(static)
      for (int64_t e = 0; e < nnz; ++e)
        if (reverse[e] >= 0)
          grad_weights[reverse[e]] += share(mode, weights[reverse[e]], at(weights, forward[e])) * grad_values[e];
    }
  }
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
Scales scales(Csr graph, const T* a, Normalization mode, int threads) {
  Scales out;
  out.r = powers(row_sums(graph, threads, [&](int64_t, int64_t, int64_t e) { return double(a[e]); }), -0.5);
  out.s = out.r;
  if (mode == Normalization::published)
    out.s = powers(row_sums(graph, threads, [&](int64_t, int64_t j, int64_t e) { return a[e] * out.r[j]; }), -1);
  return out;
}

}  // namespace

template <class T>
void normalize_edges(Csr graph, const T* values, Normalization mode, T* normalized, int threads) {
  if (mode == Normalization::row) {
    std::copy(values, values + graph.crow[graph.n], normalized);
    return;
  }
  const Scales by = scales(graph, values, mode, threads);
  each_entry(graph, threads,
             [&](int64_t i, int64_t j, int64_t e) { normalized[e] = T(values[e] * by.s[i] * by.s[j]); });
}

// M_ij = A_ij s_i s_j. With G = dL/dM symmetric, h_i = dL/ds_i = 2 sum_j G_ij A_ij s_j.
//   symmetric: s = d^-1/2, so dL/dd_i = -1/2 s_i^3 h_i.
//   published: s = 1/t, so dL/dt_i = -s_i^2 h_i; t_i = sum_j A_ij r_j gives A_ij the term dt_i r_j and
//              dL/dr = A dt; r = d^-1/2, so dL/dd_i = -1/2 r_i^3 (A dt)_i.
// d_i = sum_j A_ij gives A_ij the term dd_i. Terms that are not symmetric are shared between (i, j) and (j, i).
template <class T>
void normalize_edges_backward(Csr graph, const T* values, Normalization mode, const T* grad_normalized,
                              T* grad_values, int threads) {
  if (mode == Normalization::row) {
    std::copy(grad_normalized, grad_normalized + graph.crow[graph.n], grad_values);
    return;
  }
  const Scales by = scales(graph, values, mode, threads);
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
  template void combine_edges<T>(int64_t, const int64_t*, const int64_t*, Symmetrize, const T*, T*, int);            \
  template void combine_edges_backward<T>(int64_t, int64_t, const int64_t*, const int64_t*, Symmetrize, const T*,    \
                                          const T*, T*, int);                                                        \
  template void normalize_edges<T>(Csr, const T*, Normalization, T*, int);                                           \
  template void normalize_edges_backward<T>(Csr, const T*, Normalization, const T*, T*, int);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
