// What a launch of the sweep works on: the order of its tiles, and the copies that run ahead of the multiplications.
//
// Tiles are numbered so that those in work at one time lie in a few columns of blocks (at most 8 MB), which L2 holds.
// Their coordinates take three divisions by numbers that the host knows, each a multiplication and a shift.
#pragma once
#include "cuda/mma.cuh"
#include "topk/lists.cuh"

namespace gloss::cuda {

constexpr int kThreads = 256, kStages = 3;
constexpr int kRowChunks = kTileRows * 4, kColumnChunks = kBlock * 4, kStageChunks = kRowChunks + kColumnChunks;
constexpr int kTurns = 8;  // tiles that a block knows at a time: the one in work, and more than the copies run ahead

// Quotients of numbers below 2^31. With 2^bits >= divisor the multiplier 2^(31 + bits) / divisor, rounded up, is too
// large by less than 2^bits / divisor, which changes no such quotient.
struct Divisor {
  unsigned divisor, multiplier;
  int shift;
  static Divisor of(int64_t divisor) {
    int bits = 0;
    while (int64_t(1) << bits < divisor) ++bits;
    return {unsigned(divisor), unsigned(((uint64_t(1) << (31 + bits)) + uint64_t(divisor) - 1) / uint64_t(divisor)),
            31 + bits};
  }
  __host__ __device__ unsigned quotient(unsigned x) const { return unsigned((uint64_t(x) * multiplier) >> shift); }
};

struct Sweep {
  const Chunk *rows, *columns;
  Packed queries, corpus;
  RawCorpus raw;
  Lists lists;
  bool self, exclude_self;
  unsigned tiles;
  int row_tiles, begin, width;  // column blocks (self: deltas) begin .. begin + width - 1
  int together;                 // of them that follow each other: a strip
  Divisor strip, pair, last_pair;  // by the tiles of a strip, of two row tiles in it, and in the last strip
};

struct Tile {
  int row, column, slot;  // in units of kTileRows, of kBlock; which column block of the wave
};
__device__ inline Tile tile_of(const Sweep& s, unsigned at) {
  const int strip = int(s.strip.quotient(at)), before = strip * s.together;
  const unsigned within = at - unsigned(strip) * s.strip.divisor;
  // Both halves of a row block one after the other, then the next column.
  const Divisor& pairs = s.width - before < s.together ? s.last_pair : s.pair;
  const int pair = int(pairs.quotient(within)), in_pair = int(within - unsigned(pair) * pairs.divisor);
  const bool whole = 2 * pair + 1 < s.row_tiles;  // an odd number of row tiles: the last stands alone
  const int row = 2 * pair + (whole ? in_pair % 2 : 0), slot = before + (whole ? in_pair / 2 : in_pair);
  int column = s.begin + slot;
  if (s.self) {  // block i meets i + delta
    const int blocks = int(s.queries.blocks);
    column += pair;
    column += column < 0 ? blocks : column >= blocks ? -blocks : 0;
  }
  return {row, column, slot};
}

// Row `offset` of a block of the raw corpus, -1 past its end.
__device__ inline int64_t raw_row(const Packed& corpus, int64_t block, int offset) {
  const int64_t at = corpus.first(block) + offset;
  return at < corpus.first(block + 1) ? scatter(at, corpus.count) : -1;
}

// Walks over the steps of this block's tiles, kDepth at a time, and notes the tiles for the other threads.
template <bool kRaw, int kDepth>
struct Cursor {
  unsigned at, turn;
  int step;
  const Chunk *a, *b;
  int row[kColumnChunks / kThreads];  // raw: of each chunk that this thread copies
  __device__ void locate(const Sweep& s, Tile* turns) {
    step = 0;
    if (at >= s.tiles) return;
    const Tile tile = tile_of(s, at);
    if (threadIdx.x == 0) turns[turn % kTurns] = tile;  // a barrier comes before anybody works on it
    a = s.rows + (int64_t(tile.row / 2) * s.queries.steps * kBlock + tile.row % 2 * kTileRows) * 4;
    b = s.columns + int64_t(tile.column) * s.queries.steps * kBlock * 4;
    if (kRaw)
#pragma unroll
      for (int i = 0; i < kColumnChunks / kThreads; ++i)
        row[i] = int(raw_row(s.corpus, tile.column, (i * kThreads + int(threadIdx.x)) / 4));
  }
  // Copies a step, 6 chunks a thread.
  __device__ void copy(const Sweep& s, Chunk* to) {
    const int me = threadIdx.x;
#pragma unroll
    for (int i = 0; i < kRowChunks / kThreads; ++i) cp_async_16(to + i * kThreads + me, a + i * kThreads + me);
#pragma unroll
    for (int i = 0; i < kColumnChunks / kThreads; ++i) {
      if constexpr (kRaw) {  // to where pack() would have put it; zero past the end of the row
        const int r = i * (kThreads / 4) + me / 4, c = me % 4, from = step * 4 + c;
        const bool inside = row[i] >= 0 && from * 8 < s.raw.cols;
        cp_async_16(to + kRowChunks + r * 4 + (c ^ (r / 2 & 3)),
                    s.raw.rows + (inside ? row[i] * s.raw.stride + from : 0), inside ? 16 : 0);
      } else {
        cp_async_16(to + kRowChunks + i * kThreads + me, b + i * kThreads + me);
      }
    }
    a += kColumnChunks;
    b += kColumnChunks;
    ++step;
  }
  // Fills a stage with steps of one tile, and goes on to the next tile after its last.
  __device__ void load(const Sweep& s, Chunk* stage, Tile* turns) {
    if (at < s.tiles) {
      copy(s, stage);
#pragma unroll
      for (int part = 1; part < kDepth; ++part)
        if (step < s.queries.steps) copy(s, stage + part * kStageChunks);
      if (step == s.queries.steps) {
        at += gridDim.x;
        ++turn;
        locate(s, turns);
      }
    }
    cp_async_commit();
  }
};

__device__ inline const Chunk* chunk_at(const Chunk* operand, int row, int chunk) {
  return operand + row * 4 + (chunk ^ (row / 2 & 3));
}

}  // namespace gloss::cuda
