// What the machine offers (gloss_cuda.h: problem).
#include "cuda/common.cuh"

namespace gloss::cuda {
namespace {

// Compiled for the architectures that every kernel is compiled for.
__global__ void probe_kernel() {}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

std::string problem(int device) {
  int count = 0, driver = 0, runtime = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver);  // 0: there is none
    (void)cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return "there is no NVIDIA driver";
    return "the NVIDIA driver supports CUDA " + version(driver) + ", and this build needs " + version(runtime);
  }
  if (status == cudaSuccess && device >= count)
    return count == 0 ? "no GPU is visible" : "there is no GPU " + std::to_string(device);
  int before = 0;
  if (status == cudaSuccess) status = cudaGetDevice(&before);
  if (status == cudaSuccess && before != device) status = cudaSetDevice(device);
  if (status == cudaSuccess) {
    cudaFuncAttributes attributes;
    status = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel));
    if (before != device) (void)cudaSetDevice(before);
  }
  if (status == cudaSuccess) return "";
  (void)cudaGetLastError();
  if (status == cudaErrorNoKernelImageForDevice) return "it holds no code for the architecture of GPU " + std::to_string(device);
  return cudaGetErrorString(status);
}

}  // namespace gloss::cuda
