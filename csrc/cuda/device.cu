// What the machine offers (gloss.h: cuda::problem).
#include "cuda/common.cuh"

namespace gloss::cuda {

std::string problem() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return "";
  (void)cudaGetLastError();
  if (status == cudaErrorInsufficientDriver) return "there is no NVIDIA driver, or one older than this build needs";
  return status == cudaSuccess ? "no GPU is visible" : cudaGetErrorString(status);
}

}  // namespace gloss::cuda
