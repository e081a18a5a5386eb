// __half and __nv_bfloat16: bits, with the conversions of the hardware (to nearest, ties to even).
#pragma once
#include "types.h"

namespace emulator {

inline uint16_t half_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return uint16_t(sign | 0x7fffu);   // NaN
  if (bits >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to Inf
  if (bits < 0x38800000u) {                                  // subnormal: adding 0.5 rounds at the right bit
    float size;
    std::memcpy(&size, &bits, 4);
    size += 0.5f;
    std::memcpy(&bits, &size, 4);
    return uint16_t(sign | (bits - 0x3f000000u));
  }
  const uint32_t odd = bits >> 13 & 1u;
  return uint16_t(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}
inline float half_value(uint16_t h) {
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
inline uint16_t bfloat_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline float bfloat_value(uint16_t h) {
  const uint32_t bits = uint32_t(h) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace emulator
