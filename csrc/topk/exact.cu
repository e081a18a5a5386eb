#include "topk/exact.cuh"

#include <algorithm>
#include <type_traits>

#include "cuda/scan.cuh"
#include "cuda/sort.cuh"

namespace gloss::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTogether = 8;  // queries that share a read of a corpus row
constexpr int kSelectThreads = 256;
constexpr int kRedoBlocks = 64;
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

// Eight sums over a warp at once: lane l receives that of number l / 4. Half of them change sides in each of the first
// three steps, so nine exchanges do what eight sums on their own need forty for.
__device__ inline double warp_sums(const double (&sums)[kTogether], int lane) {
  double four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const double keep = lane & 16 ? sums[i + 4] : sums[i], give = lane & 16 ? sums[i] : sums[i + 4];
    four[i] = keep + __shfl_xor_sync(0xffffffffu, give, 16);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const double keep = lane & 8 ? four[i + 2] : four[i], give = lane & 8 ? four[i] : four[i + 2];
    two[i] = keep + __shfl_xor_sync(0xffffffffu, give, 8);
  }
  const double keep = lane & 4 ? two[1] : two[0], give = lane & 4 ? two[0] : two[1];
  double one = keep + __shfl_xor_sync(0xffffffffu, give, 4);
  one += __shfl_xor_sync(0xffffffffu, one, 2);
  return one + __shfl_xor_sync(0xffffffffu, one, 1);
}

// The cosines of up to kTogether queries with corpus row j; norms are taken in before products can overflow.
template <class In, class T>
__device__ inline void score(const Rows<In>& queries, const Rows<In>& corpus, const double* query_norms,
                             const double* corpus_norms, int64_t first, int count, int64_t j, int lane, T* out,
                             int64_t stride) {
  double sums[kTogether] = {};
  const In* y = corpus.row(j);
  const double v = norm_of(corpus, corpus_norms, j, lane);
  for (int c = lane; c < corpus.cols; c += 32) {
    const double b = to_double(y[c]) * v;
#pragma unroll
    for (int q = 0; q < kTogether; ++q)
      if (q < count) sums[q] += to_double(queries.row(first + q)[c]) * query_norms[first + q] * b;
  }
  if (count == 1) {
    const double sum = warp_sum(sums[0]);
    if (lane == 0) *out = cosine_or_last<T>(sum, query_norms[first], v);
    return;
  }
  const double sum = warp_sums(sums, lane);
  const int q = lane / 4;
  if (lane % 4 == 0 && q < count) out[q * stride] = cosine_or_last<T>(sum, query_norms[first + q], v);
}

template <class In, class T>
__global__ void __launch_bounds__(32 * kWarps)
scores_kernel(Rows<In> queries, Rows<In> corpus, const double* __restrict__ query_norms,
              const double* __restrict__ corpus_norms, int64_t begin, int64_t end, T* __restrict__ scores) {
  const int64_t first = begin + int64_t(blockIdx.y) * kTogether;
  const int count = int(end - first < kTogether ? end - first : kTogether);
  for (int64_t j = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; j < corpus.rows; j += int64_t(gridDim.x) * kWarps)
    score(queries, corpus, query_norms, corpus_norms, first, count, j, int(threadIdx.x % 32),
          scores + (first - begin) * corpus.rows + j, corpus.rows);
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

// The k best of scores[0 .. n) but `excluded`, sorted, by a block: a radix selection finds the k-th value eight bits at a
// time, then those better and the first of those equal, in the order of their indices, are taken and sorted.
template <class T>
__device__ void select_row(const T* scores, int64_t n, int64_t excluded, int64_t k, Choice<T>* chosen, T* values,
                           int64_t* indices, bool is_nan) {
  __shared__ int histogram[256];
  __shared__ Bits<T> prefix;
  __shared__ int64_t wanted, partial[33];
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
__global__ void __launch_bounds__(kSelectThreads)
select_kernel(const T* __restrict__ scores, int64_t n, int64_t begin, int64_t k, bool exclude_self,
              const double* __restrict__ query_norms, Choice<T>* chosen, T* values, int64_t* indices) {
  const int64_t at = blockIdx.x, row = begin + at;
  select_row(scores + at * n, n, exclude_self ? row : -1, k, chosen + at * k, values + row * k, indices + row * k,
             query_norms[row] != query_norms[row]);
}

template <class In>
__global__ void __launch_bounds__(kSelectThreads)
redo_kernel(Rows<In> queries, Rows<In> corpus, const double* __restrict__ query_norms,
            const double* __restrict__ corpus_norms, int64_t k, bool exclude_self, const int* __restrict__ rows,
            const int* __restrict__ count, float* scores, Choice<float>* chosen, float* values, int64_t* indices) {
  float* mine = scores + int64_t(blockIdx.x) * corpus.rows;
  for (int at = blockIdx.x; at < *count; at += gridDim.x) {
    const int64_t row = rows[at];
    for (int64_t j = threadIdx.x / 32; j < corpus.rows; j += blockDim.x / 32)
      score(queries, corpus, query_norms, corpus_norms, row, 1, j, int(threadIdx.x % 32), mine + j, 0);
    __syncthreads();
    select_row(mine, corpus.rows, exclude_self ? row : -1, k, chosen + int64_t(blockIdx.x) * k, values + row * k,
               indices + row * k, query_norms[row] != query_norms[row]);
  }
}

}  // namespace

template <class In>
void compute_norms(Rows<In> rows, double* inverse_norms, int64_t* bad_row, Queue queue) {
  if (rows.rows > 0)
    launch(norms_kernel<In>, blocks_for(rows.rows, kWarps), 32 * kWarps, 0, queue.stream, rows, inverse_norms, bad_row);
}

template <class In, class T>
ExactSpace<In, T> exact_carve(Workspace& memory, int64_t queries, int64_t corpus, int64_t k) {
  const int64_t chunk = std::clamp<int64_t>(kScoreBytes / (corpus * int64_t(sizeof(T)) + k * int64_t(sizeof(Choice<T>))),
                                            1, std::min<int64_t>(queries, 65535));
  return {memory.take<T>(chunk * corpus), memory.take<Choice<T>>(chunk * k), chunk};
}

template <class In, class T>
void exact_search(Rows<In> queries, Rows<In> corpus, const double* query_norms, const double* corpus_norms, int64_t k,
                  bool exclude_self, T* values, int64_t* indices, ExactSpace<In, T> space, Queue queue) {
  for (int64_t begin = 0; begin < queries.rows; begin += space.chunk) {
    const int64_t end = std::min(queries.rows, begin + space.chunk);
    const dim3 grid(std::min(blocks_for(corpus.rows, kWarps), 4096u), blocks_for(end - begin, kTogether));
    launch(scores_kernel<In, T>, grid, 32 * kWarps, 0, queue.stream, queries, corpus, query_norms, corpus_norms, begin,
           end, space.scores);
    launch(select_kernel<T>, unsigned(end - begin), kSelectThreads, 0, queue.stream, space.scores, corpus.rows, begin, k,
           exclude_self, query_norms, static_cast<Choice<T>*>(space.chosen), values, indices);
  }
}

template <class In>
RedoSpace<In> redo_carve(Workspace& memory, int64_t corpus, int64_t k) {
  return {memory.take<float>(kRedoBlocks * corpus), memory.take<Choice<float>>(kRedoBlocks * k)};
}

template <class In>
void redo_rows(Rows<In> queries, Rows<In> corpus, const double* query_norms, const double* corpus_norms, int64_t k,
               bool exclude_self, const int* rows, const int* count, float* values, int64_t* indices,
               RedoSpace<In> space, Queue queue) {
  launch(redo_kernel<In>, kRedoBlocks, kSelectThreads, 0, queue.stream, queries, corpus, query_norms, corpus_norms, k,
         exclude_self, rows, count, space.scores, static_cast<Choice<float>*>(space.chosen), values, indices);
}

#define GLOSS_INSTANTIATE(In, T)                                                                                       \
  template void compute_norms<In>(Rows<In>, double*, int64_t*, Queue);                                                 \
  template ExactSpace<In, T> exact_carve<In, T>(Workspace&, int64_t, int64_t, int64_t);                                \
  template void exact_search<In, T>(Rows<In>, Rows<In>, const double*, const double*, int64_t, bool, T*, int64_t*,     \
                                    ExactSpace<In, T>, Queue);
#define GLOSS_INSTANTIATE_REDO(In)                                                                                     \
  template RedoSpace<In> redo_carve<In>(Workspace&, int64_t, int64_t);                                                 \
  template void redo_rows<In>(Rows<In>, Rows<In>, const double*, const double*, int64_t, bool, const int*, const int*, \
                              float*, int64_t*, RedoSpace<In>, Queue);
GLOSS_INSTANTIATE(double, double)
GLOSS_INSTANTIATE(float, float)
GLOSS_INSTANTIATE(__half, float)
GLOSS_INSTANTIATE(__nv_bfloat16, float)
GLOSS_INSTANTIATE_REDO(float)
GLOSS_INSTANTIATE_REDO(__half)
GLOSS_INSTANTIATE_REDO(__nv_bfloat16)

}  // namespace gloss::cuda
