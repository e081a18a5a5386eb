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

// The copies of one step of both operands: 1,024 chunks each, four a thread.
__device__ inline void load_step(char* stage, const __half* a, const __half* b, int64_t depth, int64_t step) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = int(threadIdx.x) + i * kThreads, row = at / 8, chunk = at % 8;
    const int64_t from = int64_t(row) * depth + step * kDepth + chunk * 8;
    cp_async_16(chunk_at(stage, row, chunk), a + from);
    cp_async_16(chunk_at(stage + kOperandBytes, row, chunk), b + from);
  }
}

__device__ inline void append(const Lists& lists, int64_t position, float value, int64_t other) {
  const int at = atomicAdd(&lists.count[position], 1);
  if (at < lists.capacity) lists.entries[position * lists.capacity + at] = order_key(value, unsigned(other));
}

__global__ void __launch_bounds__(kThreads, 2)
sweep_kernel(Packed queries, Packed corpus, Lists lists, bool self, bool exclude_self, int64_t begin, int64_t end) {
  GLOSS_DYNAMIC_SHARED(char, shared);
  const int64_t row_tiles = queries.padded / kTile;
  const Tile tile = tile_of(blockIdx.x, row_tiles, begin, end, self);
  // An even number of tiles meets half way round: there each pair would come up twice.
  if (self && 2 * ((tile.column - tile.row + row_tiles) % row_tiles) == row_tiles && tile.row > tile.column) return;

  const __half* a = queries.rows + tile.row * kTile * queries.depth;
  const __half* b = corpus.rows + tile.column * kTile * corpus.depth;
  const int64_t steps = queries.depth / kDepth;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;

  float* row_threshold = reinterpret_cast<float*>(shared + kStages * 2 * kOperandBytes);
  float* column_threshold = row_threshold + kTile;
  if (threadIdx.x < kTile) row_threshold[threadIdx.x] = lists.threshold[tile.row * kTile + threadIdx.x];
  else column_threshold[threadIdx.x - kTile] =
      self ? lists.threshold[tile.column * kTile + threadIdx.x - kTile] : INFINITY;

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load_step(shared + s * 2 * kOperandBytes, a, b, queries.depth, s);
    cp_async_commit();
  }
  float sums[4][4][4] = {};  // [16 rows][8 columns][fragment]
  for (int64_t step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // this step has landed for all, and all are done with the stage that is filled next
    const int64_t next = step + kStages - 1;
    if (next < steps) load_step(shared + next % kStages * 2 * kOperandBytes, a, b, queries.depth, next);
    cp_async_commit();
    char* operand_a = shared + step % kStages * 2 * kOperandBytes;
    char* operand_b = operand_a + kOperandBytes;
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
          const float value = sums[i][j][half * 2 + side];
          const bool for_row = value >= row_bound, for_column = value >= column_threshold[column];
          if (!for_row && !for_column) continue;
          const int64_t r = first_row + row, c = first_column + column;
          if (r >= queries.count || c >= corpus.count) continue;
          if (diagonal && r >= c) {  // each pair once; with itself only where that is asked for
            if (r == c && !exclude_self && for_row) append(lists, r, value, c);
            continue;
          }
          if (!self && exclude_self && queries.id[r] == corpus.id[c]) continue;
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
    launch(sweep_kernel, unsigned(tiles), kThreads, kSharedBytes, queue.stream, queries, corpus, lists, self,
           exclude_self, begin, end);
}

}  // namespace gloss::cuda
