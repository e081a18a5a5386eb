// The kernels of topk that exist once per instruction set, and the layouts they share.
//
// This header is included by the *_simd.cpp files, so it includes no C++ standard library header but <cstdint>.
//
// Packed rows. Unit rows are cut into `steps` words of 32 bits: one float (steps = d), or two neighbouring bf16
// (steps = (d + 1) / 2, zero padded). 64 rows make a group, stored as the kernel reads the columns of a tile:
//   group [64 / panel_columns][steps][panel_columns]
// The row side of a tile is repacked from groups, 6 rows at a time:
//   tiles [count / 6 rounded up][steps][6]
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace gloss::cpu {

constexpr int kGroup = 64;    // rows of a packed group
constexpr int kTileRows = 6;  // rows of a register tile: 6 x 64 floats fill 24 of the 32 registers of AVX-512

// The matrix as it was given. dtype as in gloss::DType: 0 f64, 1 f32, 2 f16, 3 bf16.
struct RowSource {
  const void* data;
  int32_t dtype;
  int64_t cols, stride;
  const double* scale;  // [rows] powers of two that keep squares of f64 rows in range; null for the other types
};

// An entry that reaches the threshold of its row or of its column.
struct Survivor {
  int32_t row, column;  // within the block of rows, within the group
  float value;
};

struct Kernels {
  // Packs the unit rows `ids` [count <= 64] into `group`, the rest of which becomes zero. Returns the first slot whose
  // row contains NaN or Inf, or -1. inverse_norm [count] receives 1 / |x| (0 for a zero row), residual [count] a bound of
  // |u - packed u|. scratch [16 * (cols + 16)] words.
  int (*pack_group)(const RowSource* source, const int32_t* ids, int count, bool bf16, uint32_t* group,
                    double* inverse_norm, float* residual, uint32_t* scratch);

  // Repacks `count` rows from row `first` of `groups` on. Rows up to the next multiple of 6 must exist or be past the
  // end of a group, where they read as zero.
  void (*pack_tiles)(const uint32_t* groups, int64_t first, int64_t count, int64_t steps, uint32_t* tiles);

  // All products of `tile_count` tiles with one group. Writes those with
  //   value >= row_threshold[row]  or  value >= column_threshold[column]
  // to survivors [tile_count * 6 * 64] and returns how many.
  int64_t (*sweep_f32)(const uint32_t* tiles, int64_t tile_count, const uint32_t* group, int64_t steps,
                       const float* row_threshold, const float* column_threshold, Survivor* survivors);
  int64_t (*sweep_bf16)(const uint32_t* tiles, int64_t tile_count, const uint32_t* group, int64_t steps,
                        const float* row_threshold, const float* column_threshold, Survivor* survivors);  // may be null

  // Row `id` in double, times its scale; out [cols rounded up to 16], zero padded.
  void (*load_row)(const RowSource* source, int64_t id, double* out);
  // out[q * count + c] = query q . row ids[c], in double, always in the same order of additions: symmetric to the last
  // bit. query [queries, query_stride], its rows zero padded to a multiple of 16.
  void (*dots)(const double* query, int64_t queries, int64_t query_stride, const RowSource* source,
               const int32_t* ids, int64_t count, double* out);
  // sum [cols rounded up to 16] += weight[c] * row ids[c] for c = 0, 1, ..
  void (*add_rows)(const double* weight, const RowSource* source, const int32_t* ids, int64_t count, double* sum);

  // A value that at least k of values [count] reach, and no more than k if raised by `tolerance`. 1 <= k <= count.
  float (*kth_value)(const float* values, int32_t count, int32_t k, float tolerance);
};

#define GLOSS_TOPK_DECLARE(set)                                                                                     \
  namespace set {                                                                                                   \
  int pack_group(const RowSource*, const int32_t*, int, bool, uint32_t*, double*, float*, uint32_t*);               \
  void pack_tiles(const uint32_t*, int64_t, int64_t, int64_t, uint32_t*);                                           \
  int64_t sweep_f32(const uint32_t*, int64_t, const uint32_t*, int64_t, const float*, const float*, Survivor*);     \
  int64_t sweep_bf16(const uint32_t*, int64_t, const uint32_t*, int64_t, const float*, const float*, Survivor*);    \
  void load_row(const RowSource*, int64_t, double*);                                                                \
  void dots(const double*, int64_t, int64_t, const RowSource*, const int32_t*, int64_t, double*);                   \
  void add_rows(const double*, const RowSource*, const int32_t*, int64_t, double*);                                 \
  float kth_value(const float*, int32_t, int32_t, float);                                                           \
  }
GLOSS_TOPK_DECLARE(generic)
#if defined(GLOSS_X86_SIMD)
GLOSS_TOPK_DECLARE(avx2)
GLOSS_TOPK_DECLARE(avx512)
GLOSS_TOPK_DECLARE(avx512bf16)
#endif
#undef GLOSS_TOPK_DECLARE

// The kernels for gloss::cpu::isa().
const Kernels& kernels();

}  // namespace gloss::cpu
