// What the top-k kernels share: reading rows of any dtype, order keys, cosines.
#pragma once
#include <type_traits>

#include "cuda/common.cuh"
#include "cuda/sort.cuh"
#include "cuda/workspace.cuh"

namespace gloss::cuda {

// Unsigned integers in the order of the floats, largest float first: ascending keys are descending values.
__device__ inline unsigned descending(float value) {
  const unsigned bits = __float_as_uint(value);
  return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}
__device__ inline float from_descending(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key : 0x7fffffffu - key);
}
__device__ inline unsigned long long descending(double value) {
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(value));
  return bits >> 63 ? bits : 0x7fffffffffffffffull - bits;
}
__device__ inline double from_descending(unsigned long long key) {
  return __longlong_as_double(static_cast<long long>(key >> 63 ? key : 0x7fffffffffffffffull - key));
}
__device__ inline Key order_key(float value, unsigned index) { return Key(descending(value)) << 32 | index; }
__device__ inline float key_value(Key key) { return from_descending(unsigned(key >> 32)); }
__device__ inline unsigned key_index(Key key) { return unsigned(key); }

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ inline T from_float(float x) {
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(x);
  else return __float2bfloat16_rn(x);
}
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

__device__ inline double to_double(double x) { return x; }
__device__ inline double to_double(float x) { return x; }
__device__ inline double to_double(__half x) { return __half2float(x); }
__device__ inline double to_double(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class In>
struct Rows {
  const In* data;
  int64_t rows, stride;
  int cols;
  __device__ const In* row(int64_t i) const { return data + i * stride; }
};
template <class In>
Rows<In> rows_of(MatrixView m) {
  return {static_cast<const In*>(m.data), m.rows, m.stride, int(m.cols)};
}

// f(In{}) for the dtype of a matrix.
template <class F>
void by_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64: return f(double{});
    case DType::f32: return f(float{});
    case DType::f16: return f(__half{});
    case DType::bf16: return f(__nv_bfloat16{});
  }
}

// 1 / |x| by the lanes of a warp, 0 for a zero row and one that is too short for 1 / |x| to be a double, NaN for a row
// that is not finite. Entries are first scaled by a power of two, so that squares of doubles neither overflow nor vanish.
template <class In>
__device__ inline double inverse_norm(const In* x, int cols, int lane) {
  double largest = 0;
  bool finite = true;
  for (int c = lane; c < cols; c += 32) {
    const double size = fabs(to_double(x[c]));
    finite = finite && size <= 1.7976931348623157e308;
    largest = fmax(largest, size);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  if (!__all_sync(0xffffffffu, finite)) return NAN;
  if (!(largest > 0)) return 0;
  const double scale = exp2(-fmin(fmax(floor(log2(largest)), -1000.0), 1000.0));
  double squares = 0;
  for (int c = lane; c < cols; c += 32) {
    const double v = to_double(x[c]) * scale;
    squares += v * v;
  }
  const double inverse = scale / sqrt(warp_sum(squares));
  return inverse <= 1.7976931348623157e308 ? inverse : 0;
}

// x = x' / power with |x'| near 1: products of such rows stay in range. cosine = (x' . y') rest_x rest_y. Cosines are
// summed in double, so that all backends round the same numbers.
struct Scaling {
  double power;  // a power of two
  double rest;   // in 0.5 .. 1 but for rows at the end of the range; 0 for a zero row, NaN for one that is not finite
};
__device__ inline Scaling scaling(double inverse) {
  if (!(inverse > 0)) return {0, inverse};
  const int exponent = int(__double_as_longlong(inverse) >> 52) - 1023;
  const double power = __longlong_as_double((long long)(min(max(exponent, -1000), 1000) + 1023) << 52);
  return {power, inverse / power};
}

// The cosine of two rows by the lanes of a warp; the order of additions is the same for (x, y) and (y, x).
template <class In>
__device__ inline double warp_cosine(const In* x, Scaling of_x, const In* y, Scaling of_y, int cols, int lane) {
  double sum = 0;
  for (int c = lane; c < cols; c += 32) sum += (to_double(x[c]) * of_x.power) * (to_double(y[c]) * of_y.power);
  return warp_sum(sum) * (of_x.rest * of_y.rest);
}

inline unsigned blocks_for(int64_t items, int a_block) { return unsigned((items + a_block - 1) / a_block); }

}  // namespace gloss::cuda
