// The lists of the sweep: for every query a few entries that may belong to its k best.
//
// Bounds. With q the packed rows, eps their residuals and c the true cosine,
//   |c_ij - q_i . q_j| <= eps_i + (1 + eps_i) eps_j + accumulation   =: G_i, with eps_j the largest of the corpus.
// tau_i is a lower bound of the k-th best true cosine of row i. An entry whose approximate value is below
// tau_i - G_i has a true cosine below tau_i: it is not among the k best, nor ties with the k-th.
// tau_i rises when a list is full: if k entries have approximate values >= t, then tau_i >= t - G_i.
// A stale tau is only smaller, hence safe.
#pragma once
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>

#include "job.h"

namespace gloss::cpu {

class Candidates {
 public:
  Candidates(int64_t rows, int64_t k, int64_t capacity, double accumulation, Meter* meter)
      : rows_(rows), k_(k), capacity_(capacity), accumulation_(float(accumulation)), values_(rows * capacity, meter),
        indices_(rows * capacity, meter), state_(rows, meter),
        locks_(new std::mutex[size_t((rows + kGroup - 1) / kGroup)]) {}

  struct State {
    float threshold;  // tau - guard, of the last time either was looked at
    float tau, residual;
    int32_t count;  // entries in the list; kClosed or kFailed: no list
    int32_t limit;  // count at which the list is compacted
  };
  static constexpr int32_t kClosed = -1;  // a zero row: nothing is to be found
  static constexpr int32_t kFailed = -2;  // more near ties than the list holds

  void open(int64_t row, float residual, bool is_zero) {
    const float tau = is_zero ? kInfinity : -kInfinity;
    state_[row] = {tau, tau, residual, is_zero ? kClosed : 0, int32_t(first_limit())};
  }
  void raise(int64_t row, float tau) {
    if (tau > state_[row].tau) state_[row].tau = tau;
  }
  const State& state(int64_t row) const { return state_[row]; }
  const float* values(int64_t row) const { return values_.get() + row * capacity_; }
  const int32_t* indices(int64_t row) const { return indices_.get() + row * capacity_; }

  // Columns of this residual are about to come. A thread calls this before it adds their entries; whoever then holds
  // the lock of such a list knows of it, and its guard covers every entry there.
  void widen(float residual) {
    float largest = largest_.load(std::memory_order_relaxed);
    while (largest < residual && !largest_.compare_exchange_weak(largest, residual)) {
    }
  }
  float guard(const State& s) const {
    return (s.residual + (1 + s.residual) * largest_.load(std::memory_order_relaxed) + accumulation_) * (1 + 1e-5f);
  }

  // out [count rounded up to 64] <- the thresholds of rows first, first + 1, ..; +inf past the end. Called after
  // widen() for the columns to come: from then on the stored thresholds, too, are low enough for these columns.
  void thresholds(int64_t first, int64_t count, float* out);

  // A list is touched by the thread that holds the lock of its 64 rows.
  std::mutex& lock(int64_t row) const { return locks_[size_t(row / kGroup)]; }
  void add(int64_t row, float value, int32_t index) {
    State& s = state_[row];
    if (value < s.threshold) return;
    const int64_t at = row * capacity_ + s.count++;
    values_[at] = value;
    indices_[at] = index;
    if (s.count >= s.limit) compact(row);
  }

  int64_t failed() const { return failed_.load(std::memory_order_relaxed); }
  // A value t that at least k entries of the list reach, within `tolerance` of the largest such.
  float kth_value(int64_t row, float tolerance) const;

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  int64_t first_limit() const { return capacity_ < 2 * k_ + 32 ? capacity_ : 2 * k_ + 32; }
  void compact(int64_t row);

  const int64_t rows_, k_, capacity_;
  const float accumulation_;
  Buffer<float> values_;     // [rows, capacity]
  Buffer<int32_t> indices_;  // [rows, capacity]
  Buffer<State> state_;      // [rows]
  std::unique_ptr<std::mutex[]> locks_;
  std::atomic<float> largest_{0.0f};  // residual among the columns
  std::atomic<int64_t> failed_{0};
};

}  // namespace gloss::cpu
