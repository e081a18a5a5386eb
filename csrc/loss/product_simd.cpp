// C = A B in float32 whatever torch's settings say: torch's own product may round its factors to bfloat16 or TF32
// (torch.set_float32_matmul_precision), and these cosines decide the weights. Every element is the sum over k in order, in
// parts of kPart, so that its bits depend on neither the threads nor on where in C it stands.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#include <cstring>

namespace gloss::cpu::GLOSS_ISA {
namespace {

// A tile is kTileRows rows by kVectors registers of columns, its sums in registers; kPart steps of a panel of columns are
// 16 to 64 KB and serve all rows.
#if defined(__AVX512F__)
constexpr int kVectors = 4, kLanes = 16;
using Vector = __m512;
inline Vector load(const float* x) { return _mm512_loadu_ps(x); }
inline Vector broadcast(float x) { return _mm512_set1_ps(x); }
inline void store(float* out, Vector x) { _mm512_storeu_ps(out, x); }
inline Vector mac(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
#elif defined(__AVX2__)
constexpr int kVectors = 2, kLanes = 8;
using Vector = __m256;
inline Vector load(const float* x) { return _mm256_loadu_ps(x); }
inline Vector broadcast(float x) { return _mm256_set1_ps(x); }
inline void store(float* out, Vector x) { _mm256_storeu_ps(out, x); }
inline Vector mac(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
#else
// Four floats as a vector of GCC and Clang: SSE2 on x86-64, NEON on aarch64.
constexpr int kVectors = 2, kLanes = 4;
typedef float Vector __attribute__((vector_size(16)));
inline Vector load(const float* x) {
  Vector v;
  std::memcpy(&v, x, sizeof(v));
  return v;
}
inline Vector broadcast(float x) { return Vector{x, x, x, x}; }
inline void store(float* out, Vector x) { std::memcpy(out, &x, sizeof(x)); }
inline Vector mac(Vector a, Vector b, Vector sum) { return a * b + sum; }
inline Vector add(Vector a, Vector b) { return a + b; }
#endif
constexpr int kTileRows = 6, kPanel = kVectors * kLanes;
constexpr int64_t kPart = 256;

// c [Rows, kPanel] (stride kPanel) += a [Rows, steps] (stride k) . panel [steps, kPanel]
template <int Rows>
inline void tile(const float* a, int64_t k, const float* panel, int64_t steps, float* c) {
  Vector sum[Rows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = broadcast(0.f);
  for (int64_t s = 0; s < steps; ++s, panel += kPanel) {
    Vector columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) columns[v] = load(panel + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const Vector value = broadcast(a[r * k + s]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = mac(value, columns[v], sum[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * kPanel + v * kLanes;
      store(to, add(load(to), sum[r][v]));
    }
}

// Columns [first, first + width) of B as a panel [k, kPanel], zeros to its right.
void pack(const float* b, int64_t k, int64_t m, bool transposed, int64_t first, int64_t width, float* panel) {
  if (width < kPanel) std::fill(panel, panel + k * kPanel, 0.f);
  constexpr int64_t kSquare = 16;  // steps at a time, so that what is written stays in the first-level cache
  if (transposed) {
    for (int64_t s = 0; s < k; s += kSquare)
      for (int64_t j = 0; j < width; ++j)
        for (int64_t t = s; t < std::min(k, s + kSquare); ++t) panel[t * kPanel + j] = b[(first + j) * k + t];
  } else {
    for (int64_t s = 0; s < k; ++s) std::memcpy(panel + s * kPanel, b + s * m + first, size_t(width) * sizeof(float));
  }
}

// Panels are threads' work, one after the other.
void product(int64_t n, int64_t k, int64_t m, const float* a, const float* b, bool transposed, float* c, int threads) {
  const int64_t panels = (m + kPanel - 1) / kPanel;
  const int team = n * m * k < (1 << 20) ? 1 : int(std::max<int64_t>(1, std::min<int64_t>(threads, panels)));
  static thread_local std::vector<float> memory;  // kept: fresh pages would cost a third of the time at n = 128
  if (int64_t(memory.size()) < team * (k + n) * kPanel) memory.resize(size_t(team * (k + n) * kPanel));
  float* const buffers = memory.data();
#pragma omp parallel for num_threads(team) schedule(static)
  for (int64_t p = 0; p < panels; ++p) {
    float* panel = buffers + omp_get_thread_num() * (k + n) * kPanel;
    float* sums = panel + k * kPanel;  // [n, kPanel]
    const int64_t first = p * kPanel, width = std::min<int64_t>(kPanel, m - first);
    pack(b, k, m, transposed, first, width, panel);
    std::fill(sums, sums + n * kPanel, 0.f);
    for (int64_t s = 0; s < k; s += kPart) {
      const int64_t steps = std::min(kPart, k - s);
      int64_t i = 0;
      for (; i + kTileRows <= n; i += kTileRows)
        tile<kTileRows>(a + i * k + s, k, panel + s * kPanel, steps, sums + i * kPanel);
      for (; i < n; ++i) tile<1>(a + i * k + s, k, panel + s * kPanel, steps, sums + i * kPanel);
    }
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(c + i * m + first, sums + i * kPanel, size_t(width) * sizeof(float));
  }
}

}  // namespace

extern const DenseProduct dense_product = product;

}  // namespace gloss::cpu::GLOSS_ISA
