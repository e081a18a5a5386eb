// Shared by all CUDA files: errors, the device guard, launches, warp sums.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "gloss_cuda.h"

namespace gloss::cuda {

// Turns a CUDA error into an exception that names what was tried.
inline void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // not sticky: the next call starts clean
  throw std::runtime_error("CUDA: " + what + ": " + cudaGetErrorString(status));
}

// Makes `device` current for the life of the guard. Where it is current already nothing is set: cudaSetDevice makes a
// context, some 500 MB, on the device that it names.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = device != before_;
    if (changed_) check(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")");
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Dynamic shared memory as T*, aligned to 16 bytes.
// GLOSS_SHARED(T, name, extents) is __shared__ T name extents; the emulator counts and poisons it.
#if defined(GLOSS_EMULATE)
#define GLOSS_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(::emulator::block.shared)
#define GLOSS_SHARED(T, name, ...) \
  static T name __VA_ARGS__;       \
  ::emulator::declare_shared(&name, sizeof(name))
#else
#define GLOSS_DYNAMIC_SHARED(T, name)                                \
  extern __shared__ __align__(16) unsigned char gloss_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(gloss_dynamic_shared)
#define GLOSS_SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#endif

// Opts `kernel` in to `bytes` of dynamic shared memory on the current device. Without that it gets 48 KB less what it
// declares itself; with it nobody has to know how much that is. Never lowered, so that a thread with small shapes takes
// nothing from another's launch; and remembered, so that a launch costs a look-up, not a call of the driver.
inline void allow_shared(const void* kernel, size_t bytes) {
  static std::mutex lock;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard<std::mutex> locked(lock);
  size_t& now = allowed[{kernel, device}];
  if (bytes <= now) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
        std::to_string(bytes) + " bytes of shared memory");
  now = bytes;
}

// kernel<<<grid, block, shared, stream>>>(arguments...), with errors as exceptions.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, void* stream, A&&... arguments) {
  if (shared > 0) allow_shared(reinterpret_cast<const void*>(kernel), shared);
#if defined(GLOSS_EMULATE)
  ::emulator::launch(reinterpret_cast<const void*>(kernel), grid, block, shared, static_cast<cudaStream_t>(stream),
                     [=] { kernel(static_cast<P>(arguments)...); });
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
