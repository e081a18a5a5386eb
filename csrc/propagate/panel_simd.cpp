// Inner loops of propagate (kernels.h), compiled once for each instruction set. The panel's width is a template argument,
// so that a row is a fixed number of vectors: one of 16 floats on AVX-512.
#include "kernels.h"

namespace gloss::cpu::GLOSS_ISA {
namespace {

// sum[l] = (B x)[i, l]. Two running sums, of even and odd edges: the additions of one do not wait for the other's.
template <int N, class T, class Sum>
inline void neighbors(const System<T>& system, int64_t i, const T* __restrict x, Sum* __restrict sum) {
  Sum even[N] = {}, odd[N] = {};
  const int64_t end = system.crow[i + 1];
  int64_t e = system.crow[i];
  for (; e + 1 < end; e += 2) {
    const T* __restrict row0 = x + int64_t(system.col[e]) * N;
    const T* __restrict row1 = x + int64_t(system.col[e + 1]) * N;
    const Sum w0 = system.value[e], w1 = system.value[e + 1];
#pragma omp simd
    for (int l = 0; l < N; ++l) {
      even[l] += w0 * Sum(row0[l]);
      odd[l] += w1 * Sum(row1[l]);
    }
  }
  if (e < end) {
    const T* __restrict row = x + int64_t(system.col[e]) * N;
    const Sum w = system.value[e];
#pragma omp simd
    for (int l = 0; l < N; ++l) even[l] += w * Sum(row[l]);
  }
#pragma omp simd
  for (int l = 0; l < N; ++l) sum[l] = even[l] + odd[l];
}

template <int N, class T>
void multiply_rows(const System<T>& system, const T* __restrict p, T* __restrict q, int64_t begin, int64_t end,
                   double* __restrict dots) {
  double dot[N] = {};
  for (int64_t i = begin; i < end; ++i) {
    T sum[N];
    neighbors<N>(system, i, p, sum);
#pragma omp simd
    for (int l = 0; l < N; ++l) {
      const T value = p[i * N + l] - sum[l];
      q[i * N + l] = value;
      dot[l] += double(p[i * N + l]) * double(value);
    }
  }
  for (int l = 0; l < N; ++l) dots[l] = dot[l];
}

template <int N, class T>
void residual_rows(const System<T>& system, const T* __restrict b, const T* __restrict x, T* __restrict out,
                   int64_t begin, int64_t end, double* __restrict dots) {
  double dot[N] = {};
  for (int64_t i = begin; i < end; ++i) {
    double sum[N];
    neighbors<N>(system, i, x, sum);
#pragma omp simd
    for (int l = 0; l < N; ++l) {
      const double value = double(b[i * N + l]) - double(x[i * N + l]) + sum[l];
      out[i * N + l] = T(value);
      dot[l] += value * value;
    }
  }
  for (int l = 0; l < N; ++l) dots[l] = dot[l];
}

template <int N, class T>
void advance_rows(const T* __restrict step, const T* __restrict p, const T* __restrict q, T* __restrict e,
                  T* __restrict r, int64_t begin, int64_t end, double* __restrict dots) {
  double dot[N] = {};
  for (int64_t i = begin; i < end; ++i) {
#pragma omp simd
    for (int l = 0; l < N; ++l) {
      e[i * N + l] += step[l] * p[i * N + l];
      const T value = r[i * N + l] - step[l] * q[i * N + l];
      r[i * N + l] = value;
      dot[l] += double(value) * double(value);
    }
  }
  for (int l = 0; l < N; ++l) dots[l] = dot[l];
}

template <int N, class T>
void turn_rows(const T* __restrict beta, const T* __restrict r, T* __restrict p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
#pragma omp simd
    for (int l = 0; l < N; ++l) p[i * N + l] = r[i * N + l] + beta[l] * p[i * N + l];
  }
}

// Picks the copy for the panel's width: 4, 8 or 16.
#define GLOSS_BY_WIDTH(call)      \
  switch (width) {                \
    case 4: return call(4);       \
    case 8: return call(8);       \
    default: return call(kPanel); \
  }

template <class T>
void multiply(const System<T>& system, int64_t width, const T* p, T* q, int64_t begin, int64_t end, double* dots) {
#define GLOSS_CALL(n) multiply_rows<n>(system, p, q, begin, end, dots)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void residual(const System<T>& system, int64_t width, const T* b, const T* x, T* out, int64_t begin, int64_t end,
              double* dots) {
#define GLOSS_CALL(n) residual_rows<n>(system, b, x, out, begin, end, dots)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void advance(int64_t width, const T* step, const T* p, const T* q, T* e, T* r, int64_t begin, int64_t end,
             double* dots) {
#define GLOSS_CALL(n) advance_rows<n>(step, p, q, e, r, begin, end, dots)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void turn(int64_t width, const T* beta, const T* r, T* p, int64_t begin, int64_t end) {
#define GLOSS_CALL(n) turn_rows<n>(beta, r, p, begin, end)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

// Sums in 16 lanes of T, added up in double.
template <class T, class Term>
inline double lanes_sum(int64_t count, const Term& term) {
  constexpr int kLanes = 16;
  T lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) lane[l] += term(c + l);
  }
  double sum = 0;
  for (; c < count; ++c) sum += double(term(c));
  for (int l = 0; l < kLanes; ++l) sum += double(lane[l]);
  return sum;
}

template <class T>
double dot(int64_t count, const T* __restrict a, const T* __restrict f) {
  return lanes_sum<T>(count, [=](int64_t c) { return a[c] * f[c]; });
}

template <class T>
double dot_differences(int64_t count, const T* __restrict a, const T* __restrict b, const T* __restrict f,
                       const T* __restrict g) {
  return lanes_sum<T>(count, [=](int64_t c) { return (a[c] - b[c]) * (f[c] - g[c]); });
}

}  // namespace

extern const PanelKernels<float> panel_f32 = {multiply<float>, residual<float>, advance<float>,
                                              turn<float>,     dot<float>,      dot_differences<float>};
extern const PanelKernels<double> panel_f64 = {multiply<double>, residual<double>, advance<double>,
                                               turn<double>,     dot<double>,      dot_differences<double>};

}  // namespace gloss::cpu::GLOSS_ISA
