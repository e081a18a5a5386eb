#include "topk/exact.cuh"

#include <algorithm>
#include <type_traits>

#include "cuda/scan.cuh"
#include "cuda/sort.cuh"

namespace gloss::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTile = 64, kTileThreads = 256, kColumns = 16;
constexpr int kSelectThreads = 256;
constexpr int64_t kScoreBytes = int64_t(256) << 20;

template <class In>
__global__ void __launch_bounds__(32 * kWarps)
norms_kernel(Rows<In> rows, double* __restrict__ inverse_norms, int64_t* bad_row) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (i >= rows.rows) return;
  const double inverse = inverse_norm(rows.row(i), rows.cols, lane);
  if (lane != 0) return;
  inverse_norms[i] = inverse;
  if (inverse != inverse) atomicMin(reinterpret_cast<Key*>(bad_row), Key(i));  // "none" is -1, the largest key
}

// A row that is not finite has no cosines: as a corpus row it comes last; of a query, select_row makes NaN.
template <class T>
__device__ inline T cosine_or_last(double cosine, double query_norm, double corpus_norm) {
  return corpus_norm != corpus_norm ? T(-2) : query_norm != query_norm ? T(0) : T(cosine);
}

// A tile of 64 x 64 cosines a block, 4 x 4 a thread, from operands in shared memory: 2 * 64 * 64 d operations for
// 2 * 64 d numbers read.
template <class In, class T>
__global__ void __launch_bounds__(kTileThreads)
scores_kernel(Rows<In> queries, Rows<In> corpus, const double* __restrict__ query_norms,
              const double* __restrict__ corpus_norms, int64_t begin, int64_t end, T* __restrict__ scores) {
  GLOSS_SHARED(double, row_part, [kColumns][kTile + 1]);
  GLOSS_SHARED(double, column_part, [kColumns][kTile + 1]);
  const int64_t first_row = begin + int64_t(blockIdx.y) * kTile, first_column = int64_t(blockIdx.x) * kTile;
  const int me = threadIdx.x, x = me % 16, y = me / 16;
  double sums[4][4] = {};
  for (int from = 0; from < queries.cols; from += kColumns) {
    for (int at = me; at < kTile * kColumns; at += kTileThreads) {
      const int c = at % kColumns, offset = at / kColumns;  // neighbouring threads read neighbouring columns
      const auto scaled = [&](const Rows<In>& rows, const double* norms, int64_t i, int64_t last) {
        const bool inside = i < last && from + c < rows.cols;
        return inside ? to_double(rows.row(i)[from + c]) * scaling(norms[i]).power : 0.0;
      };
      row_part[c][offset] = scaled(queries, query_norms, first_row + offset, end);
      column_part[c][offset] = scaled(corpus, corpus_norms, first_column + offset, corpus.rows);
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      double a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = row_part[c][y + 16 * i], b[i] = column_part[c][x + 16 * i];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += a[i] * b[j];
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = first_row + y + 16 * i, column = first_column + x + 16 * j;
      if (row >= end || column >= corpus.rows) continue;
      const double of_row = query_norms[row], of_column = corpus_norms[column];
      scores[(row - begin) * corpus.rows + column] = cosine_or_last<T>(
          sums[i][j] * (scaling(of_row).rest * scaling(of_column).rest) + 0.0, of_row, of_column);
    }
}

template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;

template <class T>
struct Choice {
  Bits<T> value;  // descending()
  unsigned index;
  __device__ bool operator<(const Choice& other) const {
    return value != other.value ? value < other.value : index < other.index;
  }
};

// The k best of scores[0 .. n) but `excluded`, sorted, by a block: a radix selection finds the k-th value eight bits
// at a time, then those better and the first of those equal, in the order of their indices, are taken and sorted.
template <class T>
__device__ void select_row(const T* scores, int64_t n, int64_t excluded, int64_t k, Choice<T>* chosen, T* values,
                           int64_t* indices, bool is_nan) {
  GLOSS_SHARED(int, histogram, [256]);
  GLOSS_SHARED(Bits<T>, prefix);
  GLOSS_SHARED(int64_t, wanted);
  GLOSS_SHARED(int64_t, partial, [33]);
  const int me = threadIdx.x, threads = blockDim.x;
  if (me == 0) prefix = 0, wanted = k;
  for (int shift = int(sizeof(T)) * 8 - 8; shift >= 0; shift -= 8) {
    for (int b = me; b < 256; b += threads) histogram[b] = 0;
    __syncthreads();
    const Bits<T> known = prefix;
    for (int64_t j = me; j < n; j += threads) {
      const Bits<T> bits = descending(scores[j]);
      const bool same = shift + 8 == int(sizeof(T)) * 8 || bits >> (shift + 8) == known >> (shift + 8);
      if (j != excluded && same) atomicAdd(&histogram[int(bits >> shift) & 255], 1);
    }
    __syncthreads();
    if (me == 0) {
      int64_t left = wanted;
      int b = 0;
      while (b < 255 && left > histogram[b]) left -= histogram[b++];
      prefix = known | Bits<T>(b) << shift;
      wanted = left;  // so many of those with this prefix
    }
    __syncthreads();
  }
  const Bits<T> kth = prefix;
  const int64_t equal = wanted, better = k - wanted;
  int64_t seen_better = 0, seen_equal = 0;
  for (int64_t first = 0; first < n; first += threads) {
    const int64_t j = first + me;
    const bool valid = j < n && j != excluded;
    const Bits<T> bits = valid ? descending(scores[j]) : Bits<T>(0);
    int64_t all_better, all_equal;
    const bool is_better = valid && bits < kth, is_equal = valid && bits == kth;
    const int64_t at_better = seen_better + block_exclusive_scan(is_better, partial, &all_better);
    const int64_t at_equal = seen_equal + block_exclusive_scan(is_equal, partial, &all_equal);
    if (is_better) chosen[at_better] = {bits, unsigned(j)};
    if (is_equal && at_equal < equal) chosen[better + at_equal] = {bits, unsigned(j)};
    seen_better += all_better, seen_equal += all_equal;
  }
  __syncthreads();
  bitonic_sort(chosen, k, me, threads, [] { __syncthreads(); });
  for (int64_t r = me; r < k; r += threads) {
    values[r] = is_nan ? T(NAN) : from_descending(chosen[r].value);
    indices[r] = int64_t(chosen[r].index);
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kSelectThreads, 4)
select_kernel(const T* __restrict__ scores, int64_t n, int64_t begin, int64_t k, bool exclude_self,
              const double* __restrict__ query_norms, Choice<T>* chosen, T* values, int64_t* indices) {
  const int64_t at = blockIdx.x, row = begin + at;
  select_row(scores + at * n, n, exclude_self ? row : -1, k, chosen + at * k, values + row * k, indices + row * k,
             query_norms[row] != query_norms[row]);
}

}  // namespace

template <class In>
void compute_norms(Rows<In> rows, double* inverse_norms, int64_t* bad_row, Queue queue) {
  if (rows.rows > 0)
    launch(norms_kernel<In>, blocks_for(rows.rows, kWarps), 32 * kWarps, 0, queue.stream, rows, inverse_norms, bad_row);
}

template <class In, class T>
ExactSpace<In, T> exact_carve(Workspace& memory, int64_t queries, int64_t corpus, int64_t k) {
  const int64_t bytes = corpus * int64_t(sizeof(T)) + k * int64_t(sizeof(Choice<T>));  // a query
  const int64_t most = std::clamp<int64_t>(queries, 1, 65535);  // also of no queries: a clamp from 1 to 0 is undefined
  const int64_t chunk = std::clamp<int64_t>(kScoreBytes / bytes, 1, most);
  return {memory.take<T>(chunk * corpus), memory.take<Choice<T>>(chunk * k), chunk};
}

template <class In, class T>
void exact_search(Rows<In> queries, Rows<In> corpus, const double* query_norms, const double* corpus_norms, int64_t k,
                  bool exclude_self, T* values, int64_t* indices, ExactSpace<In, T> space, Queue queue) {
  for (int64_t begin = 0; begin < queries.rows; begin += space.chunk) {
    const int64_t end = std::min(queries.rows, begin + space.chunk);
    const dim3 grid(blocks_for(corpus.rows, kTile), blocks_for(end - begin, kTile));
    launch(scores_kernel<In, T>, grid, kTileThreads, 0, queue.stream, queries, corpus, query_norms, corpus_norms, begin,
           end, space.scores);
    launch(select_kernel<T>, unsigned(end - begin), kSelectThreads, 0, queue.stream, space.scores, corpus.rows, begin,
           k, exclude_self, query_norms, static_cast<Choice<T>*>(space.chosen), values, indices);
  }
}

#define GLOSS_INSTANTIATE(In, T)                                                                                       \
  template void compute_norms<In>(Rows<In>, double*, int64_t*, Queue);                                                 \
  template ExactSpace<In, T> exact_carve<In, T>(Workspace&, int64_t, int64_t, int64_t);                                \
  template void exact_search<In, T>(Rows<In>, Rows<In>, const double*, const double*, int64_t, bool, T*, int64_t*,     \
                                    ExactSpace<In, T>, Queue);
GLOSS_INSTANTIATE(double, double)
GLOSS_INSTANTIATE(float, float)
GLOSS_INSTANTIATE(__half, float)
GLOSS_INSTANTIATE(__nv_bfloat16, float)

}  // namespace gloss::cuda
