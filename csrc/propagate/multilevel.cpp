// Conjugate gradients with a V-cycle as preconditioner, which is the same linear operator in every step. Every column has
// its own step and stops on its own (step 0); the panel ends with its last column. In double, rounds: the true residual is
// measured again until the test holds for it, since the recurrence of conjugate gradients drifts where weights span many
// orders of magnitude. (float is used only where they do not.)
#include "multilevel.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace gloss::cpu {
namespace {

constexpr int kRounds = 8;
constexpr double kMargin = 0.5;           // of tol: the correction is an estimate of the error, by a factor of about 2
constexpr int64_t kSmallPanel = 1 << 14;  // numbers; below, a second thread costs more than it brings

}  // namespace

template <class T>
MultilevelSolver<T>::MultilevelSolver(const Hierarchy<T>& hierarchy, Until until, double tol, int64_t max_iter,
                                      int threads)
    : hierarchy_(hierarchy), kernels_(panel_kernels<T>()), until_(until), tol_(tol), max_iter_(max_iter),
      threads_(threads), p_(hierarchy.levels[0].rows * kPanel), r_(hierarchy.levels[0].rows * kPanel) {
  int64_t most = 1;
  for (const Level<T>& level : hierarchy.levels) {
    const int64_t range = std::max<int64_t>(64, level.rows / 512), numbers = level.rows * kPanel;
    Space space{range, std::max<int64_t>(1, (level.rows + range - 1) / range), {}, {}, {}};
    most = std::max(most, space.ranges);
    if (!space_.empty()) space.r = Buffer<T>(numbers);
    space.z = Buffer<T>(numbers), space.out = Buffer<T>(numbers);
    space_.push_back(std::move(space));
  }
  partial_.resize(size_t(most * kPanel)), largest_.resize(size_t(most * kPanel));
  dense_.resize(size_t(hierarchy.coarsest.rows() * kPanel));
}

// body(begin, end, number of the range)
template <class T>
template <class Body>
void MultilevelSolver<T>::each(size_t level, const Body& body) const {
  const int64_t rows = hierarchy_.levels[level].rows, range = space_[level].range, ranges = space_[level].ranges;
  const int threads = rows * kPanel < kSmallPanel ? 1 : threads_;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t number = 0; number < ranges; ++number)
    body(number * range, std::min(rows, (number + 1) * range), number);
}

// body(begin, end, dots, largest); the dots of all ranges are added in order.
template <class T>
template <class Body>
void MultilevelSolver<T>::sum(size_t level, int64_t width, Columns sums, const Body& body) {
  each(level, [&](int64_t begin, int64_t end, int64_t number) {
    body(begin, end, partial_.data() + number * width, largest_.data() + number * width);
  });
  std::fill_n(sums, width, 0.0);
  for (int64_t number = 0; number < space_[level].ranges; ++number)
    for (int64_t c = 0; c < width; ++c) sums[c] += partial_[number * width + c];
}

// The correction for the right side r, from z = damped r, which is used up. dots = r . correction, and its largest
// number, where they are wanted.
template <class T>
const T* MultilevelSolver<T>::cycle(size_t at, int64_t width, const T* r, T* z, Columns dots, Columns largest) {
  const Level<T>& level = hierarchy_.levels[at];
  const Weights<T> a = level.view();
  Space& space = space_[at];
  T* out = space.out.get();
  if (at + 1 == hierarchy_.levels.size() && hierarchy_.coarsest.rows() == level.rows) {
    eliminate(width, r, out);
    return out;
  }
  if (level.groups() > 0) {
    Space& below = space_[at + 1];
    const Weights<T> coarse = hierarchy_.levels[at + 1].view();
    each(at + 1, [&](int64_t begin, int64_t end, int64_t) {
      kernels_.restrict(a, level.first.data(), width, r, z, below.r.get(), begin, end);
      kernels_.damp(coarse, width, below.r.get(), below.z.get(), begin, end);
    });
    const T* correction = cycle(at + 1, width, below.r.get(), below.z.get(), nullptr, nullptr);
    each(at + 1, [&](int64_t begin, int64_t end, int64_t) {
      kernels_.prolong(level.first.data(), width, correction, z, begin, end);
    });
  }
  // Without a level below, the excess holds every row: the step from zero is enough, and a second one would cost more
  // than the iterations that it saves.
  const bool is_diagonal = at == 0 && level.groups() == 0;
  Columns unused;
  sum(at, width, dots ? dots : unused, [&](int64_t begin, int64_t end, double* dot, double* most) {
    if (is_diagonal) kernels_.measure(width, r, z, begin, end, dot, most);
    else kernels_.smooth(a, width, r, z, out, begin, end, dot, most);
  });
  if (is_diagonal) out = z;
  if (!largest) return out;
  std::fill_n(largest, width, 0.0);
  for (int64_t number = 0; number < space.ranges; ++number)
    for (int64_t c = 0; c < width; ++c) largest[c] = std::max(largest[c], largest_[number * width + c]);
  return out;
}

// out <- A^-1 r of the coarsest level, in double.
template <class T>
void MultilevelSolver<T>::eliminate(int64_t width, const T* r, T* out) {
  const int64_t rows = hierarchy_.coarsest.rows();
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < width; ++c) dense_[i * kPanel + c] = double(r[i * width + c]);
  hierarchy_.coarsest.solve(kPanel, dense_.data());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < width; ++c) out[i * width + c] = T(dense_[i * kPanel + c]);
}

template <class T>
int64_t MultilevelSolver<T>::solve(int64_t width, bool has_start, const T* b, T* x, double* residual, Watch& watch) {
  const Weights<T> a = hierarchy_.levels[0].view();
  const int64_t rows = hierarchy_.levels[0].rows;
  if (hierarchy_.levels.size() == 1 && hierarchy_.coarsest.rows() == rows) {
    eliminate(width, b, x);
    std::fill_n(residual, width, 0.0);
    return 0;
  }
  T *z = space_[0].z.get(), *q = space_[0].out.get(), *p = p_.get(), *r = r_.get();  // q and a correction never meet
  const T* correction = nullptr;
  Columns norm, along, before, pq, largest;
  bool active[kPanel];
  T step[kPanel], beta[kPanel];
  // The correction by the rows' own sizes, into largest.
  const auto by_rows = [&] {
    if (until_ == Until::absolute) return;
    Columns none;
    sum(0, width, none, [&](int64_t begin, int64_t end, double* dots, double* most) {
      std::fill_n(dots, width, 0.0), std::fill_n(most, width, 0.0);
      for (int64_t i = begin; i < end; ++i) {
        double size = least_[i];
        for (int64_t c = 0; c < width; ++c) size = std::max(size, std::abs(double(x[i * width + c])));
        for (int64_t c = 0; c < width && size > 0; ++c)
          most[c] = std::max(most[c], std::abs(double(correction[i * width + c])) / size);
      }
    });
    std::fill_n(largest, width, 0.0);
    for (int64_t number = 0; number < space_[0].ranges; ++number)
      for (int64_t c = 0; c < width; ++c) largest[c] = std::max(largest[c], largest_[number * width + c]);
  };
  // Sets residual; whether the panel goes on. A column that is done goes on with it: that costs nothing, and what 100
  // classes lack of a row's sum is then far below 100 tol.
  const auto judge = [&] {
    by_rows();
    bool any = false;
    for (int64_t c = 0; c < width; ++c) {
      if (norm[c] == 0) continue;
      residual[c] = largest[c];
      active[c] = active[c] && along[c] > 0;
      any |= active[c] && residual[c] > kMargin * tol_;
    }
    return any;
  };

  sum(0, width, norm, [&](int64_t begin, int64_t end, double* dots, double*) {
    std::fill_n(dots, width, 0.0);
    for (int64_t i = begin * width; i < end * width; ++i) dots[i % width] += std::abs(double(b[i]));
  });
  if (until_ == Until::relative) {
    least_.assign(size_t(rows), 0.0);
    for (int64_t i = 0; i < rows * width; ++i)
      least_[i / width] = std::max(least_[i / width], std::abs(double(b[i])) * double(a.damped[i / width]));
  }
  for (int64_t c = 0; c < width; ++c) residual[c] = 0;
  if (has_start)
    for (int64_t i = 0; i < rows * width; ++i)
      if (norm[i % width] == 0) x[i] = 0;
  int64_t iterations = 0;
  for (int round = 0;; ++round) {
    each(0, [&](int64_t begin, int64_t end, int64_t) {
      if (round > 0 || has_start) kernels_.remainder(a, width, b, x, r, begin, end);
      else std::copy(b + begin * width, b + end * width, r + begin * width);  // x = 0
      kernels_.damp(a, width, r, z, begin, end);
    });
    correction = cycle(0, width, r, z, along, largest);
    for (int64_t c = 0; c < width; ++c) active[c] = norm[c] > 0;
    if (!judge() || round == kRounds || iterations >= max_iter_ || watch.stopped()) return iterations;
    std::copy_n(correction, rows * width, p);
    while (iterations < max_iter_) {
      sum(0, width, pq, [&](int64_t begin, int64_t end, double* dots, double*) {
        kernels_.apply(a, width, p, q, begin, end, dots);
      });
      for (int64_t c = 0; c < width; ++c) {
        active[c] = active[c] && pq[c] > 0;
        step[c] = active[c] ? T(along[c] / pq[c]) : T(0);
        before[c] = along[c];
      }
      each(0, [&](int64_t begin, int64_t end, int64_t) {
        kernels_.descend(a, width, step, p, q, x, r, z, begin, end);
      });
      ++iterations;
      correction = cycle(0, width, r, z, along, largest);
      if (!judge() || !watch.step()) break;
      for (int64_t c = 0; c < width; ++c) beta[c] = active[c] ? T(along[c] / before[c]) : T(0);
      each(0, [&](int64_t begin, int64_t end, int64_t) { kernels_.turn(width, beta, correction, p, begin, end); });
    }
    if (std::is_same_v<T, float>) return iterations;
  }
}

template class MultilevelSolver<float>;
template class MultilevelSolver<double>;

}  // namespace gloss::cpu
