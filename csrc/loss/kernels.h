// The inner loops of the dense mini-batch path, one copy an instruction set (loss/rows_simd.cpp), chosen by cpu::isa().
// Rows are doubles, `count` a multiple of kRow, padded with zeros.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace gloss::cpu {

constexpr int64_t kRow = 16;
constexpr double kSmallestExponent = -690;   // of a weight, _math.SMALLEST_EXPONENT: exp(-690) = 2e-300
constexpr double kRounding = 4 * 2.220446049250313e-16;  // relative, of a component of F (_elimination.ULPS)
inline int64_t padded(int64_t count) { return (count + kRow - 1) / kRow * kRow; }

struct DenseKernels {
  // w_j = exp(x_j) for x_j <= 0, and 0 from kSmallestExponent on. w may be x.
  void (*exp)(int64_t count, const double* x, double* w);
  double (*dot)(int64_t count, const double* a, const double* b);
  double (*sum)(int64_t count, const double* a);
  // y += a x
  void (*axpy)(int64_t count, double a, const double* x, double* y);
  // Of X = diag(W 1 + e) - W = R^T R the factor R in place, from a [n, stride]: W right of the diagonal, e in column n,
  // zeros after it. R has its diagonal there, and what is right of it, which is <= 0, without its sign. W and e are >= 0,
  // and no step subtracts: a pivot is the sum of what is left in its row, so that each entry is right to a few n eps.
  void (*eliminate)(int64_t n, int64_t stride, double* a);
  // x <- X^-1 x for x [n, width], width a multiple of kRow. Its error is relative to X^-1 |x|.
  void (*solve)(int64_t n, int64_t stride, const double* r, int64_t width, double* x);
  // out_j = -sum_c (lam_c - lams_cj) (f_c - fs_cj) for fs, lams [classes, stride]; out has `count` elements. A difference
  // of two F within their rounding counts as 0: it may be multiplied by a lam of 1e70.
  void (*edge_gradients)(int64_t count, int64_t classes, int64_t stride, const double* f, const double* lam,
                         const double* fs, const double* lams, double* out);
  // unit = x / |x|, a zero row stays zero. Returns 1 / |x| (0 for a zero row), or -1 where x contains NaN or Inf.
  double (*unit_row_f32)(int64_t cols, const float* x, float* unit);
  double (*unit_row_f64)(int64_t cols, const double* x, double* unit);
  // grad = (grad_unit - (grad_unit . unit) unit) / |x|
  void (*project_row_f32)(int64_t cols, const float* unit, const float* grad_unit, double inverse_norm, float* grad);
  void (*project_row_f64)(int64_t cols, const double* unit, const double* grad_unit, double inverse_norm,
                          double* grad);
};

// C [n, m] = A [n, k] B [k, m], or A B^T with B [m, k] where `transposed`; rows one after the other (product_simd.cpp).
using DenseProduct = void (*)(int64_t n, int64_t k, int64_t m, const float* a, const float* b, bool transposed,
                              float* c, int threads);

#define GLOSS_DECLARE_DENSE_KERNELS(isa)    \
  namespace isa {                           \
  extern const DenseKernels dense;          \
  extern const DenseProduct dense_product;  \
  }
GLOSS_DECLARE_DENSE_KERNELS(generic)
#if defined(GLOSS_X86_SIMD)
GLOSS_DECLARE_DENSE_KERNELS(avx2)
GLOSS_DECLARE_DENSE_KERNELS(avx512)
GLOSS_DECLARE_DENSE_KERNELS(avx512bf16)
#endif

const DenseKernels& dense_kernels();
DenseProduct dense_product_kernel();

}  // namespace gloss::cpu
