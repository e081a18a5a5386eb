// The sweep: tiles of Q C^T on the tensor cores, and what becomes of the products (sweep_offer.cuh).
//
// A block computes tiles of 128 x 256, a warp 64 x 64 of it in 128 registers a thread. Operations: 2 * 128 * 256 * d a
// tile, half of all tiles for the self graph. Bytes: (128 + 256) * 2 d a tile from L2, 85 operations a byte (128 x
// 128: 64); a warp reads 4 KB of shared memory for 32 multiplications (64 x 32: 3 KB for 16). A block a multiprocessor
// works on tile after tile; its copies run two stages ahead, past the end of a tile: they land while the epilogue
// compares. A stage holds two steps, 64 columns, where shared memory allows: half of the barriers. A few queries meet
// the corpus as it is: packing it would read and write what the sweep reads once. The threads add the squares of the
// rows as they lie in shared memory, and the products are divided by the norms before the epilogue.
#include <algorithm>

#include "topk/sweep_offer.cuh"

namespace gloss::cuda {
namespace {

constexpr int64_t kColumnBytes = int64_t(8) << 20;  // of packed columns that neighbouring tiles share

constexpr int shared_bytes(int depth) {
  return kStages * depth * kStageChunks * int(sizeof(Chunk)) + int(sizeof(Desk));
}
static_assert(shared_bytes(1) <= 99 << 10, "of capabilities 8.6, 8.9 and 12.0");
static_assert(shared_bytes(2) <= 163 << 10, "of capability 8.0");

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

// Raw corpus: what pack() finds out about a row, from the sum of its squares; returns 1 / |x|. A row whose squares
// leave the range of floats fails all lists: such a corpus is searched by redo().
template <class T>
__device__ inline float finish_row(const Sweep& s, const Tile& tile, float squares) {
  const int64_t id = raw_row(s.corpus, tile.column, int(threadIdx.x));
  const int64_t position = int64_t(tile.column) * kBlock + threadIdx.x;
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

// Raw corpus: the squares of a row's part, a row a thread.
template <class T>
__device__ inline float squares_of(const Chunk* columns) {
  float sum = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    T numbers[8];
    memcpy(numbers, chunk_at(columns, int(threadIdx.x), c), sizeof numbers);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += to_float(numbers[e]) * to_float(numbers[e]);
  }
  return sum;
}

enum class Way { store, rows, both };

// T: the type of the operands. kRaw: the columns are rows of the corpus as they are, of that type. kDepth: steps a
// stage.
template <Way kWay, class T, bool kRaw, int kDepth>
__global__ void __launch_bounds__(kThreads, 1) sweep_kernel(Sweep s) {
  GLOSS_DYNAMIC_SHARED(Chunk, stages);
  Desk& desk = *reinterpret_cast<Desk*>(stages + kStages * kDepth * kStageChunks);
  const int me = threadIdx.x, lane = me % 32, warp = me / 32;
  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 64;
  const auto stage_at = [&](int stage) { return stages + stage * (kDepth * kStageChunks); };

  if (me == 0) desk.queued = 0;
  Cursor<kRaw, kDepth> ahead{blockIdx.x, 0, 0, nullptr, nullptr, {}};
  ahead.locate(s, desk.turns);
  for (int stage = 0; stage < kStages - 1; ++stage) ahead.load(s, stage_at(stage), desk.turns);

  int stage = 0;
  unsigned drained = 0;
  for (unsigned at = blockIdx.x, turn = 0; at < s.tiles; at += gridDim.x, ++turn) {
    const Tile& tile = desk.turns[turn % kTurns];
    Sums sums = {};
    float squares = 0;
    int place = -1, step = 0;
    do {  // once at least: a loop that may be empty sets the sums to zero twice, 128 cycles a warp
      cp_async_wait<kStages - 2>();
      __syncthreads();  // this stage has landed for all, and all are done with the one that is filled next
      if (kWay != Way::store && step == 0) {
        if (me < kTileRows) cp_async_4(&desk.threshold[me], &s.lists.threshold[int64_t(tile.row) * kTileRows + me]);
        if (kWay == Way::both)
          cp_async_4(&desk.threshold[kTileRows + me], &s.lists.threshold[int64_t(tile.column) * kBlock + me]);
        place = drain(s.lists, desk, drained);
      }
      ahead.load(s, stage_at(stage == 0 ? kStages - 1 : stage - 1), desk.turns);
      const Chunk* operands = stage_at(stage);
      // Few queries: half of the warps have none.
      const bool idle = kRaw && int64_t(tile.row) * kTileRows + warp_row >= s.queries.count;
#pragma unroll
      for (int part = 0; part < kDepth; ++part, operands += kStageChunks) {
        if (part > 0 && step + part >= s.queries.steps) break;
        if (!idle) multiply<T>(sums, operands + warp_row * 4, operands + kRowChunks + warp_column * 4, lane);
        if constexpr (kRaw) squares += squares_of<T>(operands + kRowChunks);
      }
      stage = stage == kStages - 1 ? 0 : stage + 1;
    } while ((step += kDepth) < s.queries.steps);
    if constexpr (kRaw) {
      float* factors = desk.threshold + kTileRows;
      factors[me] = finish_row<T>(s, tile, squares) * kUnit;
      __syncthreads();
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float factor = factors[warp_column + j * 8 + lane % 4 * 2 + e % 2];
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[i][j][e] *= factor;
        }
    }
    if constexpr (kWay == Way::store) {
      store(s, sums, tile, warp_row, warp_column, lane);
    } else {
      finish(s.lists, desk, place);
      // The waits of a longer tile were for the thresholds too.
      if (s.queries.steps <= (kStages - 1) * kDepth) cp_async_wait<0>();
      if (me < kTileRows) desk.bound[me] = bound_of(desk.threshold[me]);
      if (kWay == Way::both) desk.bound[kTileRows + me] = bound_of(desk.threshold[kTileRows + me]);
      __syncthreads();  // the last stage is read, the bounds are written, the queue is empty
      float2* scratch = reinterpret_cast<float2*>(stage_at(stage == 0 ? kStages - 1 : stage - 1)) + warp * kScratch;
      offer<kWay == Way::both>(s, sums, desk, tile, drained, scratch + lane, warp_row, warp_column, lane);
    }
  }
  if constexpr (kWay != Way::store) {
    __syncthreads();
    finish(s.lists, desk, drain(s.lists, desk, drained));
  }
}

template <class T>
void launch_raw(const Sweep& s, bool dense, unsigned grid, Queue queue) {
  const auto kernel = dense ? sweep_kernel<Way::store, T, true, 1> : sweep_kernel<Way::rows, T, true, 1>;
  launch(kernel, grid, kThreads, shared_bytes(1), queue.stream, s);
}

int attribute(cudaDeviceAttr which, Queue queue) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, queue.device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

void sweep(const Packed& queries, const Packed& corpus, const RawCorpus& raw, const Lists& lists, Wave wave,
           Queue queue) {
  const int64_t row_tiles = wave.self ? 2 * wave.row_blocks : (queries.count + kTileRows - 1) / kTileRows;
  if (wave.end <= wave.begin || row_tiles == 0) return;
  // Tiles are counted in 31 bits (a dense wave, of a few columns of blocks, has fewer).
  if (const int64_t most = INT32_MAX / row_tiles; wave.end - wave.begin > most) {
    Wave first = wave, rest = wave;
    first.end = rest.begin = wave.begin + most;
    sweep(queries, corpus, raw, lists, first, queue);
    return sweep(queries, corpus, raw, lists, rest, queue);
  }
  const int64_t width = wave.end - wave.begin;
  const int64_t column_bytes = int64_t(corpus.steps) * kColumnChunks * int64_t(sizeof(Chunk));
  const int64_t together = std::clamp<int64_t>(kColumnBytes / column_bytes, 4, 64);
  Sweep s{queries.rows, corpus.columns, queries, corpus, raw, lists, wave.self, wave.exclude_self};
  s.tiles = unsigned(row_tiles * width);
  s.row_tiles = int(row_tiles);
  s.begin = int(wave.begin);
  s.width = int(width);
  s.together = int(together);
  s.strip = Divisor::of(together * row_tiles);
  s.pair = Divisor::of(2 * together);
  s.last_pair = Divisor::of(2 * ((width - 1) % together + 1));
  const auto grid = std::min(s.tiles, unsigned(attribute(cudaDevAttrMultiProcessorCount, queue)));
  if (raw.rows && raw.dtype == DType::f16) return launch_raw<__half>(s, wave.dense, grid, queue);
  if (raw.rows) return launch_raw<__nv_bfloat16>(s, wave.dense, grid, queue);
  const bool deep = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, queue) >= shared_bytes(2) && !wave.dense;
  const auto kernel = wave.dense          ? sweep_kernel<Way::store, __half, false, 1>
                      : wave.self && deep ? sweep_kernel<Way::both, __half, false, 2>
                      : wave.self         ? sweep_kernel<Way::both, __half, false, 1>
                      : deep              ? sweep_kernel<Way::rows, __half, false, 2>
                                          : sweep_kernel<Way::rows, __half, false, 1>;
  launch(kernel, grid, kThreads, size_t(shared_bytes(deep ? 2 : 1)), queue.stream, s);
}

}  // namespace gloss::cuda
