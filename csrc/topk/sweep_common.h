// What the two sweeps share: the size of blocks, a thread's workspace, and the way from survivors to lists.
#pragma once
#include <algorithm>

#include "sweep.h"

namespace gloss::cpu {

constexpr int64_t kMaxBlock = 384;  // rows whose tiles stay in L2 while columns pass

// 300 KB of tiles leave room in a 1 MB (512 KB: just) L2 for the panels that stream through.
inline int64_t block_rows(int64_t steps) {
  const int64_t rows = (int64_t(300) << 10) / (4 * std::max<int64_t>(steps, 1)) / 48 * 48;
  return std::clamp<int64_t>(rows, 48, kMaxBlock);
}

struct TileKernel {
  TileKernel(Format format, int64_t steps, Meter& meter)
      : sweep(format == Format::bf16 ? kernels().sweep_bf16 : kernels().sweep_f32), steps(steps),
        survivors(kMaxBlock * kGroup, &meter) {}

  // Runs block x group; the survivors lie in `survivors`.
  int64_t operator()(const uint32_t* tiles, int64_t rows, const uint32_t* group) {
    return sweep(tiles, (rows + kTileRows - 1) / kTileRows, group, steps, row_thresholds, column_thresholds,
                 survivors.get());
  }

  decltype(Kernels::sweep_f32) sweep;
  int64_t steps;
  Buffer<Survivor> survivors;
  alignas(64) float row_thresholds[kMaxBlock + kGroup];
  alignas(64) float column_thresholds[kGroup];
};

// Adds survivors to the lists of their rows. index(column) is the corpus row of a column of the group.
template <class Index>
void add_to_rows(Candidates& candidates, const Survivor* survivors, int64_t count, int64_t first_row,
                 Index index) {
  std::unique_lock<std::mutex> hold;
  int64_t locked = -1;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t row = first_row + survivors[s].row;
    if (row / kGroup != locked) {
      if (hold) hold.unlock();
      hold = std::unique_lock<std::mutex>(candidates.lock(row));
      locked = row / kGroup;
    }
    candidates.add(row, survivors[s].value, index(survivors[s].column));
  }
}

}  // namespace gloss::cpu
