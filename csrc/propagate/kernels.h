// The inner loops of propagate, one copy an instruction set (propagate/block_simd.cpp), chosen by cpu::isa().
//
// A block is a row-major matrix [rows, width] whose width is padded to a multiple of the vector length; every column is
// one class. All sums over rows are double, over fixed ranges of rows, so that they do not depend on the threads.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace gloss::cpu {

// I - B with B symmetric, unit diagonal left out.
template <class T>
struct System {
  int64_t rows;
  const int64_t* crow;  // [rows + 1]
  const int32_t* col;   // [nnz]
  const T* value;       // [nnz], entries of B
};

template <class T>
struct BlockKernels {
  // q = p - B p on rows [begin, end); dots[c] = sum over them of p q.
  void (*multiply)(const System<T>& system, int64_t width, const T* p, T* q, int64_t begin, int64_t end, double* dots);
  // out = b - (x - B x), summed in double; dots[c] = sum of out^2.
  void (*residual)(const System<T>& system, int64_t width, const T* b, const T* x, T* out, int64_t begin, int64_t end,
                   double* dots);
  // e += step p, r -= step q; dots[c] = sum of r^2.
  void (*advance)(int64_t width, const T* step, const T* p, const T* q, T* e, T* r, int64_t begin, int64_t end,
                  double* dots);
  // p = r + beta p.
  void (*turn)(int64_t width, const T* beta, const T* r, T* p, int64_t begin, int64_t end);
  // sum[c] += weight x[c].
  void (*add_scaled)(int64_t count, double weight, const T* x, double* sum);
  // sum of (a - b)[c] (f - g)[c].
  double (*dot_differences)(int64_t count, const T* a, const T* b, const T* f, const T* g);
  double (*dot)(int64_t count, const T* a, const T* b);
};

#define GLOSS_DECLARE_BLOCK_KERNELS(isa)     \
  namespace isa {                            \
  extern const BlockKernels<float> block_f32; \
  extern const BlockKernels<double> block_f64; \
  }
GLOSS_DECLARE_BLOCK_KERNELS(generic)
#if defined(GLOSS_X86_SIMD)
GLOSS_DECLARE_BLOCK_KERNELS(avx2)
GLOSS_DECLARE_BLOCK_KERNELS(avx512)
GLOSS_DECLARE_BLOCK_KERNELS(avx512bf16)
#endif

template <class T>
const BlockKernels<T>& block_kernels();

}  // namespace gloss::cpu
