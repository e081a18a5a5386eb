// Row normalisation and cast, the first step of topk on the GPU (gloss.h: cuda::normalize_rows).
#include "cuda/common.cuh"

namespace gloss::cuda {
namespace {

constexpr int kWarps = 4;  // a block; one warp a row, so d up to a few thousand needs no shared memory

// Bytes: reads each row three times, of which the second and third come from L1/L2. Bound by memory: n d (in + out).
template <class In, class Out>
__global__ void __launch_bounds__(32 * kWarps)
normalize_rows_kernel(const In* __restrict__ in,      // [rows, cols], row stride `stride`
                      int64_t rows, int cols, int64_t stride,
                      Out* __restrict__ out,          // [rows, cols]
                      float* __restrict__ norms,      // [rows] or null
                      float* __restrict__ residuals)  // [rows] or null
{
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  const In* x = in + row * stride;
  Out* y = out + row * cols;

  // Scaled by the power of two below the largest entry: squares neither overflow nor vanish.
  float largest = 0;
  for (int c = lane; c < cols; c += 32) largest = fmaxf(largest, fabsf(to_float(x[c])));
  largest = warp_max(largest);
  const float scale = largest > 0 ? exp2f(-fminf(fmaxf(floorf(log2f(largest)), -126.f), 126.f)) : 0.f;

  float squared = 0;
  for (int c = lane; c < cols; c += 32) {
    const float v = to_float(x[c]) * scale;
    squared = fmaf(v, v, squared);
  }
  squared = warp_sum(squared);
  const float length = sqrtf(squared);
  const float inverse = length > 0 ? 1 / length : 0.f;

  float lost = 0;
  for (int c = lane; c < cols; c += 32) {
    const float u = to_float(x[c]) * scale * inverse;
    const Out q = from_float<Out>(u);
    y[c] = q;
    const float r = u - to_float(q);
    lost = fmaf(r, r, lost);
  }
  lost = warp_sum(lost);
  if (lane == 0) {
    if (norms) norms[row] = largest > 0 ? length / scale : 0.f;
    if (residuals) residuals[row] = sqrtf(lost) * (1 + 1e-5f) + 2e-7f;  // up: rounding of this sum, and of u itself
  }
}

template <class In, class Out>
void run(MatrixView in, void* out, float* norms, float* residuals, Queue queue) {
  launch(normalize_rows_kernel<In, Out>, unsigned((in.rows + kWarps - 1) / kWarps), 32 * kWarps, 0, queue.stream,
         static_cast<const In*>(in.data), in.rows, int(in.cols), in.stride, static_cast<Out*>(out), norms, residuals);
}

template <class In>
void run_to(MatrixView in, void* out, DType out_dtype, float* norms, float* residuals, Queue queue) {
  switch (out_dtype) {
    case DType::f32: return run<In, float>(in, out, norms, residuals, queue);
    case DType::f16: return run<In, __half>(in, out, norms, residuals, queue);
    case DType::bf16: return run<In, __nv_bfloat16>(in, out, norms, residuals, queue);
    default: throw std::invalid_argument("out: wants float32, float16 or bfloat16");
  }
}

}  // namespace

void normalize_rows(MatrixView in, void* out, DType out_dtype, float* norms, float* residuals, Queue queue) {
  if (in.rows == 0) return;
  const DeviceGuard guard(queue.device);
  switch (in.dtype) {
    case DType::f32: return run_to<float>(in, out, out_dtype, norms, residuals, queue);
    case DType::f16: return run_to<__half>(in, out, out_dtype, norms, residuals, queue);
    case DType::bf16: return run_to<__nv_bfloat16>(in, out, out_dtype, norms, residuals, queue);
    default: throw std::invalid_argument("in: wants float32, float16 or bfloat16");
  }
}

}  // namespace gloss::cuda
