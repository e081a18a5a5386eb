// Conjugate gradients for many right-hand sides that share a matrix. Every column has its own step; columns that are
// done are frozen (step 0) and leave the work when enough of them are.
//
// Rounds of correction: a round takes the true residual r = b - A x, solves A e = r from e = 0 and adds e to x. The next
// round measures again, in double; so what is reported is the residual itself, not the recurrence that CG updates and
// that drifts in float32.
#include "solver.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace gloss::cpu {
namespace {

constexpr int kRounds = 3;
constexpr double kSafety = 0.7;      // a round aims a little lower, so that the measured residual passes as well
constexpr int64_t kSmall = 1 << 14;  // numbers in a block; below, a second thread costs more than it brings

// Fixed ranges of rows, the unit of work and of summation: sums do not depend on the number of threads.
class RowRanges {
 public:
  RowRanges(int64_t rows, int threads) : rows_(rows), length_(std::max<int64_t>(64, rows / 512)), threads_(threads) {}

  // body(begin, end, range)
  template <class Body>
  void each(int64_t width, const Body& body) const {
    const int threads = rows_ * width < kSmall ? 1 : threads_;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t range = 0; range < count(); ++range)
      body(range * length_, std::min(rows_, (range + 1) * length_), range);
  }

  // body(begin, end, dots [width]); the dots of all ranges are added in order into sums [width].
  template <class Body>
  void sum(int64_t width, std::vector<double>& sums, const Body& body) {
    partial_.resize(static_cast<size_t>(count() * width));
    each(width, [&](int64_t begin, int64_t end, int64_t range) { body(begin, end, partial_.data() + range * width); });
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t range = 0; range < count(); ++range)
      for (int64_t c = 0; c < width; ++c) sums[c] += partial_[range * width + c];
  }

 private:
  int64_t count() const { return (rows_ + length_ - 1) / length_; }
  int64_t rows_, length_;
  int threads_;
  std::vector<double> partial_;  // [ranges, width]
};

// Moves the columns `keep` (ascending) of block [rows, width] to the front of [rows, narrow], zeros behind them.
template <class T>
void compress(int64_t rows, int64_t width, int64_t narrow, const std::vector<int64_t>& keep, T* block) {
  const int64_t count = int64_t(keep.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < count; ++c) block[i * narrow + c] = block[i * width + keep[c]];
    for (int64_t c = count; c < narrow; ++c) block[i * narrow + c] = 0;
  }
}

template <class T>
class ColumnSolver {
 public:
  ColumnSolver(const System<T>& system, int64_t width, const T* b, T* x, double tol, int64_t max_iter, int threads)
      : system_(system), kernels_(block_kernels<T>()), ranges_(system.rows, threads), full_(width), b_(b), x_(x),
        tol_(tol), max_iter_(max_iter) {}

  SolveReport run() {
    const size_t size = static_cast<size_t>(system_.rows * full_);
    r_.resize(size);
    report_.residual.assign(static_cast<size_t>(full_), 0.0);
    measure_right_side();
    for (int round = 0;; ++round) {
      std::vector<double> squared = measure();
      columns_.clear();
      for (int64_t c = 0; c < full_; ++c) {
        report_.residual[c] = norm_[c] > 0 ? std::sqrt(squared[c]) / norm_[c] : 0;
        if (report_.residual[c] > tol_) columns_.push_back(c);
      }
      if (columns_.empty() || round == kRounds || report_.iterations >= max_iter_) return report_;
      correct(squared);
    }
  }

 private:
  void measure_right_side() {
    std::vector<double> squared(static_cast<size_t>(full_));
    ranges_.sum(full_, squared, [&](int64_t begin, int64_t end, double* dots) {
      std::fill(dots, dots + full_, 0.0);
      for (int64_t i = begin; i < end; ++i)
        for (int64_t c = 0; c < full_; ++c) dots[c] += double(b_[i * full_ + c]) * double(b_[i * full_ + c]);
    });
    norm_.resize(static_cast<size_t>(full_));
    for (int64_t c = 0; c < full_; ++c) {
      norm_[c] = std::sqrt(squared[c]);
      if (norm_[c] == 0)
        for (int64_t i = 0; i < system_.rows; ++i) x_[i * full_ + c] = 0;
    }
  }

  // r = b - A x; returns |r|^2 of each column.
  std::vector<double> measure() {
    std::vector<double> squared(static_cast<size_t>(full_));
    ranges_.sum(full_, squared, [&](int64_t begin, int64_t end, double* dots) {
      kernels_.residual(system_, full_, b_, x_, r_.data(), begin, end, dots);
    });
    return squared;
  }

  // Conjugate gradients for A e = r on columns_, then x += e.
  void correct(const std::vector<double>& squared) {
    int64_t width = padded_width(int64_t(columns_.size()));
    compress(system_.rows, full_, width, columns_, r_.data());
    const size_t size = static_cast<size_t>(system_.rows * width);
    p_.assign(r_.begin(), r_.begin() + int64_t(size));
    q_.resize(size);
    e_.assign(size, T(0));
    std::vector<double> rr(static_cast<size_t>(width), 0.0), sums(static_cast<size_t>(width));
    std::vector<char> active(static_cast<size_t>(width), 0);
    for (size_t c = 0; c < columns_.size(); ++c) rr[c] = squared[columns_[c]], active[c] = 1;
    std::vector<T> step(static_cast<size_t>(width)), beta(static_cast<size_t>(width));

    while (report_.iterations < max_iter_) {
      ranges_.sum(width, sums, [&](int64_t begin, int64_t end, double* dots) {
        kernels_.multiply(system_, width, p_.data(), q_.data(), begin, end, dots);
      });
      for (int64_t c = 0; c < width; ++c) {
        // p.Ap below the rounding of r.r: a direction that the system cannot tell from a null vector. The column stays
        // where it is, and its residual says so.
        if (active[c] && !(sums[c] > std::numeric_limits<T>::epsilon() * rr[c])) active[c] = 0;
        step[c] = active[c] ? T(rr[c] / sums[c]) : T(0);
      }
      ranges_.sum(width, sums, [&](int64_t begin, int64_t end, double* dots) {
        kernels_.advance(width, step.data(), p_.data(), q_.data(), e_.data(), r_.data(), begin, end, dots);
      });
      ++report_.iterations;
      std::vector<int64_t> live;
      for (int64_t c = 0; c < width; ++c) {
        if (!active[c]) {
          beta[c] = 0;
          continue;
        }
        beta[c] = T(sums[c] / rr[c]);
        rr[c] = sums[c];
        active[c] = std::sqrt(rr[c]) > kSafety * tol_ * norm_[columns_[c]];
        if (active[c]) live.push_back(c);
      }
      if (live.empty()) break;
      ranges_.each(width, [&](int64_t begin, int64_t end, int64_t) {
        kernels_.turn(width, beta.data(), r_.data(), p_.data(), begin, end);
      });
      const int64_t narrow = padded_width(int64_t(live.size()));
      if (4 * narrow > 3 * width) continue;
      // A quarter or more of the block is done: put its corrections away and go on with the rest.
      add_corrections(width, active, /*frozen=*/true);
      for (std::vector<T>* block : {&r_, &p_, &e_}) compress(system_.rows, width, narrow, live, block->data());
      std::vector<int64_t> kept;
      for (size_t c = 0; c < live.size(); ++c) rr[c] = rr[live[c]], kept.push_back(columns_[live[c]]);
      columns_ = std::move(kept);
      width = narrow;
      active.assign(static_cast<size_t>(width), 0);
      std::fill(active.begin(), active.begin() + int64_t(live.size()), 1);
      sums.resize(static_cast<size_t>(width));
    }
    add_corrections(width, active, /*frozen=*/false);
  }

  // x += e: of the frozen columns only, or of all.
  void add_corrections(int64_t width, const std::vector<char>& active, bool frozen) {
    ranges_.each(width, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i)
        for (size_t c = 0; c < columns_.size(); ++c)
          if (!frozen || !active[c]) x_[i * full_ + columns_[c]] += e_[i * width + int64_t(c)];
    });
  }

  const System<T>& system_;
  const BlockKernels<T>& kernels_;
  RowRanges ranges_;
  int64_t full_;
  const T* b_;
  T* x_;
  double tol_;
  int64_t max_iter_;
  SolveReport report_;
  std::vector<double> norm_;      // [full]
  std::vector<int64_t> columns_;  // of x, those in the blocks below
  std::vector<T> r_, p_, q_, e_;  // [rows, width of the round]
};

}  // namespace

template <class T>
SolveReport solve_columns(const System<T>& system, int64_t width, const T* b, T* x, double tol, int64_t max_iter,
                          int threads) {
  return ColumnSolver<T>(system, width, b, x, tol, max_iter, threads).run();
}

template SolveReport solve_columns<float>(const System<float>&, int64_t, const float*, float*, double, int64_t, int);
template SolveReport solve_columns<double>(const System<double>&, int64_t, const double*, double*, double, int64_t,
                                           int);

}  // namespace gloss::cpu
