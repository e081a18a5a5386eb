// The sweep: all products of queries and corpus in 16 or 32 bit, of which only candidates are kept.
#pragma once
#include "candidates.h"

namespace gloss::cpu {

enum class Format { f32, bf16 };

inline int64_t packed_steps(int64_t cols, Format format) { return format == Format::bf16 ? (cols + 1) / 2 : cols; }

struct Hint {
  const int64_t* rows;  // [queries.rows, k] or null
  int64_t k;
};

// The sweep stops early once more than `allowed_failures` lists have failed, and then returns false: the candidates are
// of no use.
bool sweep_self(const Job& job, Format format, Candidates& candidates, Hint hint, int64_t allowed_failures,
                Ticker& ticker, Meter& meter);
bool sweep_rectangle(const Job& job, Format format, Candidates& candidates, Hint hint,
                     int64_t allowed_failures, Ticker& ticker, Meter& meter);

// The order in which rows are visited: position p is row p * stride mod n. A stride near 0.618 n spreads any first
// part evenly over the matrix, so that thresholds learnt early hold later, whatever the order of the documents.
int64_t visiting_stride(int64_t n);

}  // namespace gloss::cpu
