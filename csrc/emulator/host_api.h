// The part of the CUDA runtime that the host code calls: two devices that are one, work done when the call returns or
// kept where its stream is captured.
#pragma once
#include <map>
#include <utility>

#include "capture.h"
#include "driver.h"
#include "fibers.h"

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorStreamCaptureUnsupported = 900,
};
using cudaStream_t = CUstream_st*;
using cudaEvent_t = int;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
constexpr unsigned cudaEventDisableTiming = 2;
constexpr unsigned cudaHostAllocDefault = 0;

namespace emulator {
inline cudaError_t last_error = cudaSuccess;
inline int current_device = 0;
inline int device_switches = 0;                       // calls of cudaSetDevice: each makes a context on a GPU
inline std::map<const void*, size_t> shared_opted_in;  // dynamic bytes, by kernel

inline size_t opted_in(const void* kernel) {
  const auto found = shared_opted_in.find(kernel);
  return found == shared_opted_in.end() ? 0 : found->second;
}

inline cudaError_t launch_problem(const void* kernel, dim3 grid, dim3 size, size_t shared) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  const uint64_t threads = uint64_t(size.x) * size.y * size.z;
  if (threads == 0 || threads > 1024 || size.z > 64) return cudaErrorInvalidConfiguration;
  const size_t asked = opted_in(kernel);
  return shared > (asked ? asked : kDefaultShared) ? cudaErrorInvalidValue : cudaSuccess;
}

// kernel<<<grid, size, shared, stream>>>; `body` is what one thread does. What the kernel declares in shared memory is
// known once it runs (fibers.h: declare_shared), the rest is checked here.
template <class Body>
void launch(const void* kernel, dim3 grid, dim3 size, size_t shared, CUstream_st* stream, Body body) {
  last_error = launch_problem(kernel, grid, size, shared);
  if (last_error != cudaSuccess) return;
  const size_t asked = opted_in(kernel);
  submit(stream, [=] { run_grid(grid, size, shared, asked, body); });
}

// For calls that wait for the device or change its memory: an error while any stream is captured.
inline cudaError_t unless_captured() {
  return capture.on ? last_error = cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
}  // namespace emulator

inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    default: return "unknown error";
  }
}
inline cudaError_t cudaGetDevice(int* device) { return *device = emulator::current_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  ++emulator::device_switches;
  if (device < 0 || device > 1) return emulator::last_error = cudaErrorInvalidDevice;
  return emulator::current_device = device, cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 2, cudaError_t(emulator::driver.count_error); }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = emulator::driver.version, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
struct cudaFuncAttributes {};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  const bool asked = emulator::current_device == emulator::driver.kernel_device;
  return cudaError_t(asked ? emulator::driver.kernel_error : 0);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(emulator::kSharedBytes); break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
  }
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || size_t(bytes) > emulator::kSharedBytes) return emulator::last_error = cudaErrorInvalidValue;
  emulator::shared_opted_in[kernel] = size_t(bytes);
  return cudaSuccess;
}
// No bytes: the addresses may be null, which CUDA takes and C does not.
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  return emulator::submit(stream, [=] { if (bytes) std::memset(at, value, bytes); }), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return emulator::submit(stream, [=] { if (bytes) std::memcpy(to, from, bytes); }), cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned) {
  if (const cudaError_t error = emulator::unless_captured(); error != cudaSuccess) return error;
  return *at = std::malloc(bytes), cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = emulator::is_captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return emulator::unless_captured(); }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = 1, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return emulator::unless_captured(); }
