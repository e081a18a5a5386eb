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

DenseProduct dense_product_kernel() {
  switch (isa()) {
#if defined(GLOSS_X86_SIMD)
    case Isa::avx512bf16: return avx512bf16::dense_product;
    case Isa::avx512: return avx512::dense_product;
    case Isa::avx2: return avx2::dense_product;
#endif
    default: return generic::dense_product;
  }
}

}  // namespace gloss::cpu
