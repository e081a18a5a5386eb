// Run-time choice of the instruction set. Files named *_simd.cpp are compiled once per set, with GLOSS_ISA naming the
// namespace of that copy; the rest of the core is compiled for the base architecture and calls through Isa.
//
// A *_simd.cpp file includes no C++ standard library header that instantiates inline functions (<vector>,
// <algorithm>, ...): the linker would be free to keep the copy with the widest instructions for everyone.
#pragma once

namespace gloss::cpu {

enum class Isa { generic, avx2, avx512, avx512bf16 };

// The widest set that this processor has and this build contains. GLOSS_KERNELS_ISA=generic|avx2|avx512|avx512bf16
// lowers it (read once; a name that is unknown or cannot run here throws std::invalid_argument).
Isa isa();
const char* isa_name(Isa);

}  // namespace gloss::cpu
