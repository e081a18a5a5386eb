#include "kernels.h"

#include <type_traits>

namespace gloss::cpu {

template <class T>
const PanelKernels<T>& panel_kernels() {
#define GLOSS_PICK(isa)                                              \
  do {                                                               \
    if constexpr (std::is_same_v<T, float>) return isa::panel_f32;    \
    else return isa::panel_f64;                                      \
  } while (false)
  switch (isa()) {
#if defined(GLOSS_X86_SIMD)
    case Isa::avx512bf16: GLOSS_PICK(avx512bf16);
    case Isa::avx512: GLOSS_PICK(avx512);
    case Isa::avx2: GLOSS_PICK(avx2);
#endif
    default: GLOSS_PICK(generic);
  }
}

template const PanelKernels<float>& panel_kernels<float>();
template const PanelKernels<double>& panel_kernels<double>();

}  // namespace gloss::cpu
