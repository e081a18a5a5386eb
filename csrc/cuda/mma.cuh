// Tensor cores and asynchronous copies, for compute capability 8.0 and newer: PTX, or the emulator's warp-wide functions
// with the same fragments.
//
// mma_16x8x16: D[16, 8] += A[16, 16] B[16, 8], A row-major, B by columns ("row.col"), float accumulators. Lane l, with
// g = l / 4 and t = l % 4, holds (PTX ISA, "Matrix fragments for mma.m16n8k16"):
//   A  a[0]: row g,     columns 2t, 2t+1      a[1]: row g + 8, columns 2t, 2t+1
//      a[2]: row g,     columns 2t+8, 2t+9    a[3]: row g + 8, columns 2t+8, 2t+9
//   B  b[0]: rows 2t, 2t+1 of column g        b[1]: rows 2t+8, 2t+9 of column g
//   D  d[0], d[1]: row g, columns 2t, 2t+1    d[2], d[3]: row g + 8, the same columns
#pragma once
#include "cuda/common.cuh"

namespace gloss::cuda {

#if !defined(GLOSS_EMULATE)

// Four 8 x 8 matrices of 16-bit numbers: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, in shared memory)
// and receives of each matrix columns 2t, 2t+1 of row g.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (sizeof(T) == 2 && __is_same(T, __half))
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes from global to shared memory without a register; bytes past `valid` become zero.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int valid = 16) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(valid) : "memory");
}
// 4 bytes: these may be kept in L1.
__device__ __forceinline__ void cp_async_4(void* shared, const void* global) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(global) : "memory");
}
// Closes a group of copies; wait<N> returns when at most the N newest groups of this thread are under way. A barrier
// must follow before other threads read.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

namespace emulated {

inline uint64_t pointer(const void* x) { return reinterpret_cast<uint64_t>(x); }

struct Ldmatrix {
  unsigned* r;
  const uint16_t* row;
};
inline void ldmatrix_x4(::emulator::Fiber* warp, unsigned lanes) {
  if (lanes != 0xffffffffu) return ::emulator::fail("ldmatrix without all lanes of the warp");
  const auto of = [&](unsigned l) { return reinterpret_cast<const Ldmatrix*>(warp[l].value); };
  for (unsigned m = 0; m < 4; ++m)
    for (unsigned l = 0; l < 32; ++l) {
      const uint16_t* row = of(8 * m + l / 4)->row;
      if (pointer(row) % 16) return ::emulator::fail("ldmatrix: a row is not aligned to 16 bytes");
      std::memcpy(&of(l)->r[m], row + 2 * (l % 4), 4);
    }
}

template <class T>
struct Mma {
  float* d;
  const unsigned* a;
  unsigned b[2];
};
template <class T>
void mma_16x8x16(::emulator::Fiber* warp, unsigned lanes) {
  if (lanes != 0xffffffffu) return ::emulator::fail("mma without all lanes of the warp");
  const auto pair = [](unsigned bits, float* to) {
    T numbers[2];
    std::memcpy(numbers, &bits, 4);
    to[0] = float(numbers[0]), to[1] = float(numbers[1]);
  };
  float a[16][16], b[8][16];  // b by columns
  for (unsigned l = 0; l < 32; ++l) {
    const auto& lane = *reinterpret_cast<const Mma<T>*>(warp[l].value);
    const unsigned g = l / 4, t = l % 4;
    for (unsigned i = 0; i < 4; ++i) pair(lane.a[i], &a[g + 8 * (i % 2)][2 * t + 8 * (i / 2)]);
    for (unsigned i = 0; i < 2; ++i) pair(lane.b[i], &b[g][2 * t + 8 * i]);
  }
  for (unsigned l = 0; l < 32; ++l) {
    float* d = reinterpret_cast<const Mma<T>*>(warp[l].value)->d;
    for (unsigned i = 0; i < 4; ++i) {
      const float *row = a[l / 4 + 8 * (i / 2)], *column = b[2 * (l % 4) + i % 2];
      float sum = 0;
      for (unsigned k = 0; k < 16; ++k) sum += row[k] * column[k];
      d[i] += sum;
    }
  }
}

}  // namespace emulated

inline void ldmatrix_x4(unsigned (&r)[4], const void* row) {
  const emulated::Ldmatrix mine{r, static_cast<const uint16_t*>(row)};
  ::emulator::collective(emulated::ldmatrix_x4, 0xffffffffu, emulated::pointer(&mine));
}
template <class T>
void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const emulated::Mma<T> mine{d, a, {b0, b1}};
  ::emulator::collective(emulated::mma_16x8x16<T>, 0xffffffffu, emulated::pointer(&mine));
}

namespace emulated {
inline void cp_async(void* shared, const void* global, unsigned bytes, unsigned valid) {
  if (pointer(shared) % bytes || (valid > 0 && pointer(global) % bytes))
    ::emulator::stop("cp.async: not aligned to " + std::to_string(bytes) + " bytes");
  ::emulator::Fiber& me = ::emulator::self();
  std::memset(shared, 0xff, bytes);  // until it lands, nobody may count on what was there
  me.copies.push_back({shared, global, bytes, valid, me.group});
}
}  // namespace emulated
inline void cp_async_16(void* shared, const void* global, int valid = 16) {
  emulated::cp_async(shared, global, 16, unsigned(valid));
}
inline void cp_async_4(void* shared, const void* global) { emulated::cp_async(shared, global, 4, 4); }
inline void cp_async_commit() { ++::emulator::self().group; }
template <int N>
void cp_async_wait() {
  ::emulator::Fiber& me = ::emulator::self();
  auto& copies = me.copies;
  size_t landed = 0;
  for (; landed < copies.size() && copies[landed].group + N < me.group; ++landed) {
    const auto& copy = copies[landed];
    std::memcpy(copy.to, copy.from, copy.copied);
    std::memset(static_cast<char*>(copy.to) + copy.copied, 0, copy.bytes - copy.copied);
  }
  copies.erase(copies.begin(), copies.begin() + long(landed));
}

#endif

}  // namespace gloss::cuda
