// The sweep: tiles of Q C^T on the tensor cores, and of every product two comparisons (lists.cuh, Wave).
//
// A block computes tiles of 128 x 256, a warp 64 x 64 of it in 128 registers a thread. Operations: 2 * 128 * 256 * d a
// tile, half of all tiles for the self graph. Bytes: (128 + 256) * 2 d a tile from L2, 85 operations a byte (128 x
// 128: 64); a warp reads 4 KB of shared memory for 32 multiplications (64 x 32: 3 KB for 16). A block a multiprocessor
// works on tile after tile; its copies run three steps ahead, past the end of a tile: they land while the epilogue
// compares. A few queries meet the corpus as it is: packing it would read and write what the sweep reads once. The
// threads add the squares of the rows as they lie in shared memory, and the products are divided by the norms before
// the epilogue. Tiles are numbered so that those in work at one time lie in a few columns of blocks (at most 8 MB),
// which L2 holds.
#include <algorithm>

#include "cuda/mma.cuh"
#include "topk/lists.cuh"

namespace gloss::cuda {
namespace {

constexpr int kThreads = 256, kStages = 4;
constexpr int kRowChunks = kTileRows * 4, kColumnChunks = kBlock * 4, kStageChunks = kRowChunks + kColumnChunks;
constexpr int kSharedBytes = kStages * kStageChunks * int(sizeof(Chunk)) + (kTileRows + kBlock) * int(sizeof(float));
constexpr int64_t kColumnBytes = int64_t(8) << 20;  // of packed columns that neighbouring tiles share

struct Sweep {
  const Chunk *rows, *columns;
  Packed queries, corpus;
  RawCorpus raw;
  Lists lists;
  Wave wave;
  int64_t tiles, row_tiles;
  int64_t together;  // column blocks (self: deltas) that follow each other
};

struct Tile {
  int64_t row, column, slot;  // in units of kTileRows, of kBlock; which column block of the wave
};
__device__ inline Tile tile_of(const Sweep& s, int64_t at) {
  const int64_t strip = at / (s.together * s.row_tiles), width = s.wave.end - s.wave.begin - strip * s.together;
  const int64_t within = at - strip * s.together * s.row_tiles, across = width < s.together ? width : s.together;
  // Both halves of a row block one after the other, then the next column.
  const int64_t pair = within / (2 * across), in_pair = within - pair * 2 * across;
  const int64_t high = s.row_tiles - 2 * pair < 2 ? 1 : 2;
  const int64_t row = 2 * pair + in_pair % high, slot = strip * s.together + in_pair / high;
  const int64_t block = s.wave.begin + slot;
  return {row, s.wave.self ? (row / 2 + block + s.queries.blocks) % s.queries.blocks : block, slot};
}

// Row `offset` of a block of the raw corpus, -1 past its end.
__device__ inline int64_t raw_row(const Packed& corpus, int64_t block, int offset) {
  const int64_t at = corpus.first(block) + offset;
  return at < corpus.first(block + 1) ? scatter(at, corpus.count) : -1;
}

// Walks over the steps of this block's tiles.
template <bool kRaw>
struct Cursor {
  int64_t at;
  int step;
  const Chunk *a, *b;
  int row[kColumnChunks / kThreads];  // raw: of each chunk that this thread copies
  __device__ void locate(const Sweep& s) {
    step = 0;
    if (at >= s.tiles) return;
    const Tile tile = tile_of(s, at);
    a = s.rows + (tile.row / 2 * s.queries.steps * kBlock + tile.row % 2 * kTileRows) * 4;
    b = s.columns + tile.column * s.queries.steps * kBlock * 4;
    if (kRaw)
#pragma unroll
      for (int i = 0; i < kColumnChunks / kThreads; ++i)
        row[i] = int(raw_row(s.corpus, tile.column, (i * kThreads + int(threadIdx.x)) / 4));
  }
  // Copies a step, 6 chunks a thread, and goes on to the next.
  __device__ void load(const Sweep& s, Chunk* stage) {
    if (at < s.tiles) {
      const int me = threadIdx.x;
#pragma unroll
      for (int i = 0; i < kRowChunks / kThreads; ++i) cp_async_16(stage + i * kThreads + me, a + i * kThreads + me);
#pragma unroll
      for (int i = 0; i < kColumnChunks / kThreads; ++i) {
        if constexpr (kRaw) {  // to where pack() would have put it; zero past the end of the row
          const int r = i * (kThreads / 4) + me / 4, c = me % 4, from = step * 4 + c;
          const bool inside = row[i] >= 0 && from * 8 < s.raw.cols;
          cp_async_16(stage + kRowChunks + r * 4 + (c ^ (r / 2 & 3)),
                      s.raw.rows + (inside ? row[i] * s.raw.stride + from : 0), inside ? 16 : 0);
        } else {
          cp_async_16(stage + kRowChunks + i * kThreads + me, b + i * kThreads + me);
        }
      }
      a += kColumnChunks;
      b += kColumnChunks;
      if (++step == s.queries.steps) {
        at += gridDim.x;
        locate(s);
      }
    }
    cp_async_commit();
  }
};

__device__ inline const Chunk* chunk_at(const Chunk* operand, int row, int chunk) {
  return operand + row * 4 + (chunk ^ (row / 2 & 3));
}

__device__ inline void append(const Lists& lists, int64_t position, float value, int64_t other) {
  const int at = atomicAdd(&lists.count[position], 1);
  if (at < lists.capacity)
    lists.entries[position * lists.capacity + at] = order_key(value / (kUnit * kUnit), unsigned(other));
}

using Sums = float[4][8][4];  // [16 rows][8 columns][fragment]

// Sums += the products of a step, of the warp's 64 rows and 64 columns.
template <class T>
__device__ __forceinline__ void multiply(Sums& sums, const Chunk* rows, const Chunk* columns, int lane) {
#pragma unroll
  for (int k16 = 0; k16 < kStep / 16; ++k16) {
    unsigned a[4][4], b[4][4];
    // Matrices of ldmatrix: rows 0-7, rows 8-15, then the same of the next 8 columns: the order of the fragment.
#pragma unroll
    for (int m = 0; m < 4; ++m) ldmatrix_x4(a[m], chunk_at(rows, m * 16 + lane % 16, k16 * 2 + lane / 16));
    // Of the columns 16 at a time: columns 0-7 at both halves of the depth, then columns 8-15.
#pragma unroll
    for (int m = 0; m < 4; ++m)
      ldmatrix_x4(b[m], chunk_at(columns, m * 16 + lane % 8 + lane / 16 * 8, k16 * 2 + lane / 8 % 2));
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) mma_16x8x16<T>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

struct alignas(16) TwoKeys {
  Key keys[2];
};

// Stores all products of a tile. Nobody stands for padding, for the row itself, and for what is not finite.
__device__ inline void store(const Sweep& s, const Sums& sums, Tile tile, int warp_row, int warp_column, int lane) {
  const int64_t row_block = tile.row / 2;
  const int first_row = int(tile.row % 2) * kTileRows + warp_row + lane / 4;
  const int64_t rows = s.queries.first(row_block + 1) - s.queries.first(row_block);
  const int64_t columns = s.corpus.first(tile.column + 1) - s.corpus.first(tile.column);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + i * 16 + half * 8;
      if (row >= rows) continue;
      const int64_t position = row_block * kBlock + row;
      Key* to = s.lists.entries + position * s.lists.capacity + tile.slot * kBlock;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int column = warp_column + j * 8 + lane % 4 * 2;
        TwoKeys two;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const float value = sums[i][j][half * 2 + side];
          const int64_t other = tile.column * kBlock + column + side;
          const bool itself = s.wave.self && s.wave.exclude_self && other == position;
          two.keys[side] = column + side < columns && value == value && !itself
                               ? order_key(value / (kUnit * kUnit), unsigned(other)) : kNobody;
        }
        *reinterpret_cast<TwoKeys*>(to + column) = two;
      }
    }
  }
}

// Offers the products of a tile to its rows, and to its columns where kBoth. 16 products a thread at a time are
// compared; where a warp finds one that passes, they go to `scratch` [16, 32], so that the rare code exists once. Padding
// passes too where a threshold is negative: it is told from rows there.
template <bool kBoth>
__device__ inline void offer(const Sweep& s, const Sums& sums, Tile tile, const float* row_threshold,
                             const float* column_threshold, float* scratch, int warp_row, int warp_column, int lane) {
  const auto count_of = [](const Packed& packed, int64_t block) {
    return int(packed.first(block + 1) - packed.first(block));
  };
  const int rows = count_of(s.queries, tile.row / 2), columns = count_of(s.corpus, tile.column);
  float column_bound[8][2];
  if (kBoth)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int side = 0; side < 2; ++side)
        column_bound[j][side] = column_threshold[warp_column + j * 8 + lane % 4 * 2 + side];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + i * 16 + half * 8 + lane / 4;
      const float row_bound = row_threshold[row];
      bool any = false;
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const float value = sums[i][j][half * 2 + side];
          any = any || value >= row_bound || (kBoth && value >= column_bound[j][side]);
        }
      if (!__any_sync(0xffffffffu, any)) continue;
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int side = 0; side < 2; ++side) scratch[(j * 2 + side) * 32 + lane] = sums[i][j][half * 2 + side];
#pragma unroll 1
      for (int e = 0; e < 16; ++e) {  // each lane reads what it wrote
        const float value = scratch[e * 32 + lane];
        const int column = warp_column + e / 2 * 8 + lane % 4 * 2 + e % 2;
        if (column >= columns || int(tile.row % 2) * kTileRows + row >= rows) continue;
        const int64_t r = tile.row * kTileRows + row, c = tile.column * kBlock + column;
        if (value >= row_bound) append(s.lists, r, value, c);
        if (kBoth && value >= column_threshold[column]) append(s.lists, c, value, r);
      }
    }
  }
}

// Raw corpus: what pack() finds out about a row, from the sum of its squares; returns 1 / |x|. A row whose squares
// leave the range of floats fails all lists: such a corpus is searched by redo().
template <class T>
__device__ inline float finish_row(const Sweep& s, const Tile& tile, float squares) {
  const int64_t id = raw_row(s.corpus, tile.column, int(threadIdx.x));
  const int64_t position = tile.column * kBlock + threadIdx.x;
  s.raw.id[position] = int(id);
  if (id < 0) return 0;
  double inverse = squares > 0 ? 1 / sqrt(double(squares)) : 0.0;
  if (!(squares >= 1e-30f && squares <= 1e30f)) {
    const T* x = reinterpret_cast<const T*>(s.raw.rows + id * s.raw.stride);
    double exact = 0;
    for (int c = 0; c < s.raw.cols; ++c) exact += to_double(x[c]) * to_double(x[c]);
    inverse = exact > 0 ? 1 / sqrt(exact) : 0.0;
    if (exact - exact != 0) {
      inverse = NAN;
      atomicMin(reinterpret_cast<Key*>(s.raw.bad_row), Key(id));
    } else if (exact > 0) {
      for (int64_t q = 0; q < s.queries.padded; ++q) atomicAdd(&s.raw.odd[q], 1);
    }
  }
  s.raw.norms[id] = inverse;
  return float(inverse);
}

enum class Way { store, rows, both };

// T: the type of the operands. kRaw: the columns are rows of the corpus as they are, of that type.
template <Way kWay, class T, bool kRaw>
__global__ void __launch_bounds__(kThreads, 1) sweep_kernel(Sweep s) {
  GLOSS_DYNAMIC_SHARED(Chunk, stages);
  float* row_threshold = reinterpret_cast<float*>(stages + kStages * kStageChunks);
  float* column_number = row_threshold + kTileRows;  // thresholds; raw: 1 / |x|
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 64;

  Cursor<kRaw> ahead{int64_t(blockIdx.x), 0, nullptr, nullptr, {}};
  ahead.locate(s);
  for (int stage = 0; stage < kStages - 1; ++stage) ahead.load(s, stages + stage * kStageChunks);

  int stage = 0;
  for (int64_t at = blockIdx.x; at < s.tiles; at += gridDim.x) {
    const Tile tile = tile_of(s, at);
    const bool idle = kRaw && tile.row * kTileRows + warp_row >= s.queries.count;  // few queries: half of the warps
    Sums sums = {};
    float squares = 0;
    for (int step = 0; step < s.queries.steps; ++step) {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // this step has landed for all, and all are done with the stage that is filled next
      ahead.load(s, stages + (stage + kStages - 1) % kStages * kStageChunks);
      if (kWay != Way::store && step == 0) {
        if (threadIdx.x < kTileRows)
          row_threshold[threadIdx.x] = s.lists.threshold[tile.row * kTileRows + threadIdx.x] * (kUnit * kUnit);
        if (kWay == Way::both)
          column_number[threadIdx.x] = s.lists.threshold[tile.column * kBlock + threadIdx.x] * (kUnit * kUnit);
      }
      const Chunk* operands = stages + stage * kStageChunks;
      if (!idle) multiply<T>(sums, operands + warp_row * 4, operands + kRowChunks + warp_column * 4, lane);
      if constexpr (kRaw) {  // a row a thread
        float part = 0;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          T numbers[8];
          memcpy(numbers, chunk_at(operands + kRowChunks, int(threadIdx.x), c), sizeof numbers);
#pragma unroll
          for (int e = 0; e < 8; ++e) part += to_float(numbers[e]) * to_float(numbers[e]);
        }
        squares += part;
      }
      stage = (stage + 1) % kStages;
    }
    if constexpr (kRaw) {
      column_number[threadIdx.x] = finish_row<T>(s, tile, squares) * kUnit;
      __syncthreads();
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float factor = column_number[warp_column + j * 8 + lane % 4 * 2 + e % 2];
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[i][j][e] *= factor;
        }
    }
    if constexpr (kWay == Way::store) {
      store(s, sums, tile, warp_row, warp_column, lane);
    } else {
      __syncthreads();  // the last stage is read, the thresholds are written
      float* scratch = reinterpret_cast<float*>(stages + (stage + kStages - 1) % kStages * kStageChunks) + warp * 512;
      offer<kWay == Way::both>(s, sums, tile, row_threshold, column_number, scratch, warp_row, warp_column, lane);
    }
  }
}

template <class T>
void launch_raw(const Sweep& s, unsigned grid, Queue queue) {
  const auto kernel = s.wave.dense ? sweep_kernel<Way::store, T, true> : sweep_kernel<Way::rows, T, true>;
  launch(kernel, grid, kThreads, kSharedBytes, queue.stream, s);
}

}  // namespace

void sweep(const Packed& queries, const Packed& corpus, const RawCorpus& raw, const Lists& lists, Wave wave,
           Queue queue) {
  if (wave.end <= wave.begin) return;
  Sweep s{queries.rows, corpus.columns, queries, corpus, raw, lists, wave, 0, 0, 0};
  s.row_tiles = wave.self ? 2 * wave.row_blocks : (queries.count + kTileRows - 1) / kTileRows;
  s.tiles = s.row_tiles * (wave.end - wave.begin);
  const int64_t column_bytes = int64_t(corpus.steps) * kColumnChunks * int64_t(sizeof(Chunk));
  s.together = std::clamp<int64_t>(kColumnBytes / column_bytes, 4, 64);
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, queue.device), "cudaDeviceGetAttribute");
  const auto grid = unsigned(std::min<int64_t>(s.tiles, processors));
  if (raw.rows && raw.dtype == DType::f16) return launch_raw<__half>(s, grid, queue);
  if (raw.rows) return launch_raw<__nv_bfloat16>(s, grid, queue);
  const auto kernel = wave.dense  ? sweep_kernel<Way::store, __half, false>
                      : wave.self ? sweep_kernel<Way::both, __half, false>
                                  : sweep_kernel<Way::rows, __half, false>;
  launch(kernel, grid, kThreads, kSharedBytes, queue.stream, s);
}

}  // namespace gloss::cuda
