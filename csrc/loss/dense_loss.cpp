// G-Loss of a mini-batch on the dense graph, forward and gradient in one go (gloss.h: cpu::dense_loss). All of it is in
// double: n^2 numbers are few, and tight clusters that hang together by small weights make systems that float takes for
// singular. Formulas: gloss_kernels/reference.py.
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
        spreading_(!std::isnan(options.alpha)), weights_(0, n_, n_), grad_(1, n_, n_), factor_(2, n_, n_),
        f_(3, n_, classes_), right_(4, n_, classes_), degree_(zeros(n_)), inner_(zeros(n_)), scale_(zeros(n_)) {}

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
    const double smallest = std::is_same_v<T, double> ? 1e-280 : 1e-32;
    each_row(n_, o_.threads, [&](int64_t i) {
      double* row = weights_.row(i);
      const T* cosine = p_.cosines + i * n_;
      for (int64_t j = 0; j < n_; ++j)
        row[j] = std::min(double(cosine[j]) - 1, 0.0) * (p_.inverse_sigma[i] * p_.inverse_sigma[j]);
      k_.exp(weights_.stride, row, smallest, row);
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

  // Fills f_; factor_ and root_ are kept for the adjoint. Returns the most that a row's sum lacks.
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
      double* right = right_.row(a);
      if (spreading_) {
        if (p_.labels[i] >= 0) right[p_.labels[i]] = 1 - o_.alpha;
        return;
      }
      double degree = 0;
      for (int64_t j = 0; j < n_; ++j) {
        const double value = m(i, j);
        degree += value;
        if (p_.labels[j] >= 0) right[p_.labels[j]] += value;
      }
      root_[a] = 1 / std::sqrt(degree);
      for (int64_t c = 0; c < classes_; ++c) right[c] *= root_[a];
    });
    // 1e-14 and more on the diagonal where rounding makes the factorisation fail.
    bool done = false;
    for (double jitter : {0.0, 1e-14, 1e-12, 1e-10}) {
      each_row(count, o_.threads, [&](int64_t a) {
        const double factor = spreading_ ? o_.alpha : root_[a];
        for (int64_t b = 0; b < a; ++b) factor_.at(a, b) = -factor * m(rows_[a], rows_[b]) * root_[b];
        factor_.at(a, a) = 1 + jitter;
      });
      if ((done = k_.cholesky(count, factor_.stride, factor_.row(0)))) break;
    }
    if (!done) throw std::runtime_error("dense label propagation: the system is not positive definite; raise sigma");
    solve_factor();
    double lacks = 0;
    const Vector share = spreading_ ? Vector() : label_shares();
    for (int64_t a = 0; a < count; ++a) {
      double* f = f_.row(rows_[a]);
      double sum = 0;
      for (int64_t c = 0; c < classes_; ++c) sum += f[c] = std::max(root_[a] * right_.at(a, c), spreading_ ? -1.0 : 0.0);
      if (spreading_) {
        right_.at(a, 0) = sum;  // for the adjoint
        for (int64_t c = 0; c < classes_; ++c) f[c] = sum > 0 ? f[c] / sum : prior;
        continue;
      }
      // Exact rows sum to 1. What one lacks, where documents hang on the labelled ones by a weight beyond double, goes to
      // the classes in the proportion they have among the labelled.
      lacks = std::max(lacks, std::abs(1 - sum));
      for (int64_t c = 0; c < classes_; ++c) f[c] += std::max(1 - sum, 0.0) * share[c];
    }
    if (spreading_) {
      totals_.resize(size_t(count));
      for (int64_t a = 0; a < count; ++a) totals_[a] = right_.at(a, 0);
    }
    return lacks;
  }

  Vector label_shares() const {
    Vector share(static_cast<size_t>(classes_), 0.0);
    double count = 0;
    for (int64_t i = 0; i < n_; ++i)
      if (p_.labels[i] >= 0) share[p_.labels[i]] += 1, count += 1;
    for (double& s : share) s /= std::max(count, 1.0);
    return share;
  }

  // right_ <- (L L^T)^-1 right_
  void solve_factor() {
    const int64_t count = int64_t(rows_.size()), width = right_.stride;
    for (int64_t a = 0; a < count; ++a) {
      const double* l = factor_.row(a);
      double* x = right_.row(a);
      for (int64_t b = 0; b < a; ++b) k_.axpy(width, -l[b], right_.row(b), x);
      for (int64_t c = 0; c < width; ++c) x[c] /= l[a];
    }
    for (int64_t a = count - 1; a >= 0; --a) {
      const double* l = factor_.row(a);
      double* x = right_.row(a);
      for (int64_t c = 0; c < width; ++c) x[c] /= l[a];
      for (int64_t b = 0; b < a; ++b) k_.axpy(width, -l[b], x, right_.row(b));
    }
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

  // grad_ <- dL/dM, entries independent: lam_i . (F_j - F_i), or alpha lam_i . F_j when spreading.
  void adjoint() {
    const int64_t count = int64_t(rows_.size());
    for (int64_t a = 0; a < count; ++a) {
      const int64_t i = rows_[a];
      const double *grad = grad_f_.data() + i * classes_, *f = f_.row(i);
      double* right = right_.row(a);
      if (!spreading_) {
        for (int64_t c = 0; c < classes_; ++c) right[c] = root_[a] * grad[c];
        continue;
      }
      double along = 0;
      for (int64_t c = 0; c < classes_; ++c) along += grad[c] * f[c];
      for (int64_t c = 0; c < classes_; ++c) right[c] = totals_[a] > 0 ? (grad[c] - along) / totals_[a] : 0;
    }
    solve_factor();
    std::vector<double> columns(size_t(classes_ * grad_.stride), 0.0);  // F transposed
    for (int64_t i = 0; i < n_; ++i) {
      // Before they were made to sum to 1, spreading.
      for (int64_t c = 0; c < classes_; ++c) columns[c * grad_.stride + i] = f_.at(i, c);
    }
    if (spreading_)
      for (int64_t i = 0, a = 0; i < n_; ++i) {
        const double total = a < count && rows_[a] == i ? std::max(totals_[a++], 0.0) : 0.0;
        for (int64_t c = 0; c < classes_; ++c) columns[c * grad_.stride + i] *= total;
      }
    each_row(count, o_.threads, [&](int64_t a) {
      const int64_t i = rows_[a];
      double *row = grad_.row(i), own = 0;
      for (int64_t c = 0; c < classes_; ++c) {
        const double lam = (spreading_ ? o_.alpha : root_[a]) * right_.at(a, c);
        k_.axpy(grad_.stride, lam, columns.data() + c * grad_.stride, row);
        own += lam * f_.at(i, c);
      }
      if (!spreading_)
        for (int64_t j = 0; j < n_; ++j) row[j] -= own;
    });
  }

  // From grad_ = dL/dM through the normalisation, the weights and the cosines.
  void backward(T* grad_cosines, double* grad_inverse_sigma) {
    symmetrize();  // an undirected weight takes the gradient of both its entries
    Vector to_degree = zeros(n_), to_inner = zeros(n_);
    if (o_.normalization != Normalization::row) {
      Vector to_scale = zeros(n_);
      each_row(n_, o_.threads, [&](int64_t i) {  // M_ij = W_ij s_i s_j
        const double *g = grad_.row(i), *w = weights_.row(i);
        double sum = 0;
        for (int64_t j = 0; j < n_; ++j) sum += g[j] * w[j] * scale_[j];
        to_scale[i] = sum;
      });
      if (o_.normalization == Normalization::symmetric) {  // s = d^-1/2
        for (int64_t i = 0; i < n_; ++i) to_degree[i] = -0.5 * to_scale[i] * power(degree_[i], -1.5);
      } else {  // s = 1 / (W q), q = d^-1/2
        for (int64_t i = 0; i < n_; ++i) to_inner[i] = -to_scale[i] * scale_[i] * scale_[i];
        each_row(n_, o_.threads, [&](int64_t i) {
          to_degree[i] = -0.5 * k_.dot(weights_.stride, weights_.row(i), to_inner.data()) * power(degree_[i], -1.5);
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

  // grad_ <- grad_ + its transpose, in squares that stay in the first-level cache.
  void symmetrize() {
    constexpr int64_t kSquare = 32;
    for (int64_t top = 0; top < n_; top += kSquare)
      for (int64_t left = 0; left <= top; left += kSquare)
        for (int64_t i = top; i < std::min(n_, top + kSquare); ++i)
          for (int64_t j = left; j <= std::min(i, left + kSquare - 1); ++j)
            grad_.at(i, j) = grad_.at(j, i) = grad_.at(i, j) + grad_.at(j, i);
  }

  const DenseProblem<T>& p_;
  const DenseOptions& o_;
  const DenseKernels& k_;
  const int64_t n_, classes_;
  const bool spreading_;
  Matrix weights_, grad_, factor_;   // W; dL/dM; L
  Matrix f_, right_;                 // [n, C]; right-hand sides and solutions of the solved rows
  Vector degree_, inner_, scale_;    // d, d^-1/2 and s of the normalisation
  std::vector<int64_t> rows_;        // the solved ones
  Vector root_, totals_, grad_f_;    // D^-1/2 and sums of F of the solved rows; dL/dF [n, C]
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
