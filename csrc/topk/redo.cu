// Rows whose lists lost entries, against the whole corpus: ties and near ties without number.
//
// Only the device knows how many they are. A fixed number of blocks shares out items: 8 rows and a part of the corpus,
// in more parts where rows are few. An item keeps for each row its best keys in shared memory; keys have no ties, so
// that any number of equal values fits. Identical rows, copies of an empty document say, are searched once.
#include <algorithm>

#include "cuda/sort.cuh"
#include "topk/lists.cuh"

namespace gloss::cuda {
namespace {

constexpr int kThreads = 256, kBlocks = 512;
constexpr int kGroup = 8;          // rows that share a read of the corpus
constexpr int kKeys = 1024;        // of a row in shared memory
constexpr int kParts = 16;         // of the corpus at most
constexpr int kColumns = 16;       // of d in a step
constexpr int kPadded = kThreads + 1;

__device__ inline int parts_of(int failed) {
  const int groups = (failed + kGroup - 1) / kGroup;
  return groups == 0 ? 1 : min(max(kBlocks / groups, 1), kParts);
}
// Where the `found` keys of a failed row and a part lie.
template <class In>
__device__ inline Key* keys_of(const Search<In>& s, int place, int position, int part, int parts, int found) {
  return parts == 1 ? s.lists.entries + int64_t(position) * s.lists.capacity
                    : s.failed.partial + (int64_t(place) * parts + part) * found;
}
template <class In>
__host__ __device__ inline int found_of(const Search<In>& s) {  // with the row itself, which its copies must leave out
  const int64_t wanted = s.k + (s.exclude_self ? 1 : 0);
  return int(wanted < s.corpus.rows ? wanted : s.corpus.rows);
}

template <class In>
__global__ void __launch_bounds__(kThreads, 2) redo_kernel(Search<In> s) {
  GLOSS_DYNAMIC_SHARED(Key, best);  // [kGroup, kKeys], then the operands of a step
  double* const column_part = reinterpret_cast<double*>(best + kGroup * kKeys);  // [kColumns, kPadded]
  double* const row_part = column_part + kColumns * kPadded;                // [kColumns, kGroup]
  GLOSS_SHARED(int, counts, [kGroup]);
  GLOSS_SHARED(int, positions, [kGroup]);
  GLOSS_SHARED(Key, bounds, [kGroup]);
  const int failed = *s.failed.count, parts = parts_of(failed), me = threadIdx.x, found = found_of(s);
  const int cols = s.queries.cols;
  for (int item = blockIdx.x; item < (failed + kGroup - 1) / kGroup * parts; item += gridDim.x) {
    const int part = item % parts, first_place = item / parts * kGroup;
    // Which of the rows lead: their own smallest copy, or no copy of it after all.
    bool any = false;
    for (int q = 0; q < kGroup; ++q) {
      const int place = first_place + q;
      int position = -1;
      if (place < failed) {
        position = s.failed.positions[place];
        const int smallest = s.failed.smallest[s.failed.slot[position]];
        const In *x = s.queries.row(s.packed_queries.id[position]), *y = s.queries.row(s.packed_queries.id[smallest]);
        bool same = true;
        for (int c = me; c < cols; c += kThreads) same = same && to_double(x[c]) == to_double(y[c]);
        const int leader = __syncthreads_and(same) ? smallest : position;
        if (me == 0 && part == 0) s.failed.leader[position] = leader;
        if (leader != position) position = -1;
      }
      if (me == 0) positions[q] = position, counts[q] = 0, bounds[q] = kNobody;
      any = any || position >= 0;
    }
    if (!any) continue;
    __syncthreads();

    const int64_t begin = s.corpus.rows * part / parts, end = s.corpus.rows * (part + 1) / parts;
    for (int64_t first = begin; first < end; first += kThreads) {
      double sums[kGroup] = {};
      for (int from = 0; from < cols; from += kColumns) {
        // Neighbouring threads read neighbouring columns.
        for (int at = me; at < kColumns * kThreads; at += kThreads) {
          const int c = at % kColumns;
          const int64_t j = first + at / kColumns;
          const bool inside = j < end && from + c < cols;
          column_part[c * kPadded + at / kColumns] =
              inside ? to_double(s.corpus.row(j)[from + c]) * scaling(s.corpus_norms[j]).power : 0.0;
        }
        if (me < kColumns * kGroup) {
          const int c = me / kGroup, position = positions[me % kGroup];
          const int64_t id = position < 0 ? 0 : s.packed_queries.id[position];
          row_part[me] = position >= 0 && from + c < cols
                             ? to_double(s.queries.row(id)[from + c]) * scaling(s.query_norms[id]).power : 0.0;
        }
        __syncthreads();
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
#pragma unroll
          for (int q = 0; q < kGroup; ++q) sums[q] += column_part[c * kPadded + me] * row_part[c * kGroup + q];
        __syncthreads();
      }
      const int64_t j = first + me;
      if (j < end) {
        const double norm = s.corpus_norms[j];
        for (int q = 0; q < kGroup; ++q) {
          if (positions[q] < 0) continue;
          const double rest = scaling(s.query_norms[s.packed_queries.id[positions[q]]]).rest;
          // A row that is not finite comes last; emit_kernel makes NaN of it.
          const float cosine = float(sums[q] * (scaling(norm).rest * rest)) + 0.0f;
          const Key key = order_key(norm == norm ? cosine : -2.0f, unsigned(j));
          if (key < bounds[q]) best[q * kKeys + atomicAdd(&counts[q], 1)] = key;
        }
      }
      __syncthreads();
      for (int q = 0; q < kGroup; ++q) {
        const int count = counts[q];
        if (count <= kKeys - kThreads && first + kThreads < end) continue;
        bitonic_sort(best + q * kKeys, count, me, kThreads, [] { __syncthreads(); });
        if (me == 0 && count > found) {
          counts[q] = found;
          bounds[q] = best[q * kKeys + found - 1];
        }
      }
      __syncthreads();
    }
    for (int q = 0; q < kGroup; ++q) {
      if (positions[q] < 0) continue;
      Key* to = keys_of(s, first_place + q, positions[q], part, parts, found);
      for (int r = me; r < found; r += kThreads) to[r] = r < counts[q] ? best[q * kKeys + r] : kNobody;
    }
    __syncthreads();
  }
}

// From the keys of the leaders to the results of all failed rows.
template <class In>
__global__ void __launch_bounds__(kThreads) emit_kernel(Search<In> s) {
  GLOSS_DYNAMIC_SHARED(Key, keys);  // [kParts, found]
  const int failed = *s.failed.count, parts = parts_of(failed), found = found_of(s);
  if (blockIdx.x == 0 && threadIdx.x == 0) s.status->recomputed_rows = failed;
  for (int place = blockIdx.x; place < failed; place += gridDim.x) {
    const int position = s.failed.positions[place], leader = s.failed.leader[position];
    const int64_t id = s.packed_queries.id[position];
    const Key* from = keys_of(s, s.failed.place[leader], leader, 0, parts, found);
    for (int r = threadIdx.x; r < parts * found; r += kThreads) keys[r] = from[r];
    __syncthreads();
    if (parts > 1) bitonic_sort(keys, parts * found, int(threadIdx.x), kThreads, [] { __syncthreads(); });
    for (int r = threadIdx.x; r < found; r += kThreads) {
      const int64_t j = key_index(keys[r]);
      if (s.exclude_self && j == id) continue;
      int itself = 0;  // stands before?
      if (s.exclude_self)
        for (int b = 0; b < r; ++b) itself += int64_t(key_index(keys[b])) == id;
      const int64_t to = r - itself;
      if (to >= s.k) continue;
      const float value = key_value(keys[r]);
      s.values[id * s.k + to] = value < -1.5f ? NAN : value;
      s.indices[id * s.k + to] = j;
    }
    __syncthreads();
  }
}

}  // namespace

Failed failed_carve(Workspace& memory, int64_t padded, int64_t k) {
  Failed f{};
  for (f.slots = 1024; f.slots < 2 * padded;) f.slots *= 2;
  f.count = memory.take<int>(1);
  f.positions = memory.take<int>(padded);
  f.place = memory.take<int>(padded);
  f.slot = memory.take<int>(padded);
  f.leader = memory.take<int>(padded);
  f.hashes = memory.take<Key>(f.slots);
  f.smallest = memory.take<int>(f.slots);
  f.partial = memory.take<Key>(int64_t(kBlocks) * kGroup * (k + 1));  // groups x parts never exceed the blocks
  return f;
}

template <class In>
void redo(const Search<In>& s) {
  const size_t operands = size_t(kColumns) * (kPadded + kGroup) * sizeof(double);
  launch(redo_kernel<In>, kBlocks, kThreads, kGroup * kKeys * sizeof(Key) + operands, s.queue.stream, s);
  launch(emit_kernel<In>, kBlocks, kThreads, size_t(kParts) * size_t(found_of(s)) * sizeof(Key), s.queue.stream, s);
}

template void redo<float>(const Search<float>&);
template void redo<__half>(const Search<__half>&);
template void redo<__nv_bfloat16>(const Search<__nv_bfloat16>&);

}  // namespace gloss::cuda
