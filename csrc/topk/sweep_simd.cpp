// The tile kernel: products of 6 rows with a panel of columns, and the few of them that reach a threshold.
#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#include <cstring>

namespace gloss::cpu::GLOSS_ISA {
namespace {

// A panel is kVectors registers of kLanes columns: 6 x kVectors accumulators, kVectors columns and one row value are in
// registers. One step multiplies one word (a float or two bf16) of every row with that of every column.
#if defined(__AVX512F__)
constexpr int kVectors = 4, kLanes = 16;
using Vector = __m512;
inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector load(const void* x) { return _mm512_loadu_ps(x); }
inline Vector broadcast(const void* x) { return _mm512_set1_ps(*static_cast<const float*>(x)); }
inline void store(float* out, Vector x) { _mm512_storeu_ps(out, x); }
template <bool Bf16>
inline Vector mac(Vector a, Vector b, Vector sum) {
#if defined(__AVX512BF16__)
  if (Bf16) return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
  return _mm512_fmadd_ps(a, b, sum);
}
inline uint64_t reaches(Vector x, Vector row, Vector column) {
  return _mm512_cmp_ps_mask(x, _mm512_min_ps(row, column), _CMP_GE_OQ);
}
#elif defined(__AVX2__)
constexpr int kVectors = 2, kLanes = 8;
using Vector = __m256;
inline Vector zero() { return _mm256_setzero_ps(); }
inline Vector load(const void* x) { return _mm256_loadu_ps(static_cast<const float*>(x)); }
inline Vector broadcast(const void* x) { return _mm256_broadcast_ss(static_cast<const float*>(x)); }
inline void store(float* out, Vector x) { _mm256_storeu_ps(out, x); }
template <bool Bf16>
inline Vector mac(Vector a, Vector b, Vector sum) {
  return _mm256_fmadd_ps(a, b, sum);
}
inline uint64_t reaches(Vector x, Vector row, Vector column) {
  return uint64_t(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_min_ps(row, column), _CMP_GE_OQ)));
}
#else
// Four floats as a vector of GCC and Clang: SSE2 on x86-64, NEON on aarch64.
constexpr int kVectors = 2, kLanes = 4;
typedef float Vector __attribute__((vector_size(16)));
inline Vector zero() { return Vector{}; }
inline Vector load(const void* x) {
  Vector v;
  std::memcpy(&v, x, sizeof(v));
  return v;
}
inline Vector broadcast(const void* x) {
  const float f = *static_cast<const float*>(x);
  return Vector{f, f, f, f};
}
inline void store(float* out, Vector x) { std::memcpy(out, &x, sizeof(x)); }
template <bool Bf16>
inline Vector mac(Vector a, Vector b, Vector sum) {
  return a * b + sum;
}
inline uint64_t reaches(Vector x, Vector row, Vector column) {
  const auto mask = (x >= row) | (x >= column);  // -1 or 0 a lane
  return uint64_t((mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8));
}
#endif
constexpr int kPanel = kVectors * kLanes;

template <bool Bf16>
inline Survivor* tile(const uint32_t* a,  // [steps][6]
                      const uint32_t* b,  // [steps][kPanel]
                      int64_t steps, const float* row_threshold, const float* column_threshold, int32_t row,
                      int32_t column, Survivor* out) {
  Vector c[kTileRows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) c[r][v] = zero();

  for (int64_t s = 0; s < steps; ++s, a += kTileRows, b += kPanel) {
    Vector columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r) {
      const Vector value = broadcast(a + r);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) c[r][v] = mac<Bf16>(value, columns[v], c[r][v]);
    }
  }

  uint64_t reached[kTileRows] = {};  // one bit a column
  uint64_t any = 0;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const Vector thresholds = load(column_threshold + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r)
      reached[r] |= reaches(c[r][v], broadcast(row_threshold + r), thresholds) << (v * kLanes);
  }
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r) any |= reached[r];
  if (!any) return out;

  alignas(64) float values[kTileRows][kPanel];
#pragma GCC unroll 6
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(values[r] + v * kLanes, c[r][v]);
  for (int r = 0; r < kTileRows; ++r) {
    for (uint64_t left = reached[r]; left; left &= left - 1) {
      const int l = __builtin_ctzll(left);
      *out++ = {row + r, column + l, values[r][l]};
    }
  }
  return out;
}

template <bool Bf16>
int64_t sweep(const uint32_t* tiles, int64_t tile_count, const uint32_t* group, int64_t steps,
              const float* row_threshold, const float* column_threshold, Survivor* survivors) {
  Survivor* out = survivors;
  for (int column = 0; column < kGroup; column += kPanel)  // the panel stays in L1 while the tiles pass
    for (int64_t t = 0; t < tile_count; ++t)
      out = tile<Bf16>(tiles + t * steps * kTileRows, group + column * steps, steps, row_threshold + t * kTileRows,
                       column_threshold + column, int32_t(t * kTileRows), column, out);
  return out - survivors;
}

}  // namespace

int64_t sweep_f32(const uint32_t* tiles, int64_t tile_count, const uint32_t* group, int64_t steps,
                  const float* row_threshold, const float* column_threshold, Survivor* survivors) {
  return sweep<false>(tiles, tile_count, group, steps, row_threshold, column_threshold, survivors);
}

#if defined(__AVX512BF16__)
int64_t sweep_bf16(const uint32_t* tiles, int64_t tile_count, const uint32_t* group, int64_t steps,
                   const float* row_threshold, const float* column_threshold, Survivor* survivors) {
  return sweep<true>(tiles, tile_count, group, steps, row_threshold, column_threshold, survivors);
}
#endif

}  // namespace gloss::cpu::GLOSS_ISA
