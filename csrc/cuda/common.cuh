// Shared by all CUDA files: errors, the device guard, launches, warp sums.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "gloss_cuda.h"

namespace gloss::cuda {

// Turns a CUDA error into an exception that names what was tried.
inline void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // not sticky: the next call starts clean
  throw std::runtime_error("CUDA: " + what + ": " + cudaGetErrorString(status));
}

// Makes `device` current for the life of the guard.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")");
  }
  ~DeviceGuard() { (void)cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// Dynamic shared memory as T*, aligned to 16 bytes.
#if defined(GLOSS_EMULATE)
#define GLOSS_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(::emulator::block.shared)
#else
#define GLOSS_DYNAMIC_SHARED(T, name)                                \
  extern __shared__ __align__(16) unsigned char gloss_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(gloss_dynamic_shared)
#endif

// kernel<<<grid, block, shared, stream>>>(arguments...), with errors as exceptions.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, void* stream, A&&... arguments) {
  if (shared > (48u << 10))
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
          std::to_string(shared) + " bytes of shared memory");
#if defined(GLOSS_EMULATE)
  (void)stream;
  ::emulator::last_error = ::emulator::launch_problem(reinterpret_cast<const void*>(kernel), grid, block, shared);
  if (::emulator::last_error == cudaSuccess)
    ::emulator::launch(grid, block, shared, [&] { kernel(static_cast<P>(arguments)...); });
#else
  kernel<<<grid, block, shared, static_cast<cudaStream_t>(stream)>>>(static_cast<P>(arguments)...);
#endif
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess)
    check(status, "launch of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                      std::to_string(grid.z) + " blocks of " + std::to_string(block.x) + " threads");
}

__device__ inline double warp_sum(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

}  // namespace gloss::cuda
