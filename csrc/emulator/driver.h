// What a machine without a fitting driver or GPU would answer, set by tests (bindings_cuda.cpp: pretend).
#pragma once

namespace emulator {
struct Driver {
  int version = 13000;
  int count_error = 0;   // of cudaGetDeviceCount
  int kernel_error = 0;  // of cudaFuncGetAttributes on kernel_device
  int kernel_device = 0;
};
inline Driver driver;
}  // namespace emulator
