// Qualifiers, dim3 and the vector types.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ GLOSS_SHARED_declares_shared_memory  // cuda/common.cuh: so that the emulator counts and poisons it
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define GLOSS_VECTOR2(name, T, bytes)                   \
  struct alignas(bytes) name { T x, y; };               \
  inline name make_##name(T x, T y) { return {x, y}; }
#define GLOSS_VECTOR4(name, T, bytes)                   \
  struct alignas(bytes) name { T x, y, z, w; };         \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
GLOSS_VECTOR2(int2, int, 8)
GLOSS_VECTOR2(uint2, unsigned, 8)
GLOSS_VECTOR2(float2, float, 8)
GLOSS_VECTOR2(double2, double, 16)
GLOSS_VECTOR2(longlong2, long long, 16)
GLOSS_VECTOR4(int4, int, 16)
GLOSS_VECTOR4(uint4, unsigned, 16)
GLOSS_VECTOR4(float4, float, 16)
#undef GLOSS_VECTOR2
#undef GLOSS_VECTOR4
