// Inner loops of propagate (kernels.h), compiled once for each instruction set.
//
// A row of a block is walked in chunks of at most 64 columns that stay in registers while the row's edges go by: 4
// vectors of 16 floats on AVX-512. Chunk widths are template arguments, so that the compiler unrolls and vectorises.
#include "kernels.h"

namespace gloss::cpu::GLOSS_ISA {
namespace {

template <int N>
struct Width {
  static constexpr int value = N;
};

// Calls body(Width<N>, first column) over [0, width) in the widest chunks; width is a multiple of 4.
template <class Body>
inline void each_chunk(int64_t width, const Body& body) {
  int64_t c = 0;
  for (; c + 64 <= width; c += 64) body(Width<64>{}, c);
  for (; c + 32 <= width; c += 32) body(Width<32>{}, c);
  for (; c + 16 <= width; c += 16) body(Width<16>{}, c);
  for (; c + 8 <= width; c += 8) body(Width<8>{}, c);
  for (; c + 4 <= width; c += 4) body(Width<4>{}, c);
}

// sum[l] += (B x)[i, c + l], in the type of sum.
template <int N, class T, class Sum>
inline void add_neighbors(const System<T>& system, int64_t i, int64_t width, const T* __restrict x, int64_t c,
                          Sum* __restrict sum) {
  for (int64_t e = system.crow[i]; e < system.crow[i + 1]; ++e) {
    const T* __restrict row = x + int64_t(system.col[e]) * width + c;
    const Sum w = system.value[e];
#pragma omp simd
    for (int l = 0; l < N; ++l) sum[l] += w * Sum(row[l]);
  }
}

template <class T>
void multiply(const System<T>& system, int64_t width, const T* p, T* q, int64_t begin, int64_t end, double* dots) {
  for (int64_t c = 0; c < width; ++c) dots[c] = 0;
  for (int64_t i = begin; i < end; ++i)
    each_chunk(width, [&](auto chunk, int64_t c) {
      constexpr int N = decltype(chunk)::value;
      T sum[N] = {};
      add_neighbors<N>(system, i, width, p, c, sum);
      const T* __restrict pi = p + i * width + c;
      T* __restrict qi = q + i * width + c;
      double* __restrict dot = dots + c;
#pragma omp simd
      for (int l = 0; l < N; ++l) {
        const T value = pi[l] - sum[l];
        qi[l] = value;
        dot[l] += double(pi[l]) * double(value);
      }
    });
}

template <class T>
void residual(const System<T>& system, int64_t width, const T* b, const T* x, T* out, int64_t begin, int64_t end,
              double* dots) {
  for (int64_t c = 0; c < width; ++c) dots[c] = 0;
  for (int64_t i = begin; i < end; ++i)
    each_chunk(width, [&](auto chunk, int64_t c) {
      constexpr int N = decltype(chunk)::value;
      double sum[N] = {};
      add_neighbors<N>(system, i, width, x, c, sum);
      const T* __restrict bi = b + i * width + c;
      const T* __restrict xi = x + i * width + c;
      T* __restrict ri = out + i * width + c;
      double* __restrict dot = dots + c;
#pragma omp simd
      for (int l = 0; l < N; ++l) {
        const double value = double(bi[l]) - double(xi[l]) + sum[l];
        ri[l] = T(value);
        dot[l] += value * value;
      }
    });
}

template <class T>
void advance(int64_t width, const T* step, const T* p, const T* q, T* e, T* r, int64_t begin, int64_t end,
             double* dots) {
  for (int64_t c = 0; c < width; ++c) dots[c] = 0;
  for (int64_t i = begin; i < end; ++i) {
    const T* __restrict pi = p + i * width;
    const T* __restrict qi = q + i * width;
    T* __restrict ei = e + i * width;
    T* __restrict ri = r + i * width;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      ei[c] += step[c] * pi[c];
      const T value = ri[c] - step[c] * qi[c];
      ri[c] = value;
      dots[c] += double(value) * double(value);
    }
  }
}

template <class T>
void turn(int64_t width, const T* beta, const T* r, T* p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* __restrict ri = r + i * width;
    T* __restrict pi = p + i * width;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) pi[c] = ri[c] + beta[c] * pi[c];
  }
}

template <class T>
void add_scaled(int64_t count, double weight, const T* __restrict x, double* __restrict sum) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) sum[c] += weight * double(x[c]);
}

template <class T>
double dot(int64_t count, const T* a, const T* b) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < count; ++c) sum += double(a[c]) * double(b[c]);
  return sum;
}

template <class T>
double dot_differences(int64_t count, const T* a, const T* b, const T* f, const T* g) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < count; ++c) sum += double(a[c] - b[c]) * double(f[c] - g[c]);
  return sum;
}

}  // namespace

extern const BlockKernels<float> block_f32 = {multiply<float>, residual<float>,        advance<float>, turn<float>,
                                              add_scaled<float>, dot_differences<float>, dot<float>};
extern const BlockKernels<double> block_f64 = {multiply<double>, residual<double>,        advance<double>, turn<double>,
                                               add_scaled<double>, dot_differences<double>, dot<double>};

}  // namespace gloss::cpu::GLOSS_ISA
