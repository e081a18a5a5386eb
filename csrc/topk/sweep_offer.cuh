// The end of a tile: its products against the thresholds of its rows and columns.
//
// Of 128 products a thread, in 8 rows and 16 columns, it takes the largest of each row and of each column: a product
// enters two maxima of three numbers at a time (one instruction from capability 9.0 on), 128 in all, and 24 comparisons
// follow. A vote of the warp ends the matter for about half of the warps (a tile has 2 hits at 10^6 documents, 12 over
// all waves). Else the rows and columns that have a hit in some lane come one by one: their products go to shared
// memory, so that the rare code exists once, and each lane that has a hit queues its own. Another tile is multiplied
// while the queue is emptied (drain), all threads at once: the latency of the counters in global memory, about 800
// cycles, is paid by nobody.
#pragma once
#include <climits>

#include "topk/sweep_tiles.cuh"

namespace gloss::cuda {

constexpr int kQueue = 1024;  // hits of a tile; a fuller tile appends the others itself
constexpr int kRowGroups = 8, kColumnGroups = 16;
constexpr int kScratch = kRowGroups * 32;  // float2 of a warp: a lane's products of one row, or of one column
constexpr float kScale = kUnit * kUnit;    // of products

using Sums = float[4][8][4];  // [16 rows][8 columns][fragment]

// Behind the stages in shared memory.
struct Desk {
  float threshold[kTileRows + kBlock];  // of the tile's rows, of its columns (raw: 1 / |x| of the columns)
  int bound[kTileRows + kBlock];        // see bound_of()
  Key keys[kQueue];                     // the queue: an entry, and the list that it goes to
  unsigned lists[kQueue];
  unsigned queued;  // hits so far, of all tiles
  Tile turns[kTurns];
};

// Positive floats are in order as integers. A threshold that is not positive lets everything pass: the exact
// comparison comes after.
__device__ inline int bound_of(float threshold) {
  return threshold > 0 ? __float_as_int(threshold * kScale) : INT_MIN;
}

__device__ inline void write_entry(const Lists& lists, unsigned list, int place, Key key) {
  if (place < lists.capacity) lists.entries[int64_t(list) * lists.capacity + place] = key;
}

// The queue of the tile before, by all threads between two barriers. The first hit of a thread is left to finish():
// its place is on the way. `drained`: hits before this tile. Returns the place, -1 for no hit.
__device__ inline int drain(const Lists& lists, const Desk& desk, unsigned& drained) {
  const unsigned queued = min(desk.queued - drained, unsigned(kQueue));
  drained = desk.queued;
#pragma unroll 1
  for (unsigned e = threadIdx.x + kThreads; e < queued; e += kThreads)
    write_entry(lists, desk.lists[e], atomicAdd(&lists.count[desk.lists[e]], 1), desk.keys[e]);
  return threadIdx.x < queued ? atomicAdd(&lists.count[desk.lists[threadIdx.x]], 1) : -1;
}
__device__ inline void finish(const Lists& lists, const Desk& desk, int place) {
  if (place >= 0) write_entry(lists, desk.lists[threadIdx.x], place, desk.keys[threadIdx.x]);
}

// scratch[p * 32] <- two products a time: columns 2 p and 2 p + 1 of a row, or row p of a column and of its neighbour.
// `group`: a bit. Compared as a number it would index the sums, which then lie in local memory.
template <bool kBoth>
__device__ __forceinline__ void spread(const Sums& sums, unsigned group, float2* scratch) {
  const auto pair = [&](int r, int j) { return make_float2(sums[r / 2][j][r % 2 * 2], sums[r / 2][j][r % 2 * 2 + 1]); };
  if (!kBoth || group < 1u << kRowGroups) {
#pragma unroll
    for (int r = 0; r < kRowGroups; ++r)
      if (group & 1u << r)
#pragma unroll
        for (int j = 0; j < 8; ++j) scratch[j * 32] = pair(r, j);
  } else {
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (group & 3u << (kRowGroups + 2 * j))
#pragma unroll
        for (int r = 0; r < 8; ++r) scratch[r * 32] = pair(r, j);
  }
}

// Queues what reaches the threshold of a list: the row or column of this lane that `scratch` holds. Product e, a bit of
// `products`, is with position other + e / 2 * 8 + e % 2 * odd.
__device__ inline void queue_hits(const Sweep& s, Desk& desk, unsigned drained, const float2* scratch,
                                  unsigned products, float threshold, unsigned list, unsigned other, unsigned odd) {
  const float least = threshold * kScale;
  unsigned hits = 0;
#pragma unroll
  for (int p = 0; p < 8; ++p) {
    const float2 two = scratch[p * 32];
    hits |= unsigned(two.x >= least) << (2 * p) | unsigned(two.y >= least) << (2 * p + 1);
  }
  hits &= products;
  const auto position = [&](int e) { return other + unsigned(e / 2) * 8 + unsigned(e % 2) * odd; };
  if (least <= 0)  // padding, whose products are 0, is told from rows
#pragma unroll 1
    for (int e = 0; e < 16; ++e) {
      const int64_t block = position(e) / kBlock;
      if (s.corpus.first(block) + position(e) % kBlock >= s.corpus.first(block + 1)) hits &= ~(1u << e);
    }
  if (!hits) return;
  const unsigned number = unsigned(__popc(int(hits)));
  unsigned at = atomicAdd(&desk.queued, number) - drained;
  const unsigned beyond = at + number > kQueue ? min(number, at + number - kQueue) : 0;
  int place = beyond ? atomicAdd(&s.lists.count[list], int(beyond)) : 0;
#pragma unroll 1
  for (; hits; hits &= hits - 1, ++at) {
    const int e = __ffs(int(hits)) - 1;
    const float2 two = scratch[e / 2 * 32];
    const Key key = order_key((e % 2 ? two.y : two.x) / kScale, position(e));
    if (at < kQueue) {
      desk.keys[at] = key;
      desk.lists[at] = list;
    } else {
      write_entry(s.lists, list, place++, key);
    }
  }
}

// Offers the products of a tile to its rows, and to its columns where kBoth. scratch: of this lane.
template <bool kBoth>
__device__ __forceinline__ void offer(const Sweep& s, const Sums& sums, Desk& desk, Tile tile, unsigned drained,
                                      float2* scratch, int warp_row, int warp_column, int lane) {
  constexpr int kGroups = kRowGroups + (kBoth ? kColumnGroups : 0);
  const int first_row = warp_row + lane / 4, first_column = warp_column + lane % 4 * 2;
  int largest[kGroups], bound[kGroups];
#pragma unroll
  for (int r = 0; r < kRowGroups; ++r) {
    const auto of = [&](int c) { return __float_as_int(sums[r / 2][c / 2][r % 2 * 2 + c % 2]); };
    largest[r] = of(0);
#pragma unroll
    for (int c = 1; c < 15; c += 2) largest[r] = __vimax3_s32(largest[r], of(c), of(c + 1));
    largest[r] = max(largest[r], of(15));
    bound[r] = desk.bound[first_row + r * 8];
  }
  if constexpr (kBoth)
#pragma unroll
    for (int c = 0; c < kColumnGroups; ++c) {
      const auto of = [&](int r) { return __float_as_int(sums[r / 2][c / 2][r % 2 * 2 + c % 2]); };
      int& most = largest[kRowGroups + c];
      most = max(of(0), of(1));
#pragma unroll
      for (int r = 2; r < 8; r += 2) most = __vimax3_s32(most, of(r), of(r + 1));
      bound[kRowGroups + c] = desk.bound[kTileRows + first_column + c / 2 * 8 + c % 2];
    }
  bool any = false;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) any = any || largest[g] >= bound[g];
  if (!__any_sync(0xffffffffu, any)) return;

  unsigned mine = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) mine |= unsigned(largest[g] >= bound[g]) << g;
  const unsigned row = unsigned(tile.row) * kTileRows + unsigned(first_row);
  const unsigned column = unsigned(tile.column) * kBlock + unsigned(first_column);
#pragma unroll 1
  for (unsigned left = __reduce_or_sync(0xffffffffu, mine); left; left &= left - 1) {
    const unsigned bit = left & (0u - left);
    if (!(mine & bit)) continue;
    spread<kBoth>(sums, bit, scratch);
    const int group = __ffs(int(bit)) - 1;
    const bool of_row = !kBoth || group < kRowGroups;
    const int c = group - kRowGroups, offset = of_row ? group * 8 : c / 2 * 8 + c % 2;
    queue_hits(s, desk, drained, scratch, of_row ? 0xffffu : 0x5555u << c % 2,
               desk.threshold[of_row ? first_row + offset : kTileRows + first_column + offset],
               (of_row ? row : column) + unsigned(offset), of_row ? column : row, of_row ? 1 : 0);
  }
}

struct alignas(16) TwoKeys {
  Key keys[2];
};

// Stores all products of a tile. Nobody stands for padding, for the row itself, and for what is not finite.
__device__ inline void store(const Sweep& s, const Sums& sums, Tile tile, int warp_row, int warp_column, int lane) {
  const auto count_of = [](const Packed& packed, int block) {
    return int(packed.first(block + 1) - packed.first(block));
  };
  const int rows = count_of(s.queries, tile.row / 2), columns = count_of(s.corpus, tile.column);
  const int first_row = tile.row % 2 * kTileRows + warp_row + lane / 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + i * 16 + half * 8;
      if (row >= rows) continue;
      const unsigned position = unsigned(tile.row / 2) * kBlock + unsigned(row);
      Key* to = s.lists.entries + int64_t(position) * s.lists.capacity + int64_t(tile.slot) * kBlock;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int column = warp_column + j * 8 + lane % 4 * 2;
        TwoKeys two;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const float value = sums[i][j][half * 2 + side];
          const unsigned other = unsigned(tile.column) * kBlock + unsigned(column + side);
          const bool itself = s.self && s.exclude_self && other == position;
          two.keys[side] = column + side < columns && value == value && !itself ? order_key(value / kScale, other)
                                                                                : kNobody;
        }
        *reinterpret_cast<TwoKeys*>(to + column) = two;
      }
    }
  }
}

}  // namespace gloss::cuda
