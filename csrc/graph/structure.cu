// The sparsity of the symmetrised nearest-neighbour graph on the GPU (gloss_cuda.h: knn_structure).
//
// Every directed edge (i, j), j the r-th neighbour of i, is put down at both ends: with row i as (j, forward, r), with row
// j as (i, reverse, r), one 64-bit key each. Integer atomics give the places, so their order within a row depends on
// timing; sorting each row by key makes it depend on the graph alone. Bytes: about 2 n k keys of 8 bytes written, sorted in
// shared memory and read twice, and 24 bytes an entry of the result.
#include "cuda/common.cuh"
#include "cuda/scan.cuh"
#include "cuda/segments.cuh"

namespace gloss::cuda {
namespace {

// A Key is column << 32 | reverse << 31 | r.
constexpr Key kReverse = Key(1) << 31;

constexpr int kWarps = 4;

__device__ inline bool is_edge(int64_t i, int64_t j, int64_t n) { return j >= 0 && j < n && j != i; }

struct Space {
  int* counts;      // [n] keys of a row, then its entries
  int* cursor;      // [n]
  int64_t* start;   // [n + 1]
  int64_t* sums;
  Key* keys;        // [2 n k]
  LongSegments long_rows;
};

Space carve(Workspace& memory, int64_t n, int64_t k) {
  return {memory.take<int>(n),          memory.take<int>(n),     memory.take<int64_t>(n + 1), take_scan_space(memory, n),
          memory.take<Key>(2 * n * k), take_long_segments(memory, n)};
}

__global__ void __launch_bounds__(256) count_kernel(const int64_t* __restrict__ indices, int64_t n, int64_t k, int* counts) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= n * k || !is_edge(at / k, indices[at], n)) return;
  atomicAdd(&counts[at / k], 1);
  atomicAdd(&counts[indices[at]], 1);
}

__global__ void __launch_bounds__(256)
fill_kernel(const int64_t* __restrict__ indices, int64_t n, int64_t k, const int64_t* __restrict__ start, int* cursor,
            Key* __restrict__ keys) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= n * k) return;
  const int64_t i = at / k, j = indices[at];
  if (!is_edge(i, j, n)) return;
  const Key r = Key(at % k);
  keys[start[i] + atomicAdd(&cursor[i], 1)] = Key(j) << 32 | r;
  keys[start[j] + atomicAdd(&cursor[j], 1)] = Key(i) << 32 | kReverse | r;
}

// Calls entry(column, forward r or -1, reverse r or -1) for the entries of a row that the mode keeps, in order, as long as
// keys [c, count) hold a column of which c is the first key. A repeated neighbour counts once.
struct Entry {
  bool kept;
  int64_t column, forward, reverse;
};
__device__ inline Entry entry_at(const Key* keys, int64_t c, int64_t count, Symmetrize mode) {
  const int64_t column = int64_t(keys[c] >> 32);
  Entry out{c == 0 || int64_t(keys[c - 1] >> 32) != column, column, -1, -1};
  if (!out.kept) return out;
  for (; c < count && int64_t(keys[c] >> 32) == column; ++c) {
    const int64_t r = int64_t(keys[c] & (kReverse - 1));
    int64_t& side = keys[c] & kReverse ? out.reverse : out.forward;
    if (side < 0) side = r;
  }
  out.kept = is_edge(mode, out.forward >= 0, out.reverse >= 0);
  return out;
}

// One warp a row: counts its entries, or writes them from crow[row] on.
template <bool kWrite>
__global__ void __launch_bounds__(32 * kWarps)
entries_kernel(int64_t n, int64_t k, Symmetrize mode, const int64_t* __restrict__ start, const Key* __restrict__ keys,
               int* counts, const int64_t* __restrict__ crow, int64_t* __restrict__ col, int64_t* __restrict__ forward,
               int64_t* __restrict__ reverse) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= n) return;
  const Key* mine = keys + start[row];
  const int64_t count = start[row + 1] - start[row];
  int64_t found = 0;
  for (int64_t first = 0; first < count; first += 32) {
    Entry entry{};
    if (first + lane < count) entry = entry_at(mine, first + lane, count, mode);
    const unsigned kept = __ballot_sync(0xffffffffu, entry.kept);
    if (kWrite && entry.kept) {
      const int64_t to = crow[row] + found + __popc(kept & ((1u << lane) - 1));
      col[to] = entry.column;
      forward[to] = entry.forward < 0 ? -1 : row * k + entry.forward;
      reverse[to] = mode == Symmetrize::none || entry.reverse < 0 ? -1 : entry.column * k + entry.reverse;
    }
    found += __popc(kept);
  }
  if (!kWrite && lane == 0) counts[row] = int(found);
}

__global__ void __launch_bounds__(256)
pad_kernel(int64_t n, int64_t capacity, const int64_t* __restrict__ crow, int64_t* __restrict__ col,
           int64_t* __restrict__ forward, int64_t* __restrict__ reverse) {
  const int64_t at = crow[n] + int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < capacity) col[at] = 0, forward[at] = reverse[at] = -1;
}

unsigned blocks(int64_t items, int a_block) { return unsigned((items + a_block - 1) / a_block); }

}  // namespace

int64_t knn_structure_workspace(int64_t n, int64_t k) {
  Workspace memory(nullptr);
  carve(memory, n, k);
  return memory.size();
}

void knn_structure(const int64_t* indices, int64_t n, int64_t k, Symmetrize mode, int64_t capacity, int64_t* crow,
                   int64_t* col, int64_t* forward, int64_t* reverse, void* workspace, Queue queue) {
  if (n > INT32_MAX || k > INT32_MAX) throw std::invalid_argument("indices must have at most 2^31 - 1 rows and columns, got more");
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  Workspace memory(workspace);
  const Space s = carve(memory, n, k);
  if (n * k == 0) {
    check(cudaMemsetAsync(crow, 0, size_t(n + 1) * sizeof(int64_t), stream), "cudaMemsetAsync");
    return;
  }
  for (int* counter : {s.counts, s.cursor}) check(cudaMemsetAsync(counter, 0, size_t(n) * 4, stream), "cudaMemsetAsync");
  launch(count_kernel, blocks(n * k, 256), 256, 0, queue.stream, indices, n, k, s.counts);
  exclusive_scan(s.counts, n, s.start, s.sums, queue);
  launch(fill_kernel, blocks(n * k, 256), 256, 0, queue.stream, indices, n, k, s.start, s.cursor, s.keys);
  sort_segments(n, s.start, s.keys, s.long_rows, queue);
  const auto entries = [&](auto kernel) {
    launch(kernel, blocks(n, kWarps), 32 * kWarps, 0, queue.stream, n, k, mode, s.start, s.keys, s.counts, crow, col,
           forward, reverse);
  };
  entries(entries_kernel<false>);
  exclusive_scan(s.counts, n, crow, s.sums, queue);
  entries(entries_kernel<true>);
  launch(pad_kernel, blocks(capacity, 256), 256, 0, queue.stream, n, capacity, crow, col, forward, reverse);
}

}  // namespace gloss::cuda
