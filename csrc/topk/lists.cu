#include "topk/lists.cuh"

#include <algorithm>
#include <numeric>

#include "cuda/sort.cuh"

namespace gloss::cuda {
namespace {

constexpr int kWarps = 4;

// A row with many near ties loses entries in the sweep; it is redone, and collects no more.
constexpr float kClosed = INFINITY;

template <class In>
__global__ void __launch_bounds__(32 * kWarps)
pack_kernel(Rows<In> rows, Packed packed, double* __restrict__ inverse_norms, unsigned* largest_residual,
            int64_t* bad_row) {
  const int64_t position = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (position >= packed.padded) return;
  const bool real = position < packed.count;
  const int64_t id = real ? position * packed.stride % packed.count : 0;
  const In* x = rows.row(id);
  const double inverse = real ? inverse_norm(x, rows.cols, lane) : 0.0;
  const double scale = inverse == inverse ? inverse : 0;
  __half* out = packed.rows + position * packed.depth;
  double lost = 0;
  for (int64_t c = lane; c < packed.depth; c += 32) {
    const double u = c < rows.cols ? to_double(x[c]) * scale : 0.0;
    const __half q = __float2half_rn(float(u));
    out[c] = q;
    const double r = u - double(__half2float(q));
    lost += r * r;
  }
  lost = warp_sum(lost);
  if (lane != 0) return;
  const float residual = float(sqrt(lost)) * (1 + 1e-6f);
  packed.residual[position] = residual;
  packed.id[position] = real ? int(id) : -1;
  if (!real) return;
  inverse_norms[id] = inverse;
  if (inverse != inverse) atomicMin(reinterpret_cast<Key*>(bad_row), Key(id));
  if (largest_residual) atomicMax(largest_residual, __float_as_uint(residual));  // positive floats order as their bits
}

// |cosine - product of the packed rows| for a query with this residual.
__device__ inline float guard(float residual, const Lists& lists, float accumulation) {
  return (residual + (1 + residual) * __uint_as_float(*lists.largest_residual) + accumulation) * (1 + 1e-5f);
}

template <class In>
__global__ void __launch_bounds__(256) open_kernel(Search<In> s) {
  const int64_t position = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (position >= s.packed_queries.padded) return;
  const int id = s.packed_queries.id[position];
  const bool takes_part = id >= 0 && s.query_norms[id] > 0;
  s.lists.threshold[position] = takes_part ? -INFINITY : kClosed;
  s.lists.count[position] = 0;
}

// One warp a query: the k-th best cosine with earlier neighbours is a lower bound of the k-th best of all. Hints that are
// no rows, or the row itself, or come twice, do not count.
template <class In>
__global__ void __launch_bounds__(32 * kWarps) seed_kernel(Search<In> s, const int64_t* __restrict__ hint, int hint_k) {
  GLOSS_DYNAMIC_SHARED(Key, shared);
  const int64_t position = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (position >= s.packed_queries.count || s.lists.threshold[position] == kClosed) return;
  const int64_t id = s.packed_queries.id[position];
  Key* keys = shared + threadIdx.x / 32 * hint_k;
  constexpr Key kNone = ~Key(0);
  for (int c = lane; c < hint_k; c += 32) {
    const int64_t j = hint[id * hint_k + c];
    keys[c] = j < 0 || j >= s.corpus.rows || (s.exclude_self && j == id) ? kNone : Key(j);
  }
  __syncwarp();
  const auto sort = [&] { bitonic_sort(keys, hint_k, lane, 32, [] { __syncwarp(); }); };
  sort();
  for (int c = 0; c < hint_k; ++c) {
    const Key j = keys[c];
    const bool counts = j != kNone && (c + 1 == hint_k || keys[c + 1] != j);  // of equal ones the last
    __syncwarp();
    Key key = kNone;
    if (counts) {
      const double corpus_norm = norm_of(s.corpus, s.corpus_norms, int64_t(j), lane);
      const double dot = warp_dot(s.queries.row(id), s.corpus.row(int64_t(j)), s.queries.cols, lane, s.query_norms[id]);
      if (corpus_norm == corpus_norm) key = order_key(float(dot * corpus_norm), unsigned(c));
    }
    if (lane == 0) keys[c] = key;
    __syncwarp();
  }
  sort();
  if (lane == 0 && keys[s.k - 1] != kNone)
    s.lists.threshold[position] =
        key_value(keys[s.k - 1]) - guard(s.packed_queries.residual[position], s.lists, s.accumulation);
}

// One warp a list. After the sort the list descends; what is below the k-th value by two guards is dropped: its cosine is
// below the k-th best.
template <class In>
__global__ void __launch_bounds__(32 * kWarps) compact_kernel(Search<In> s) {
  GLOSS_DYNAMIC_SHARED(Key, shared);
  const int64_t position = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (position >= s.packed_queries.count) return;
  const Lists& lists = s.lists;
  const int count = lists.count[position];
  if (count < s.k || lists.threshold[position] == kClosed) return;
  if (count > lists.capacity) {
    if (lane == 0) {
      lists.threshold[position] = kClosed;
      lists.failed[atomicAdd(lists.failed_count, 1)] = s.packed_queries.id[position];
    }
    return;
  }
  Key* keys = shared + threadIdx.x / 32 * lists.capacity;
  Key* stored = lists.entries + position * lists.capacity;
  for (int c = lane; c < count; c += 32) keys[c] = stored[c];
  __syncwarp();
  bitonic_sort(keys, count, lane, 32, [] { __syncwarp(); });
  const float margin = guard(s.packed_queries.residual[position], lists, s.accumulation);
  const float bound = key_value(keys[s.k - 1]) - 2 * margin;
  int kept = 0;
  for (int first = 0; first < count; first += 32) {
    const bool keep = first + lane < count && key_value(keys[first + lane]) >= bound;
    if (keep) stored[first + lane] = keys[first + lane];
    kept += __popc(__ballot_sync(0xffffffffu, keep));
  }
  if (lane == 0) {
    lists.count[position] = kept;
    lists.threshold[position] = fmaxf(lists.threshold[position], bound);
  }
}

// One warp a query. After the last compaction the lists hold all that can be among the k best.
template <class In>
__global__ void __launch_bounds__(32 * kWarps) refine_kernel(Search<In> s) {
  GLOSS_DYNAMIC_SHARED(Key, shared);
  const int64_t position = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (position >= s.packed_queries.count) return;
  const int64_t id = s.packed_queries.id[position];
  const double norm = s.query_norms[id];
  float* values = s.values + id * s.k;
  int64_t* indices = s.indices + id * s.k;
  if (!(norm > 0)) {  // cosine 0 with everything, or none: the first rows
    for (int64_t r = lane; r < s.k; r += 32) {
      values[r] = norm == 0 ? 0.0f : NAN;
      indices[r] = s.exclude_self && r >= id ? r + 1 : r;
    }
    return;
  }
  const Lists& lists = s.lists;
  if (lists.threshold[position] == kClosed) return;  // to be redone
  const int count = lists.count[position];
  if (count < s.k) {  // what the bounds exclude; not to be trusted with
    if (lane == 0) lists.failed[atomicAdd(lists.failed_count, 1)] = int(id);
    return;
  }
  Key* keys = shared + threadIdx.x / 32 * lists.capacity;
  const Key* stored = lists.entries + position * lists.capacity;
  const In* x = s.queries.row(id);
  for (int c = 0; c < count; ++c) {
    const int64_t at = key_index(stored[c]), other = s.packed_corpus.id ? s.packed_corpus.id[at] : at;
    const double corpus_norm = norm_of(s.corpus, s.corpus_norms, other, lane);
    const double dot = warp_dot(x, s.corpus.row(other), s.queries.cols, lane, norm);
    if (lane == 0) keys[c] = order_key(corpus_norm == corpus_norm ? float(dot * corpus_norm) : -2.0f, unsigned(other));
  }
  __syncwarp();
  bitonic_sort(keys, count, lane, 32, [] { __syncwarp(); });
  for (int64_t r = lane; r < s.k; r += 32) {
    values[r] = key_value(keys[r]);
    indices[r] = int64_t(key_index(keys[r]));
  }
  if (lane == 0) atomicAdd(reinterpret_cast<Key*>(&s.status->candidates), Key(count));
}

template <class In, class Kernel>
void by_lists(const Search<In>& s, Kernel kernel) {
  launch(kernel, blocks_for(s.packed_queries.count, kWarps), 32 * kWarps,
         size_t(kWarps) * s.lists.capacity * sizeof(Key), s.queue.stream, s);
}

}  // namespace

int64_t scattering_stride(int64_t count) {
  int64_t stride = std::max<int64_t>(1, int64_t(0.618 * double(count)));
  while (std::gcd(stride, count) != 1) ++stride;
  return stride;
}

Packed packed_carve(Workspace& memory, int64_t rows, int64_t cols, bool scattered) {
  Packed p{};
  p.count = rows;
  p.padded = (rows + kTile - 1) / kTile * kTile;
  p.depth = (cols + kDepth - 1) / kDepth * kDepth;
  p.stride = scattered ? scattering_stride(rows) : 1;
  p.rows = memory.take<__half>(p.padded * p.depth);
  p.residual = memory.take<float>(p.padded);
  p.id = memory.take<int>(p.padded);
  return p;
}

Lists lists_carve(Workspace& memory, int64_t padded, int64_t k, int64_t least_capacity) {
  Lists l{};
  l.capacity = int((std::max(least_capacity, 8 * k + 64) + 31) / 32 * 32);
  l.entries = memory.take<Key>(padded * l.capacity);
  l.count = memory.take<int>(padded);
  l.threshold = memory.take<float>(padded);
  l.failed = memory.take<int>(padded);
  l.largest_residual = memory.take<unsigned>(1);
  l.failed_count = memory.take<int>(1);
  return l;
}

template <class In>
void pack(Rows<In> rows, Packed packed, double* inverse_norms, unsigned* largest_residual, int64_t* bad_row,
          Queue queue) {
  launch(pack_kernel<In>, blocks_for(packed.padded, kWarps), 32 * kWarps, 0, queue.stream, rows, packed, inverse_norms,
         largest_residual, bad_row);
}
template <class In>
void open_lists(const Search<In>& s) {
  launch(open_kernel<In>, blocks_for(s.packed_queries.padded, 256), 256, 0, s.queue.stream, s);
}
template <class In>
void seed_lists(const Search<In>& s, const int64_t* hint, int64_t hint_k) {
  if (!hint || hint_k < s.k || hint_k > kMostHints) return;
  launch(seed_kernel<In>, blocks_for(s.packed_queries.count, kWarps), 32 * kWarps, size_t(kWarps) * hint_k * sizeof(Key),
         s.queue.stream, s, hint, int(hint_k));
}
template <class In>
void compact(const Search<In>& s) {
  by_lists(s, compact_kernel<In>);
}
template <class In>
void refine(const Search<In>& s) {
  by_lists(s, refine_kernel<In>);
}

#define GLOSS_INSTANTIATE(In)                                                              \
  template void pack<In>(Rows<In>, Packed, double*, unsigned*, int64_t*, Queue);            \
  template void open_lists<In>(const Search<In>&);                                         \
  template void seed_lists<In>(const Search<In>&, const int64_t*, int64_t);                \
  template void compact<In>(const Search<In>&);                                            \
  template void refine<In>(const Search<In>&);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(__half)
GLOSS_INSTANTIATE(__nv_bfloat16)

}  // namespace gloss::cuda
