#pragma once
#include "half_types.h"

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float x) : bits(emulator::half_bits(x)) {}
  operator float() const { return emulator::half_value(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};
inline float __half2float(__half x) { return float(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half __float2half(float x) { return __half(x); }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
