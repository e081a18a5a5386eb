#include "kernels.h"

namespace gloss::cpu {

const DenseKernels& dense_kernels() {
  switch (isa()) {
#if defined(GLOSS_X86_SIMD)
    case Isa::avx512bf16: return avx512bf16::dense;
    case Isa::avx512: return avx512::dense;
    case Isa::avx2: return avx2::dense;
#endif
    default: return generic::dense;
  }
}

}  // namespace gloss::cpu
