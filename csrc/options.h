// Options that are chosen by name: each is an enum with a table of names beside it, and `option_named` is the only way
// from a name to a value.
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>

// A formula that C++ and CUDA share.
#if defined(__CUDACC__)
#define GLOSS_HOST_DEVICE __host__ __device__
#else
#define GLOSS_HOST_DEVICE
#endif

namespace gloss {

// A row this short has gradient 0, as a zero row: it grows as 1 / |x| and must not overflow (gloss_kernels/_math.py).
template <class T>
constexpr double kLargestInverseNorm = sizeof(T) == 8 ? 1e280 : 1e32;

// The value of `names` that is called `name`; names[i] belongs to Option(i).
template <class Option, size_t N>
Option option_named(const char* argument, const std::string& name, const char* const (&names)[N]) {
  std::string known;
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return Option(i);
    known += (i ? ", '" : "'") + std::string(names[i]) + "'";
  }
  throw std::invalid_argument(std::string(argument) + " must be one of " + known + ", got '" + name + "'");
}

}  // namespace gloss
