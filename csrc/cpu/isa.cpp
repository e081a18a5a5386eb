#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace gloss::cpu {
namespace {

Isa detect() {
#if defined(GLOSS_X86_SIMD)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::generic;
}

Isa choose() {
  const Isa best = detect();
  const char* wanted = std::getenv("GLOSS_KERNELS_ISA");
  if (!wanted || !*wanted) return best;
  for (Isa candidate : {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (std::strcmp(wanted, isa_name(candidate)) != 0) continue;
    if (candidate <= best) return candidate;
    throw std::invalid_argument(std::string("GLOSS_KERNELS_ISA=") + wanted + " cannot run here: the widest set is " +
                                isa_name(best));
  }
  throw std::invalid_argument(std::string("GLOSS_KERNELS_ISA=") + wanted +
                              " is unknown: use generic, avx2, avx512 or avx512bf16");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa which) {
  switch (which) {
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512bf16: return "avx512bf16";
    default: return "generic";
  }
}

}  // namespace gloss::cpu
