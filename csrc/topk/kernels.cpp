#include "kernels.h"

namespace gloss::cpu {

const Kernels& kernels() {
#define GLOSS_TOPK_TABLE(set, bf16) \
  { set::pack_group, set::pack_tiles, set::sweep_f32, bf16, set::load_row, set::dots, set::add_rows, set::kth_value }
  static const Kernels base = GLOSS_TOPK_TABLE(generic, nullptr);
#if defined(GLOSS_X86_SIMD)
  static const Kernels with_avx2 = GLOSS_TOPK_TABLE(avx2, nullptr);
  static const Kernels with_avx512 = GLOSS_TOPK_TABLE(avx512, nullptr);
  static const Kernels with_bf16 = GLOSS_TOPK_TABLE(avx512bf16, avx512bf16::sweep_bf16);
  switch (isa()) {
    case Isa::avx2: return with_avx2;
    case Isa::avx512: return with_avx512;
    case Isa::avx512bf16: return with_bf16;
    default: break;
  }
#endif
#undef GLOSS_TOPK_TABLE
  return base;
}

}  // namespace gloss::cpu
