// The inner loops of propagate, one copy an instruction set (propagate/panel_simd.cpp), chosen by cpu::isa().
//
// A panel is a row-major matrix [rows, width] of at most kPanel columns, one a class: a row is one cache line of floats,
// so that following an edge costs one line, and a panel of 20,000 rows stays in the second-level cache. Sums over rows
// are double, over fixed ranges of rows, so that they do not depend on the threads.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace gloss::cpu {

constexpr int64_t kPanel = 16;

// The width of a panel for so many columns; the columns past them hold zeros.
inline int64_t panel_width(int64_t columns) { return columns <= 4 ? 4 : columns <= 8 ? 8 : kPanel; }

// Rows of label spreading's B, the off-diagonal part of the system I - B (symmetric).
template <class T>
struct System {
  int64_t rows;
  const int64_t* crow;  // [rows + 1]
  const int32_t* col;   // [nnz]
  const T* value;       // [nnz]
};

// Rows of A x, (A x)_i = e_i x_i + sum_j W_ij (x_i - x_j): W without its diagonal, the excess e >= 0.
template <class T>
struct Weights {
  const int64_t* crow;  // [rows + 1]
  const int32_t* col;   // [nnz]
  const T* weight;      // [nnz]
  const T* excess;      // [rows]
  const T* damped;      // [rows], damping / diagonal
};

template <class T>
struct PanelKernels {
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

  // Of the multilevel solver: y = A x on rows [begin, end); dots[c] = sum of x y.
  void (*apply)(const Weights<T>& a, int64_t width, const T* x, T* y, int64_t begin, int64_t end, double* dots);
  // r = b - A x.
  void (*remainder)(const Weights<T>& a, int64_t width, const T* b, const T* x, T* r, int64_t begin, int64_t end);
  // x += step p, r -= step q, z = damped r.
  void (*descend)(const Weights<T>& a, int64_t width, const T* step, const T* p, const T* q, T* x, T* r, T* z,
                  int64_t begin, int64_t end);
  // z = damped r.
  void (*damp)(const Weights<T>& a, int64_t width, const T* r, T* z, int64_t begin, int64_t end);
  // coarse[g] = sum over the rows of group g of r - A z, groups [begin, end).
  void (*restrict)(const Weights<T>& a, const int32_t* first, int64_t width, const T* r, const T* z, T* coarse,
                   int64_t begin, int64_t end);
  // z += coarse[g] in the rows of groups [begin, end).
  void (*prolong)(const int32_t* first, int64_t width, const T* coarse, T* z, int64_t begin, int64_t end);
  // dots[c] = sum of r z, largest[c] = max |z|.
  void (*measure)(int64_t width, const T* r, const T* z, int64_t begin, int64_t end, double* dots, double* largest);
  // out = z + damped (r - A z), measured.
  void (*smooth)(const Weights<T>& a, int64_t width, const T* r, const T* z, T* out, int64_t begin, int64_t end,
                 double* dots, double* largest);

  // Over whole rows of classes [count]: sum of a f, and of (a - b) (f - g) without differences that are rounding: of f and
  // g, results, up to 4 units in the last place, of a and b, their adjoints, up to 64. Adjoints grow as one over the
  // weight that a group hangs on the labels by, 1e35 at sigma 0.1; there f - g is that small, and noise is not.
  double (*dot)(int64_t count, const T* a, const T* f);
  double (*dot_differences_f32)(int64_t count, const T* a, const T* b, const float* f, const float* g);
  double (*dot_differences_f64)(int64_t count, const T* a, const T* b, const double* f, const double* g);
};

#define GLOSS_DECLARE_PANEL_KERNELS(isa)      \
  namespace isa {                             \
  extern const PanelKernels<float> panel_f32; \
  extern const PanelKernels<double> panel_f64; \
  }
GLOSS_DECLARE_PANEL_KERNELS(generic)
#if defined(GLOSS_X86_SIMD)
GLOSS_DECLARE_PANEL_KERNELS(avx2)
GLOSS_DECLARE_PANEL_KERNELS(avx512)
GLOSS_DECLARE_PANEL_KERNELS(avx512bf16)
#endif

template <class T>
const PanelKernels<T>& panel_kernels();

}  // namespace gloss::cpu
