// 16 doubles at a time, whatever the registers are. For *_simd.cpp files only: each instruction set has its own copy.
// The order of additions depends on the lanes alone, and multiply-adds are spelt out, so that one copy gives the same
// bits wherever the compiler inlines it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gloss::cpu::GLOSS_ISA {
namespace {

#if defined(__AVX2__)
// Halves are added to halves: the same tree of additions in every copy.
inline double sum_quad(__m256d q) {
  const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(q), _mm256_extractf128_pd(q, 1));
  return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}
#endif

#if defined(__AVX512F__)

struct Lanes {
  __m512d a, b;
};
inline Lanes zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
inline Lanes load_double(const double* x) { return {_mm512_loadu_pd(x), _mm512_loadu_pd(x + 8)}; }
inline Lanes widen(__m512 x) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
}
inline Lanes load_float(const float* x) { return widen(_mm512_loadu_ps(x)); }
inline Lanes load_half(const uint16_t* x) { return widen(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x))); }
inline Lanes load_bfloat(const uint16_t* x) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x));
  return widen(_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
}
inline Lanes mul(Lanes x, double s) {
  const __m512d v = _mm512_set1_pd(s);
  return {_mm512_mul_pd(x.a, v), _mm512_mul_pd(x.b, v)};
}
inline Lanes broadcast(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
inline Lanes add(Lanes x, Lanes y) { return {_mm512_add_pd(x.a, y.a), _mm512_add_pd(x.b, y.b)}; }
inline Lanes sub(Lanes x, Lanes y) { return {_mm512_sub_pd(x.a, y.a), _mm512_sub_pd(x.b, y.b)}; }
inline Lanes mac(Lanes x, Lanes y, Lanes sum) {
  return {_mm512_fmadd_pd(x.a, y.a, sum.a), _mm512_fmadd_pd(x.b, y.b, sum.b)};
}
inline void store_double(Lanes x, double* out) {
  _mm512_storeu_pd(out, x.a);
  _mm512_storeu_pd(out + 8, x.b);
}
inline void store_float(Lanes x, float* out) {
  _mm256_storeu_ps(out, _mm512_cvtpd_ps(x.a));
  _mm256_storeu_ps(out + 8, _mm512_cvtpd_ps(x.b));
}
inline double sum(Lanes x) {
  const __m512d eight = _mm512_add_pd(x.a, x.b);
  return sum_quad(_mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1)));
}

#elif defined(__AVX2__)

struct Lanes {
  __m256d v[4];
};
#define GLOSS_EACH(expression) \
  Lanes r;                     \
  for (int l = 0; l < 4; ++l) r.v[l] = expression; \
  return r
inline Lanes zero() { GLOSS_EACH(_mm256_setzero_pd()); }
inline Lanes load_double(const double* x) { GLOSS_EACH(_mm256_loadu_pd(x + 4 * l)); }
inline Lanes load_float(const float* x) { GLOSS_EACH(_mm256_cvtps_pd(_mm_loadu_ps(x + 4 * l))); }
inline Lanes load_half(const uint16_t* x) {
  GLOSS_EACH(_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)(x + 4 * l)))));
}
inline Lanes load_bfloat(const uint16_t* x) {
  GLOSS_EACH(_mm256_cvtps_pd(_mm_castsi128_ps(
      _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)(x + 4 * l))), 16))));
}
inline Lanes mul(Lanes x, double s) { GLOSS_EACH(_mm256_mul_pd(x.v[l], _mm256_set1_pd(s))); }
inline Lanes broadcast(double x) { GLOSS_EACH(_mm256_set1_pd(x)); }
inline Lanes add(Lanes x, Lanes y) { GLOSS_EACH(_mm256_add_pd(x.v[l], y.v[l])); }
inline Lanes sub(Lanes x, Lanes y) { GLOSS_EACH(_mm256_sub_pd(x.v[l], y.v[l])); }
inline Lanes mac(Lanes x, Lanes y, Lanes sum) { GLOSS_EACH(_mm256_fmadd_pd(x.v[l], y.v[l], sum.v[l])); }
#undef GLOSS_EACH
inline void store_double(Lanes x, double* out) {
  for (int l = 0; l < 4; ++l) _mm256_storeu_pd(out + 4 * l, x.v[l]);
}
inline void store_float(Lanes x, float* out) {
  for (int l = 0; l < 4; ++l) _mm_storeu_ps(out + 4 * l, _mm256_cvtpd_ps(x.v[l]));
}
inline double sum(Lanes x) {
  return sum_quad(_mm256_add_pd(_mm256_add_pd(x.v[0], x.v[2]), _mm256_add_pd(x.v[1], x.v[3])));
}

#else

struct Lanes {
  double v[16];
};
#define GLOSS_EACH(expression) \
  Lanes r;                     \
  for (int l = 0; l < 16; ++l) r.v[l] = expression; \
  return r
inline float half_to_float(uint16_t h) {
  // Bits of the float 2^-112 times too small, subnormals included; Inf and NaN keep a full exponent.
  uint32_t bits = uint32_t(h & 0x7fff) << 13;
  float x;
  std::memcpy(&x, &bits, 4);
  x *= 5.192296858534828e33f;  // 2^112
  std::memcpy(&bits, &x, 4);
  if ((h & 0x7c00) == 0x7c00) bits |= 0x7f800000u;
  bits |= uint32_t(h & 0x8000) << 16;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float bfloat_to_float(uint16_t h) {
  const uint32_t bits = uint32_t(h) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline double fused(double x, double y, double sum) {
#if defined(__FP_FAST_FMA)
  return __builtin_fma(x, y, sum);
#else
  return x * y + sum;
#endif
}
inline Lanes zero() { GLOSS_EACH(0); }
inline Lanes load_double(const double* x) { GLOSS_EACH(x[l]); }
inline Lanes load_float(const float* x) { GLOSS_EACH(x[l]); }
inline Lanes load_half(const uint16_t* x) { GLOSS_EACH(half_to_float(x[l])); }
inline Lanes load_bfloat(const uint16_t* x) { GLOSS_EACH(bfloat_to_float(x[l])); }
inline Lanes mul(Lanes x, double s) { GLOSS_EACH(x.v[l] * s); }
inline Lanes broadcast(double x) { GLOSS_EACH(x); }
inline Lanes add(Lanes x, Lanes y) { GLOSS_EACH(x.v[l] + y.v[l]); }
inline Lanes sub(Lanes x, Lanes y) { GLOSS_EACH(x.v[l] - y.v[l]); }
inline Lanes mac(Lanes x, Lanes y, Lanes sum) { GLOSS_EACH(fused(x.v[l], y.v[l], sum.v[l])); }
#undef GLOSS_EACH
inline void store_double(Lanes x, double* out) {
  for (int l = 0; l < 16; ++l) out[l] = x.v[l];
}
inline void store_float(Lanes x, float* out) {
  for (int l = 0; l < 16; ++l) out[l] = float(x.v[l]);
}
inline double sum(Lanes x) {
  for (int width = 8; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) x.v[l] += x.v[l + width];
  return x.v[0];
}

#endif

// One reader a dtype: 16 elements from element c on; the last few are padded with zeros.
struct DoubleReader {
  using Element = double;
  static Lanes load(const Element* x) { return load_double(x); }
};
struct FloatReader {
  using Element = float;
  static Lanes load(const Element* x) { return load_float(x); }
};
struct HalfReader {
  using Element = uint16_t;
  static Lanes load(const Element* x) { return load_half(x); }
};
struct BfloatReader {
  using Element = uint16_t;
  static Lanes load(const Element* x) { return load_bfloat(x); }
};
template <class Reader>
inline Lanes load_tail(const typename Reader::Element* x, int64_t count) {
  typename Reader::Element padded[16] = {};
  for (int64_t l = 0; l < count; ++l) padded[l] = x[l];
  return Reader::load(padded);
}

// Rows are taken in no order: fetch the next one while this one is worked on.
template <class Element>
inline void prefetch_row(const Element* x, int64_t cols) {
  const char* bytes = reinterpret_cast<const char*>(x);
  for (int64_t b = 0; b < cols * int64_t(sizeof(Element)); b += 64) __builtin_prefetch(bytes + b);
}

// Calls body(c, 16 elements from c on) over a row.
template <class Reader, class Body>
inline void each_16(const typename Reader::Element* x, int64_t cols, Body body) {
  int64_t c = 0;
  for (; c + 16 <= cols; c += 16) body(c, Reader::load(x + c));
  if (c < cols) body(c, load_tail<Reader>(x + c, cols - c));
}

}  // namespace
}  // namespace gloss::cpu::GLOSS_ISA
