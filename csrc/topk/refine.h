// Exact scores: the value of a pair is float(dot(x_i, x_j) / (|x_i| |x_j|)) in double (double for f64 input), the
// same bits wherever it is computed.
#pragma once
#include <vector>

#include "candidates.h"
#include "sweep.h"

namespace gloss::cpu {

// 1 / |x| of every row (and, for f64, the scale). Throws on NaN or Inf.
void compute_norms(const Operand& operand, int threads);

// Raises tau of every row to the k-th best of its hints. The norms must be known.
void seed(const Job& job, Candidates& candidates, Hint hint);

// Scores the candidates again and writes the results. Positions whose list failed are appended to `leftover`, in
// ascending order. Returns how many entries were scored.
int64_t refine(const Job& job, const Candidates& candidates, std::vector<int32_t>& leftover, Ticker& ticker);

// Every pair of these positions (ascending) in double. `values` may be of double for f64 input.
template <class T>
void brute_force(const Job& job, const std::vector<int32_t>& positions, T* values, int64_t* indices, Ticker& ticker);

}  // namespace gloss::cpu
