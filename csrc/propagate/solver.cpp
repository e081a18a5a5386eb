// Conjugate gradients for a panel of right-hand sides that share a matrix. Every column has its own step and stops on its
// own (step 0); the panel ends with its last column.
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
constexpr int64_t kSmall = 1 << 14;  // numbers in a panel; below, a second thread costs more than it brings

}  // namespace

template <class T>
PanelSolver<T>::PanelSolver(const System<T>& system, double tol, int64_t max_iter, int threads)
    : system_(system), kernels_(panel_kernels<T>()), tol_(tol), max_iter_(max_iter),
      range_(std::max<int64_t>(64, system.rows / 512)), ranges_((system.rows + range_ - 1) / range_),
      threads_(system.rows * kPanel < kSmall ? 1 : threads), r_(system.rows * kPanel), p_(system.rows * kPanel),
      q_(system.rows * kPanel), e_(system.rows * kPanel) {
  // A round aims a little lower, so that the measured residual passes as well.
  target_ = tol * std::max(0.5, 1 - 100 * std::numeric_limits<T>::epsilon() / tol);
}

// body(begin, end, number of the range)
template <class T>
template <class Body>
void PanelSolver<T>::each(const Body& body) const {
#pragma omp parallel for num_threads(threads_) schedule(static) if (threads_ > 1)
  for (int64_t range = 0; range < ranges_; ++range)
    body(range * range_, std::min(system_.rows, (range + 1) * range_), range);
}

// body(begin, end, dots); the dots of all ranges are added in order.
template <class T>
template <class Body>
void PanelSolver<T>::sum(int64_t width, Columns sums, const Body& body) {
  each([&](int64_t begin, int64_t end, int64_t range) { body(begin, end, partial_.data() + range * width); });
  std::fill_n(sums, width, 0.0);
  for (int64_t range = 0; range < ranges_; ++range)
    for (int64_t c = 0; c < width; ++c) sums[c] += partial_[range * width + c];
}

template <class T>
int64_t PanelSolver<T>::solve(int64_t width, bool has_start, const T* b, T* x, double* residual, Watch& watch) {
  partial_.resize(static_cast<size_t>(ranges_ * width));

  Columns squared;
  sum(width, squared, [&](int64_t begin, int64_t end, double* dots) {
    std::fill_n(dots, width, 0.0);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < width; ++c) dots[c] += double(b[i * width + c]) * double(b[i * width + c]);
  });
  for (int64_t c = 0; c < width; ++c) norm_[c] = std::sqrt(squared[c]);
  each([&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < width; ++c)
        if (norm_[c] == 0) x[i * width + c] = 0;
  });

  int64_t iterations = 0;
  for (int round = 0;; ++round) {
    if (round == 0 && !has_start) std::copy_n(b, system_.rows * width, r_.get());  // x = 0, and squared is |b|^2
    else
      sum(width, squared, [&](int64_t begin, int64_t end, double* dots) {
        kernels_.residual(system_, width, b, x, r_.get(), begin, end, dots);
      });
    bool wanted[kPanel] = {}, any = false;
    for (int64_t c = 0; c < width; ++c) {
      residual[c] = norm_[c] > 0 ? std::sqrt(squared[c]) / norm_[c] : 0;
      wanted[c] = residual[c] > tol_;
      any |= wanted[c];
    }
    if (!any || round == kRounds || iterations >= max_iter_ || watch.stopped()) return iterations;
    correct(width, squared, wanted, x, iterations, watch);
  }
}

// A e = r for the wanted columns, then x += e.
template <class T>
void PanelSolver<T>::correct(int64_t width, const Columns squared, const bool* wanted, T* x, int64_t& iterations,
                              Watch& watch) {
  Columns rr, sums;
  bool active[kPanel];
  T step[kPanel], beta[kPanel];
  std::copy_n(squared, width, rr);
  std::copy_n(wanted, width, active);
  std::copy_n(r_.get(), system_.rows * width, p_.get());
  std::fill_n(e_.get(), system_.rows * width, T(0));
  while (iterations < max_iter_) {
    sum(width, sums, [&](int64_t begin, int64_t end, double* dots) {
      kernels_.multiply(system_, width, p_.get(), q_.get(), begin, end, dots);
    });
    for (int64_t c = 0; c < width; ++c) {
      // p.Ap below the rounding of r.r: a direction that the system cannot tell from a null vector. The column stays
      // where it is, and its residual says so.
      active[c] = active[c] && sums[c] > std::numeric_limits<T>::epsilon() * rr[c];
      step[c] = active[c] ? T(rr[c] / sums[c]) : T(0);
    }
    sum(width, sums, [&](int64_t begin, int64_t end, double* dots) {
      kernels_.advance(width, step, p_.get(), q_.get(), e_.get(), r_.get(), begin, end, dots);
    });
    ++iterations;
    if (!watch.step()) break;
    bool any = false;
    for (int64_t c = 0; c < width; ++c) {
      beta[c] = active[c] ? T(sums[c] / rr[c]) : T(0);
      rr[c] = sums[c];
      active[c] = active[c] && std::sqrt(rr[c]) > target_ * norm_[c];
      any |= active[c];
    }
    if (!any) break;
    each([&](int64_t begin, int64_t end, int64_t) {
      kernels_.turn(width, beta, r_.get(), p_.get(), begin, end);
    });
  }
  each([&](int64_t begin, int64_t end, int64_t) {
    for (int64_t at = begin * width; at < end * width; ++at) x[at] += e_[at];
  });
}

template class PanelSolver<float>;
template class PanelSolver<double>;

}  // namespace gloss::cpu
