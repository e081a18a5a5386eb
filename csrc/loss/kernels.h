// The inner loops of the dense mini-batch path, one copy an instruction set (loss/rows_simd.cpp), chosen by cpu::isa().
// Rows are doubles, `count` a multiple of kRow, padded with zeros.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace gloss::cpu {

constexpr int64_t kRow = 16;
inline int64_t padded(int64_t count) { return (count + kRow - 1) / kRow * kRow; }

struct DenseKernels {
  // w_j = exp(x_j) for x_j <= 0, and 0 where that is below `smallest`. w may be x.
  void (*exp)(int64_t count, const double* x, double smallest, double* w);
  double (*dot)(int64_t count, const double* a, const double* b);
  double (*sum)(int64_t count, const double* a);
  // y += a x
  void (*axpy)(int64_t count, double a, const double* x, double* y);
  // A = L L^T in place, of the lower triangle of A [n, stride]; false if A is not positive definite.
  bool (*cholesky)(int64_t n, int64_t stride, double* a);
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
