// The sweep: tiles of Q C^T on the tensor cores, and of every product two comparisons (gloss_cuda.h: cosine_topk).
//
// Operations: 2 * 128 * 128 * depth a tile, half of n^2 d in all for the self graph. Bytes: blocks that run at the same
// time take tiles of a 32 x 32 square, 64 row blocks for 1,024 tiles, so that operands come from L2. In shared memory a
// step of 64 columns is a row of 128 bytes whose 16-byte chunk c stands at c ^ (row % 8): neither the copies nor ldmatrix
// meet bank conflicts. Three stages of copies run ahead of the multiplications. A warp has 64 x 32 of the tile in 64
// registers a thread.
#include "cuda/mma.cuh"
#include "topk/lists.cuh"

namespace gloss::cuda {
namespace {

constexpr int kThreads = 256, kStages = 3, kSquare = 32;
constexpr int kOperandBytes = kTile * kDepth * 2;
constexpr int kSharedBytes = kStages * 2 * kOperandBytes + 2 * kTile * int(sizeof(float));

struct Tile {
  int64_t row, column;  // tile indices
};

// The tiles of a launch in squares: `across` is delta or the corpus tile, from begin to end.
__device__ inline Tile tile_of(int64_t at, int64_t rows, int64_t begin, int64_t end, bool self) {
  const int64_t column_band = at / (rows * kSquare), width = min(int64_t(kSquare), end - begin - column_band * kSquare);
  const int64_t in_band = at - column_band * rows * kSquare;
  const int64_t row_band = in_band / (kSquare * width), height = min(int64_t(kSquare), rows - row_band * kSquare);
  const int64_t in_square = in_band - row_band * kSquare * width;
  const int64_t row = row_band * kSquare + in_square % height;
  const int64_t across = begin + column_band * kSquare + in_square / height;
  return {row, self ? (row + across) % rows : across};
}

__device__ inline void* chunk_at(char* operand, int row, int chunk) {
  return operand + row * (kDepth * 2) + ((chunk ^ (row & 7)) << 4);
}

// The copies of one step of an operand: 1,024 chunks, four a thread.
__device__ inline void load_packed(char* to, const __half* from, int64_t depth, int64_t step) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = int(threadIdx.x) + i * kThreads, row = at / 8, chunk = at % 8;
    cp_async_16(chunk_at(to, row, chunk), from + int64_t(row) * depth + step * kDepth + chunk * 8);
  }
}
// The same of rows where they are; what lies past the last row or column becomes zero.
__device__ inline void load_direct(char* to, const Direct& corpus, int64_t first, int64_t step) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = int(threadIdx.x) + i * kThreads, row = at / 8, chunk = at % 8;
    const int64_t r = first + row, c = step * kDepth + chunk * 8;
    const bool there = r < corpus.count && c < corpus.cols;  // columns come in eights
    cp_async_16(chunk_at(to, row, chunk), corpus.rows + (there ? r * corpus.stride + c : 0), there ? 16 : 0);
  }
}
__device__ inline float sum_of_squares(char* operand) {  // of half a row's part of this step: two threads a row
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto* pairs =
        static_cast<const __half2*>(chunk_at(operand, int(threadIdx.x) / 2, int(threadIdx.x) % 2 * 4 + i));
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const float2 v = __half22float2(pairs[p]);
      sum += v.x * v.x + v.y * v.y;
    }
  }
  return sum;
}

__device__ inline void append(const Lists& lists, int64_t position, float value, int64_t other) {
  const int at = atomicAdd(&lists.count[position], 1);
  if (at < lists.capacity) lists.entries[position * lists.capacity + at] = order_key(value, unsigned(other));
}

enum class Source { packed, direct };

template <Source kSource>
__global__ void __launch_bounds__(kThreads, 2)
sweep_kernel(Packed queries, Packed corpus, Direct direct, Lists lists, bool self, bool exclude_self, int64_t begin,
             int64_t end) {
  GLOSS_DYNAMIC_SHARED(char, shared);
  constexpr bool kDirect = kSource == Source::direct;
  const int64_t row_tiles = queries.padded / kTile;
  Tile tile = tile_of(blockIdx.x, row_tiles, begin, end, self);
  if (kDirect) tile.column = tile.column * direct.tile_stride % direct.tiles;
  // An even number of tiles meets half way round: there each pair would come up twice.
  if (self && 2 * ((tile.column - tile.row + row_tiles) % row_tiles) == row_tiles && tile.row > tile.column) return;

  const __half* a = queries.rows + tile.row * kTile * queries.depth;
  const __half* b = kDirect ? nullptr : corpus.rows + tile.column * kTile * corpus.depth;
  const auto load_step = [&](int64_t step) {
    char* stage = shared + step % kStages * 2 * kOperandBytes;
    load_packed(stage, a, queries.depth, step);
    if (kDirect) load_direct(stage + kOperandBytes, direct, tile.column * kTile, step);
    else load_packed(stage + kOperandBytes, b, corpus.depth, step);
  };
  const int64_t steps = queries.depth / kDepth;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;

  float* row_threshold = reinterpret_cast<float*>(shared + kStages * 2 * kOperandBytes);
  float* column_threshold = row_threshold + kTile;
  if (threadIdx.x < kTile) row_threshold[threadIdx.x] = lists.threshold[tile.row * kTile + threadIdx.x];
  else if (!kDirect) column_threshold[threadIdx.x - kTile] =
      self ? lists.threshold[tile.column * kTile + threadIdx.x - kTile] : INFINITY;

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load_step(s);
    cp_async_commit();
  }
  float sums[4][4][4] = {};  // [16 rows][8 columns][fragment]
  float squares = 0;         // of the corpus row of this thread and its neighbour
  for (int64_t step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // this step has landed for all, and all are done with the stage that is filled next
    const int64_t next = step + kStages - 1;
    if (next < steps) load_step(next);
    cp_async_commit();
    char* operand_a = shared + step % kStages * 2 * kOperandBytes;
    char* operand_b = operand_a + kOperandBytes;
    if (kDirect) squares += sum_of_squares(operand_b);
#pragma unroll
    for (int k16 = 0; k16 < kDepth / 16; ++k16) {
      unsigned fragment_a[4][4], fragment_b[2][4];
      // Matrices of ldmatrix: rows 0-7, rows 8-15, then the same of the next 8 columns: the order of a[0..3].
#pragma unroll
      for (int m = 0; m < 4; ++m)
        ldmatrix_x4(fragment_a[m], chunk_at(operand_a, warp_row + m * 16 + lane % 16, k16 * 2 + lane / 16));
      // For B, 16 of its columns at a time: columns 0-7 at both halves of the depth, then columns 8-15.
#pragma unroll
      for (int m = 0; m < 2; ++m)
        ldmatrix_x4(fragment_b[m], chunk_at(operand_b, warp_column + m * 16 + lane % 8 + lane / 16 * 8,
                                            k16 * 2 + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          mma_16x8x16<__half>(sums[i][j], fragment_a[i], fragment_b[j / 2][j % 2 * 2], fragment_b[j / 2][j % 2 * 2 + 1]);
    }
  }

  float* inverse_norm = column_threshold;  // which rectangles do not need
  if (kDirect) {
    squares += __shfl_xor_sync(0xffffffffu, squares, 1);
    const int64_t row = tile.column * kTile + threadIdx.x / 2;
    const bool finite = squares <= 3.4e38f;
    if (threadIdx.x % 2 == 0) inverse_norm[threadIdx.x / 2] = finite && squares > 0 ? rsqrtf(squares) : 0.0f;
    if (!finite && tile.row == 0) atomicMin(reinterpret_cast<Key*>(direct.bad_row), Key(row));
    __syncthreads();
  }

  const int64_t corpus_count = kDirect ? direct.count : corpus.count;
  const bool diagonal = self && tile.row == tile.column;
  const int64_t first_row = tile.row * kTile, first_column = tile.column * kTile;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + i * 16 + half * 8 + lane / 4;
      const float row_bound = row_threshold[row];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int column = warp_column + j * 8 + lane % 4 * 2 + side;
          const float value = sums[i][j][half * 2 + side] * (kDirect ? inverse_norm[column] : 1.0f);
          const bool for_row = value >= row_bound, for_column = !kDirect && value >= column_threshold[column];
          if (!for_row && !for_column) continue;
          const int64_t r = first_row + row, c = first_column + column;
          if (r >= queries.count || c >= corpus_count) continue;
          if (diagonal && r >= c) {  // each pair once; with itself only where that is asked for
            if (r == c && !exclude_self && for_row) append(lists, r, value, c);
            continue;
          }
          if (!self && exclude_self && queries.id[r] == (kDirect ? c : corpus.id[c])) continue;
          if (for_row) append(lists, r, value, c);
          if (for_column) append(lists, c, value, r);
        }
      }
    }
  }
}

}  // namespace

void sweep(const Packed& queries, const Packed& corpus, const Lists& lists, bool self, bool exclude_self, int64_t begin,
           int64_t end, Queue queue) {
  const int64_t tiles = queries.padded / kTile * (end - begin);
  if (tiles > 0)
    launch(sweep_kernel<Source::packed>, unsigned(tiles), kThreads, kSharedBytes, queue.stream, queries, corpus,
           Direct{}, lists, self, exclude_self, begin, end);
}

void sweep_direct(const Packed& queries, const Direct& corpus, const Lists& lists, bool exclude_self, int64_t begin,
                  int64_t end, Queue queue) {
  const int64_t tiles = queries.padded / kTile * (end - begin);
  if (tiles > 0)
    launch(sweep_kernel<Source::direct>, unsigned(tiles), kThreads, kSharedBytes, queue.stream, queries, Packed{},
           corpus, lists, false, exclude_self, begin, end);
}

}  // namespace gloss::cuda
