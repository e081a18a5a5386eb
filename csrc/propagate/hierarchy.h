// The multilevel preconditioner of the harmonic system (hierarchy.cpp).
//
// A level is a graph with weights W >= 0 between its rows and an excess e >= 0 (weight towards what is known), and stands
// for the matrix A with (A x)_i = e_i x_i + sum_j W_ij (x_i - x_j). The diagonal is never stored: where weights span many
// orders of magnitude, subtracting from it loses the small ones that decide. Groups of strongly joined rows become the
// rows of the next level, whose weights and excess are sums, again without a subtraction; the last level is eliminated
// (elimination.h). One application is a V-cycle: a damped Jacobi step, the next level's correction, a Jacobi step.
#pragma once
#include <cstdint>
#include <vector>

#include "elimination.h"
#include "kernels.h"

namespace gloss::cpu {

// Rows are in an order in which a group's rows follow each other: first[g] .. first[g + 1] - 1. Rows from
// first[groups] on belong to none: the excess holds them so firmly that the Jacobi step is all they need.
template <class T>
struct Level {
  int64_t rows = 0;
  std::vector<int64_t> crow;  // [rows + 1]
  std::vector<int32_t> col;
  std::vector<T> weight, excess, damped;  // W; e; damping / diagonal
  std::vector<int32_t> first;             // [groups + 1]

  int64_t groups() const { return int64_t(first.size()) - 1; }
  Weights<T> view() const { return {crow.data(), col.data(), weight.data(), excess.data(), damped.data()}; }
};

// A level while the hierarchy is built: in double, rows in the order in which they came.
struct WeightedGraph {
  int64_t rows() const { return int64_t(excess.size()); }
  std::vector<int64_t> crow{0};
  std::vector<int32_t> col;
  std::vector<double> weight, excess;
};

template <class T>
struct Hierarchy {
  std::vector<Level<T>> levels;  // finest first; empty groups on the last
  Elimination coarsest;          // of the last level, where it is small enough; else empty
  std::vector<int32_t> order;    // row of the finest level -> row of the graph that it was built from
};

template <class T>
Hierarchy<T> build_hierarchy(WeightedGraph finest, int threads);

}  // namespace gloss::cpu
