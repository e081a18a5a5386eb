// G-Loss of a mini-batch on the dense graph, forward and gradient in one go (gloss.h: cpu::dense_loss). All of it is in
// double: n^2 numbers are few, and the weights between tight clusters are beyond float. Formulas:
// gloss_kernels/reference.py; the solve without subtractions: gloss_kernels/_elimination.py.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "loss/kernels.h"
#include "gloss.h"

namespace gloss::cpu {
namespace {

// Kept between calls: pages that the system takes back and zeroes again cost more than the loss.
std::vector<double>& scratch(int which) {
  static thread_local std::vector<double> buffers[5];
  return buffers[which];
}

// n x n (or rows x cols) doubles, rows padded with zeros to a multiple of kRow.
struct Matrix {
  Matrix(int which, int64_t rows, int64_t cols) : stride(padded(cols)), buffer(scratch(which)) {
    buffer.assign(size_t(rows * stride), 0.0);
  }
  double* row(int64_t i) const { return buffer.data() + i * stride; }
  double& at(int64_t i, int64_t j) const { return buffer[size_t(i * stride + j)]; }
  int64_t stride;
  std::vector<double>& buffer;
};

// f(i) for every row; each row is one thread's, so the sums do not depend on the threads.
template <class F>
void each_row(int64_t rows, int threads, const F& f) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows > 256)
  for (int64_t i = 0; i < rows; ++i) f(i);
}

double power(double x, double exponent) { return x > 0 ? std::pow(x, exponent) : 0.0; }

using Vector = std::vector<double>;
Vector zeros(int64_t count) { return Vector(size_t(padded(count)), 0.0); }

template <class T>
class DenseLoss {
 public:
  DenseLoss(const DenseProblem<T>& problem, const DenseOptions& options)
      : p_(problem), o_(options), k_(dense_kernels()), n_(problem.n), classes_(problem.num_classes),
        spreading_(!std::isnan(options.alpha)), weights_(0, n_, n_), grad_(1, n_, n_), factor_(2, n_, n_ + 1),
        f_(3, n_, classes_), right_(4, n_, classes_), degree_(zeros(n_)), inner_(zeros(n_)),
        scale_(zeros(n_)) {}

  void run(const DenseResult<T>& out) {
    weigh();
    normalize();
    find_reachable(out.reachable);
    for (int64_t i = 0; i < n_; ++i)
      if (out.reachable[i] && (spreading_ || p_.labels[i] < 0)) rows_.push_back(i);
    *out.lacks = solve(out.reachable);
    *out.loss = T(score(out.grad_cosines != nullptr));
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t c = 0; c < classes_; ++c) out.result[i * classes_ + c] = T(f_.at(i, c));
    if (!out.grad_cosines) return;
    adjoint();
    backward(out.grad_cosines, out.grad_inverse_sigma);
  }

 private:
  // W_ij = exp((c_ij - 1) / (sigma_i sigma_j)), 0 on the diagonal; weights too small to divide by are no edges.
  void weigh() {
    each_row(n_, o_.threads, [&](int64_t i) {
      double* row = weights_.row(i);
      const T* cosine = p_.cosines + i * n_;
      for (int64_t j = 0; j < n_; ++j)
        row[j] = std::min(double(cosine[j]) - 1, 0.0) * (p_.inverse_sigma[i] * p_.inverse_sigma[j]);
      k_.exp(weights_.stride, row, row);
      row[i] = 0;
      std::fill(row + n_, row + weights_.stride, 0.0);
    });
  }

  // M_ij = W_ij s_i s_j: what s is, gloss.h says at normalize_edges.
  void normalize() {
    std::fill_n(scale_.data(), n_, 1.0);
    if (o_.normalization == Normalization::row) return;
    each_row(n_, o_.threads, [&](int64_t i) { degree_[i] = k_.sum(weights_.stride, weights_.row(i)); });
    for (int64_t i = 0; i < n_; ++i) scale_[i] = power(degree_[i], -0.5);
    if (o_.normalization == Normalization::symmetric) return;
    inner_ = scale_;
    each_row(n_, o_.threads, [&](int64_t i) {
      scale_[i] = power(k_.dot(weights_.stride, weights_.row(i), inner_.data()), -1);
    });
  }
  double m(int64_t i, int64_t j) const { return weights_.at(i, j) * scale_[i] * scale_[j]; }

  void find_reachable(uint8_t* reachable) const {
    std::vector<int64_t> queue, others;
    for (int64_t i = 0; i < n_; ++i) {
      reachable[i] = p_.labels[i] >= 0;
      (reachable[i] ? queue : others).push_back(i);
    }
    for (size_t head = 0; head < queue.size() && !others.empty(); ++head) {
      const double* row = weights_.row(queue[head]);
      const auto left = std::partition(others.begin(), others.end(), [&](int64_t j) { return !(row[j] > 0); });
      for (auto j = left; j != others.end(); ++j) {
        reachable[*j] = 1;
        queue.push_back(*j);
      }
      others.erase(left, others.end());
    }
  }

  // Fills f_; factor_ is kept for the adjoint. Returns the most that a row's sum differs from 1.
  //
  // Harmonic: (diag(M_UU 1 + e) - M_UU) F = M_UL Y, e = M_UL 1. Spreading, (I - alpha M) F = (1 - alpha) Y with M =
  // D^-1/2 W D^-1/2, has the same form for F = D^1/2 G: (D - alpha W) G = (1 - alpha) D^1/2 Y, e = (1 - alpha) d.
  double solve(const uint8_t* reachable) {
    const int64_t count = int64_t(rows_.size());
    const double prior = 1.0 / double(classes_);
    for (int64_t i = 0; i < n_; ++i) {
      if (!spreading_ && p_.labels[i] >= 0) f_.at(i, p_.labels[i]) = 1;
      else if (!reachable[i]) std::fill_n(f_.row(i), classes_, prior);
    }
    if (count == 0) return 0;
    root_.assign(size_t(count), 1.0);
    each_row(count, o_.threads, [&](int64_t a) {
      const int64_t i = rows_[a];
      double *right = right_.row(a), *system = factor_.row(a), excess = 0;
      if (spreading_) {
        const double degree = degree_[i] > 0 ? degree_[i] : 1 / (1 - o_.alpha);  // a labelled document by itself: F = Y
        root_[a] = std::sqrt(degree);
        excess = (1 - o_.alpha) * degree;
        if (p_.labels[i] >= 0) right[p_.labels[i]] = (1 - o_.alpha) * root_[a];
        for (int64_t b = a + 1; b < count; ++b) system[b] = o_.alpha * weights_.at(i, rows_[b]);
      } else {
        for (int64_t j = 0; j < n_; ++j)
          if (p_.labels[j] >= 0) right[p_.labels[j]] += m(i, j);
        for (int64_t c = 0; c < classes_; ++c) excess += right[c];
        for (int64_t b = a + 1; b < count; ++b) system[b] = m(i, rows_[b]);
      }
      system[count] = excess;
    });
    k_.eliminate(count, factor_.stride, factor_.row(0));
    k_.solve(count, factor_.stride, factor_.row(0), right_.stride, right_.row(0));
    double most = 0;
    if (spreading_) totals_.resize(size_t(count));
    for (int64_t a = 0; a < count; ++a) {
      double *f = f_.row(rows_[a]), sum = 0;
      for (int64_t c = 0; c < classes_; ++c) sum += f[c] = root_[a] * right_.at(a, c);
      if (spreading_) {
        totals_[a] = sum;
        for (int64_t c = 0; c < classes_; ++c) f[c] = sum > 0 ? f[c] / sum : prior;
      } else {
        most = std::max(most, std::abs(1 - sum));
      }
    }
    return most;
  }

  // The weighted mean over the scored documents; leaves dL/dF in grad_f_ (of the rows before they were made to sum to 1).
  double score(bool want_gradient) {
    double total = 0, loss = 0;
    for (int64_t i = 0; i < n_; ++i) total += weight(i);
    if (want_gradient) grad_f_.assign(size_t(n_ * classes_), 0.0);
    if (!(total > 0)) return 0;
    for (int64_t i = 0; i < n_; ++i) {
      const double w = weight(i) / total;
      if (!(w > 0)) continue;
      const double* f = f_.row(i);
      const int64_t y = p_.targets[i];
      double* grad = want_gradient ? grad_f_.data() + i * classes_ : nullptr;
      loss += w * target_loss(o_.target, o_.smoothing, classes_, y, [f](int64_t c) { return f[c]; }, w, grad);
    }
    return loss;
  }
  double weight(int64_t i) const {
    return !p_.scored[i] ? 0.0 : p_.class_weight ? p_.class_weight[p_.targets[i]] : 1.0;
  }

  // grad_ <- dL/dM, the two entries of an edge together: -(lam_i - lam_j) . (F_i - F_j), with lam = 0 on labelled rows,
  // or alpha (lam_i . F_j + lam_j . F_i) when spreading. The first may not be multiplied out: lam reaches 1 / the smallest
  // sum of weights by which a group hangs on the labels, 1e35 and more, and of an edge within the group, where the F are
  // the same, nothing is to be left of it. Spreading, lam is bounded by the inverse of (1 - alpha) F.
  void adjoint() {
    const int64_t count = int64_t(rows_.size());
    for (int64_t a = 0; a < count; ++a) {
      const int64_t i = rows_[a];
      const double *grad = grad_f_.data() + i * classes_, *f = f_.row(i);
      double *right = right_.row(a), along = 0;
      if (spreading_)
        for (int64_t c = 0; c < classes_; ++c) along += grad[c] * f[c];
      for (int64_t c = 0; c < classes_; ++c) {
        if (!spreading_) right[c] = grad[c];
        else right[c] = totals_[a] > 0 ? root_[a] * ((grad[c] - along) / totals_[a]) : 0;
      }
    }
    k_.solve(count, factor_.stride, factor_.row(0), right_.stride, right_.row(0));
    const int64_t stride = grad_.stride + kRow;  // not a power of two: all columns would share a set of the cache
    Vector f_columns(size_t(classes_ * stride), 0.0), lam_columns(spreading_ ? 0 : size_t(classes_ * stride), 0.0);
    std::vector<double> lam(size_t(count * classes_));
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t c = 0; c < classes_; ++c) f_columns[c * stride + i] = spreading_ ? 0 : f_.at(i, c);
    for (int64_t a = 0; a < count; ++a) {
      const int64_t i = rows_[a];
      for (int64_t c = 0; c < classes_; ++c) {
        const double value = right_.at(a, c);
        lam[a * classes_ + c] = spreading_ ? o_.alpha * root_[a] * value : value;
        if (spreading_) f_columns[c * stride + i] = totals_[a] * f_.at(i, c);  // before rows were made to sum to 1
        else lam_columns[c * stride + i] = value;
      }
    }
    each_row(count, o_.threads, [&](int64_t a) {
      const int64_t i = rows_[a];
      double* row = grad_.row(i);
      const double* own = lam.data() + a * classes_;
      if (!spreading_)
        return k_.edge_gradients(grad_.stride, classes_, stride, f_.row(i), own, f_columns.data(), lam_columns.data(), row);
      for (int64_t c = 0; c < classes_; ++c) k_.axpy(n_, own[c], f_columns.data() + c * stride, row);
    });
    join_triangles();
  }

  // From grad_ = dL/dM through the normalisation, the weights and the cosines.
  void backward(T* grad_cosines, double* grad_inverse_sigma) {
    Vector to_degree = zeros(n_), to_inner = zeros(n_);
    if (o_.normalization != Normalization::row) {
      Vector to_scale = zeros(n_);
      each_row(n_, o_.threads, [&](int64_t i) {  // M_ij = W_ij s_i s_j
        const double *g = grad_.row(i), *w = weights_.row(i);
        double sum = 0;
        for (int64_t j = 0; j < n_; ++j) sum += g[j] * w[j] * scale_[j];
        to_scale[i] = sum;
      });
      // d^-3/2 by itself may overflow; taken factor by factor, from the left, nothing does.
      const auto of_degree = [&](int64_t i, double to_root) {
        const double q = power(degree_[i], -0.5);
        return -0.5 * to_root * q * q * q;
      };
      if (o_.normalization == Normalization::symmetric) {  // s = d^-1/2
        for (int64_t i = 0; i < n_; ++i) to_degree[i] = of_degree(i, to_scale[i]);
      } else {  // s = 1 / (W q), q = d^-1/2
        for (int64_t i = 0; i < n_; ++i) to_inner[i] = -to_scale[i] * scale_[i] * scale_[i];
        each_row(n_, o_.threads, [&](int64_t i) {
          to_degree[i] = of_degree(i, k_.dot(weights_.stride, weights_.row(i), to_inner.data()));
        });
      }
    }
    each_row(n_, o_.threads, [&](int64_t i) {
      const double *g = grad_.row(i), *w = weights_.row(i);
      const T* cosine = p_.cosines + i * n_;
      T* out = grad_cosines + i * n_;
      double to_sigma = 0;
      for (int64_t j = 0; j < n_; ++j) {
        double edge = g[j] * scale_[i] * scale_[j] + to_degree[i] + to_degree[j];
        edge += to_inner[i] * inner_[j] + to_inner[j] * inner_[i];
        edge *= w[j];
        const double distance = double(cosine[j]) - 1;
        out[j] = T(distance <= 0 ? edge * p_.inverse_sigma[i] * p_.inverse_sigma[j] : 0);
        to_sigma += edge * std::min(distance, 0.0) * p_.inverse_sigma[j];
      }
      grad_inverse_sigma[i] = to_sigma;
    });
  }

  // Rows of grad_ that were solved for to all of it: spreading, to the sum with its transpose; harmonic, where a solved row
  // has the whole gradient of an edge, to the column of the rows that were not. In squares that stay in the first cache.
  void join_triangles() {
    constexpr int64_t kSquare = 32;
    std::vector<uint8_t> solved(size_t(n_), 0);
    for (const int64_t i : rows_) solved[i] = 1;
    for (int64_t top = 0; top < n_; top += kSquare)
      for (int64_t left = 0; left <= top; left += kSquare)
        for (int64_t i = top; i < std::min(n_, top + kSquare); ++i)
          for (int64_t j = left; j <= std::min(i, left + kSquare - 1); ++j) {
            double &lower = grad_.at(i, j), &upper = grad_.at(j, i);
            if (spreading_) lower = upper = lower + upper;
            else if (!solved[i]) lower = upper;
            else if (!solved[j]) upper = lower;
          }
  }

  const DenseProblem<T>& p_;
  const DenseOptions& o_;
  const DenseKernels& k_;
  const int64_t n_, classes_;
  const bool spreading_;
  Matrix weights_, grad_, factor_;   // W; dL/dM; R
  Matrix f_, right_;                 // [n, C]; right-hand sides and solutions of the solved rows
  Vector degree_, inner_, scale_;    // d, d^-1/2 and s of the normalisation
  std::vector<int64_t> rows_;        // the solved ones
  Vector root_, totals_, grad_f_;    // D^1/2 (spreading) and sums of F of the solved rows; dL/dF [n, C]
};

}  // namespace

template <class T>
void dense_unit_rows(int64_t n, int64_t cols, const T* x, T* unit, double* inverse_norms, int threads) {
  const DenseKernels& kernels = dense_kernels();
  each_row(n, threads, [&](int64_t i) {
    if constexpr (std::is_same_v<T, float>) inverse_norms[i] = kernels.unit_row_f32(cols, x + i * cols, unit + i * cols);
    else inverse_norms[i] = kernels.unit_row_f64(cols, x + i * cols, unit + i * cols);
  });
  for (int64_t i = 0; i < n; ++i)
    if (inverse_norms[i] < 0)
      throw std::invalid_argument("embeddings: row " + std::to_string(i) + " contains NaN or Inf");
}

template <class T>
void dense_unit_rows_backward(int64_t n, int64_t cols, const T* unit, const double* inverse_norms, const T* grad_unit,
                              T* grad, int threads) {
  const DenseKernels& kernels = dense_kernels();
  each_row(n, threads, [&](int64_t i) {
    const int64_t at = i * cols;
    const double inverse = inverse_norms[i] > kLargestInverseNorm<T> ? 0 : inverse_norms[i];
    if constexpr (std::is_same_v<T, float>)
      kernels.project_row_f32(cols, unit + at, grad_unit + at, inverse, grad + at);
    else kernels.project_row_f64(cols, unit + at, grad_unit + at, inverse, grad + at);
  });
}

void dense_product(int64_t n, int64_t k, int64_t m, const float* a, const float* b, bool transposed, float* c,
                   int threads) {
  dense_product_kernel()(n, k, m, a, b, transposed, c, threads);
}

void eliminate(int64_t n, int64_t stride, double* a) { dense_kernels().eliminate(n, stride, a); }

void edge_gradients(int64_t n, int64_t classes, int64_t stride, const double* x, const double* lam, double* gradient,
                    int threads) {
  constexpr int64_t kSquare = 64;
  const DenseKernels& kernels = dense_kernels();
  const int64_t squares = (n + kSquare - 1) / kSquare;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && squares > 4)
  for (int64_t down = 0; down < squares; ++down) {  // squares left of the diagonal, and what they mirror
    std::vector<double> own(size_t(2 * classes));
    double square[kSquare][kSquare], mirrored[kSquare][kSquare];
    const int64_t top = down * kSquare, rows = std::min(n - top, kSquare);
    for (int64_t left = 0; left <= top; left += kSquare) {
      const int64_t columns = std::min(n - left, kSquare);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t c = 0; c < classes; ++c) {
          own[c] = x[c * stride + top + i];
          own[classes + c] = lam[c * stride + top + i];
        }
        kernels.edge_gradients(kSquare, classes, stride, own.data(), own.data() + classes, x + left, lam + left,
                               square[i]);
        for (int64_t j = 0; j < kSquare; ++j) mirrored[j][i] = square[i][j];
        std::copy_n(square[i], columns, gradient + (top + i) * n + left);
      }
      for (int64_t j = 0; j < columns; ++j) std::copy_n(mirrored[j], rows, gradient + (left + j) * n + top);
    }
  }
}

// Labels index F and the class weights: what is no class would be written anywhere.
template <class T>
void check_labels(const DenseProblem<T>& p) {
  for (int64_t i = 0; i < p.n; ++i)
    for (const int64_t* labels : {p.labels, p.targets})
      if (labels[i] < -1 || labels[i] >= p.num_classes || (labels == p.targets && p.scored[i] && labels[i] < 0))
        throw std::invalid_argument("labels must be 0.." + std::to_string(p.num_classes - 1) +
                                    (labels[i] == -1 ? " where scored" : " or -1") + ", got " +
                                    std::to_string(labels[i]) + " for document " + std::to_string(i));
}

template <class T>
void dense_loss(const DenseProblem<T>& problem, const DenseOptions& options, const DenseResult<T>& result) {
  check_labels(problem);
  DenseLoss<T>(problem, options).run(result);
}

#define GLOSS_INSTANTIATE(T)                                                                                      \
  template void dense_unit_rows<T>(int64_t, int64_t, const T*, T*, double*, int);                                 \
  template void dense_unit_rows_backward<T>(int64_t, int64_t, const T*, const double*, const T*, T*, int);        \
  template void dense_loss<T>(const DenseProblem<T>&, const DenseOptions&, const DenseResult<T>&);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cpu
