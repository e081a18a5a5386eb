// Gradient of the cosines on the GPU (gloss_cuda.h: cosine_topk_backward).
//
// dL/du of a query row gathers its neighbours; of a corpus row, the queries that chose it, found by the transposed lists:
// counts, places by integer atomics, each list sorted, so that sums run in a fixed order. Then the projection
// dL/dx = (dL/du - (dL/du . u) u) / |x|. Bytes: 2 n k rows of the input, mostly from L2, and the output three times.
#include "cuda/scan.cuh"
#include "cuda/segments.cuh"
#include "topk/exact.cuh"

namespace gloss::cuda {
namespace {

constexpr int kWarps = 4, kColumns = 8;  // columns a lane holds at once

struct Space {
  double *query_norms, *corpus_norms;
  int64_t* bad_row;
  int *counts, *cursor;  // [corpus rows]
  int64_t *start, *sums;
  Key* places;           // [queries, k]: i * k + r, by the corpus row they chose
  LongSegments long_rows;
};
Space carve(Workspace& memory, int64_t queries, int64_t corpus, int64_t k) {
  Space s;
  s.query_norms = memory.take<double>(queries);
  s.corpus_norms = memory.take<double>(corpus);
  s.bad_row = memory.take<int64_t>(1);
  s.counts = memory.take<int>(corpus);
  s.cursor = memory.take<int>(corpus);
  s.start = memory.take<int64_t>(corpus + 1);
  s.sums = take_scan_space(memory, corpus);
  s.places = memory.take<Key>(queries * k);
  s.long_rows = take_long_segments(memory, corpus);
  return s;
}

// An index that is no row of the corpus (the CPU throws) is in no list, and makes the gradient of its row NaN.
__device__ inline bool is_row(int64_t j, int64_t rows) { return uint64_t(j) < uint64_t(rows); }

__global__ void __launch_bounds__(256)
count_kernel(const int64_t* __restrict__ indices, int64_t total, int64_t rows, int* counts) {
  const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (at < total && is_row(indices[at], rows)) atomicAdd(&counts[indices[at]], 1);
}
__global__ void __launch_bounds__(256)
place_kernel(const int64_t* __restrict__ indices, int64_t total, int64_t rows, const int64_t* __restrict__ start,
             int* cursor, Key* __restrict__ places) {
  const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (at < total && is_row(indices[at], rows))
    places[start[indices[at]] + atomicAdd(&cursor[indices[at]], 1)] = Key(at);
}

// sums += weight * unit row j, columns first + lane, + 32, ...
template <class In>
__device__ inline void add_row(double (&sums)[kColumns], const Rows<In>& rows, int64_t j, double weight, int first, int lane) {
  const In* x = rows.row(j);
#pragma unroll
  for (int v = 0; v < kColumns; ++v) {
    const int c = first + v * 32 + lane;
    if (c < rows.cols) sums[v] += weight * to_double(x[c]);
  }
}

// One warp a row of `own`. chosen: its neighbours in `queries`' role (null: none); places: those who chose it (null: none).
template <class In, class T>
__global__ void __launch_bounds__(32 * kWarps)
gradient_kernel(Rows<In> own, const double* __restrict__ own_norms, Rows<In> choosers,
                const double* __restrict__ chooser_norms, Rows<In> neighbors, const double* __restrict__ neighbor_norms,
                int64_t k, const int64_t* __restrict__ chosen, const int64_t* __restrict__ start,
                const Key* __restrict__ places, const T* __restrict__ grad_values, T* grad) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (i >= own.rows) return;
  const double norm = own_norms[i];
  const In* x = own.row(i);
  T* out = grad + i * own.cols;
  double along = 0;
  for (int first = 0; first < own.cols; first += 32 * kColumns) {
    double sums[kColumns] = {};
    if (chosen)
      for (int64_t r = 0; r < k; ++r) {
        const int64_t j = chosen[i * k + r];
        const bool known = is_row(j, neighbors.rows);
        const double weight = known ? double(grad_values[i * k + r]) * neighbor_norms[j] : NAN;
        add_row(sums, neighbors, known ? j : 0, weight, first, lane);
      }
    if (places)
      for (int64_t at = start[i]; at < start[i + 1]; ++at) {
        const int64_t place = int64_t(places[at]), j = place / k;
        add_row(sums, choosers, j, double(grad_values[place]) * chooser_norms[j], first, lane);
      }
#pragma unroll
    for (int v = 0; v < kColumns; ++v) {
      const int c = first + v * 32 + lane;
      if (c >= own.cols) continue;
      along += sums[v] * (to_double(x[c]) * norm);
      out[c] = T(sums[v]);
    }
  }
  along = warp_sum(along);
  const bool vanishes = !(norm > 0 && norm <= kLargestInverseNorm<T>);
  for (int c = lane; c < own.cols; c += 32)
    out[c] = vanishes ? T(0) : T((double(out[c]) - along * (to_double(x[c]) * norm)) * norm);
}

}  // namespace

template <class T>
int64_t cosine_topk_backward_workspace(MatrixView queries, MatrixView corpus, int64_t k) {
  Workspace memory(nullptr);
  carve(memory, queries.rows, corpus.rows, k);
  return memory.size();
}

template <class T>
void cosine_topk_backward(MatrixView queries, MatrixView corpus, int64_t k, const int64_t* indices,
                          const T* grad_values, T* grad_queries, T* grad_corpus, void* workspace, Queue queue) {
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  if (queries.rows == 0 || corpus.rows == 0) return;
  Workspace memory(workspace);
  const Space s = carve(memory, queries.rows, corpus.rows, k);
  const int64_t total = queries.rows * k;
  by_dtype(queries.dtype, [&](auto type) {
    using In = decltype(type);
    const Rows<In> q = rows_of<In>(queries), c = rows_of<In>(corpus);
    compute_norms(q, s.query_norms, s.bad_row, queue);
    compute_norms(c, s.corpus_norms, s.bad_row, queue);
    if (grad_corpus) {
      for (int* counter : {s.counts, s.cursor})
        check(cudaMemsetAsync(counter, 0, size_t(corpus.rows) * 4, stream), "cudaMemsetAsync");
      launch(count_kernel, blocks_for(total, 256), 256, 0, queue.stream, indices, total, corpus.rows, s.counts);
      exclusive_scan(s.counts, corpus.rows, s.start, s.sums, queue);
      launch(place_kernel, blocks_for(total, 256), 256, 0, queue.stream, indices, total, corpus.rows, s.start, s.cursor,
             s.places);
      sort_segments(corpus.rows, s.start, s.places, s.long_rows, queue);
    }
    const auto run = [&](const Rows<In>& own, const double* norms, const int64_t* chosen, const Key* places, T* grad) {
      launch(gradient_kernel<In, T>, blocks_for(own.rows, kWarps), 32 * kWarps, 0, queue.stream, own, norms, q,
             s.query_norms, c, s.corpus_norms, k, chosen, s.start, places, grad_values, grad);
    };
    const int64_t* none = nullptr;
    const Key* nobody = nullptr;
    if (grad_queries && grad_queries == grad_corpus) return run(q, s.query_norms, indices, s.places, grad_queries);
    if (grad_queries) run(q, s.query_norms, indices, nobody, grad_queries);
    if (grad_corpus) run(c, s.corpus_norms, none, s.places, grad_corpus);
  });
}

#define GLOSS_INSTANTIATE(T)                                                                                          \
  template int64_t cosine_topk_backward_workspace<T>(MatrixView, MatrixView, int64_t);                               \
  template void cosine_topk_backward<T>(MatrixView, MatrixView, int64_t, const int64_t*, const T*, T*, T*, void*, Queue);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cuda
