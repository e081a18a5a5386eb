// Rows whose lists lost entries, against the whole corpus: ties and near ties without number.
//
// Only the device knows how many they are. Identical rows, copies of an empty document say, are searched once, by the
// one that leads them. A fixed number of blocks shares out items: 64 leaders and a part of the corpus each. In an item
// every product is made in float32, and what a bound of its error cannot tell from the best found so far is made again:
// in sums of two floats, which nearly always settle what float64 rounds to, or else in float64. What the first bound
// lets through costs time but no memory, so that no number of near ties overflows: survivors of a tile are bits, and a
// list is cut to its best keys as it fills. Keys have no ties. The best keys of all parts share a bound; it starts
// with what the lost lists still hold. Cosines of 1, however many, survive by index alone: once k are found, none
// behind them does.
//
// Counts, for F leaders, M rows of the corpus and S survivors. Before, in float64: F M d multiply-adds, and F / 8
// readings of the corpus, each number converted and scaled in float64. Now F M d in float32, F / 64 readings (M d 4
// bytes each, which the blocks that work on one part share through L2), and S d ten operations in float32. A block
// reads 12 floats of shared memory for 32 multiply-adds (before, 9 doubles for 8).
// Estimates, not measured, for F = 10^4, M = 10^6, d = 384, where a row has few near ties: H100, 0.13 s of
// multiply-adds at their full rate, about 0.2 s with loads and barriers (before: about 1 s, most of it shared memory);
// a card with 128 multiprocessors of 2.5 GHz and 1/64 of the rate for float64, 0.09 s, about 0.15 s (before: about
// 10 s). One cluster of all 10^4 within float32's error of each other adds S = 10^8: about 0.03 s on either.
#include <algorithm>

#include "cuda/sort.cuh"
#include "topk/lists.cuh"

namespace gloss::cuda {
namespace {

constexpr int kThreads = 256, kWarps = 8;
#if defined(GLOSS_EMULATE)
constexpr int kBlocks = 24;  // so that small tests, too, give a block several items
#else
constexpr int kBlocks = 512;
#endif
constexpr int kGroup = 64, kOthers = 128;       // leaders and corpus rows of a tile: 8 x 4 products a thread
constexpr int kDepth = 32;                      // columns of d in a step
constexpr int kItems = 512;                     // groups x parts, while there are fewer groups
constexpr int kFewParts = 8, kPartRows = 1024;  // at least 8 tiles a part
constexpr int kEmitted = 512;                   // keys that emit_kernel merges at a time
constexpr float kHalfUlp = 5.97e-8f;            // 2^-24, and a little

// Keys in a list, of which the best `found` are kept, and how many such lists there are of a leader.
__host__ __device__ inline int room_of(int found) { return found + (found > 128 ? found / 4 : 32); }
__host__ __device__ inline int64_t most_parts(int64_t corpus) { return (corpus + kPartRows - 1) / kPartRows; }
template <class In>
__host__ __device__ inline int found_of(const Search<In>& s) {  // with the row itself, which its copies must leave out
  const int64_t wanted = s.k + (s.exclude_self ? 1 : 0);
  return int(wanted < s.corpus.rows ? wanted : s.corpus.rows);
}
// As many as fill the blocks several times over; a leader's own list has room for a few.
template <class In>
__device__ inline int parts_of(const Search<In>& s, int leaders) {
  const int groups = max((leaders + kGroup - 1) / kGroup, 1), own = s.lists.capacity / room_of(found_of(s));
  return int(min(int64_t(max(max(kItems / groups, min(own, kFewParts)), 1)), most_parts(s.corpus.rows)));
}
template <class In>
__device__ inline Key* list_of(const Search<In>& s, int place, int position, int part, int parts) {
  const int64_t room = room_of(found_of(s));
  return parts * room <= s.lists.capacity ? s.lists.entries + int64_t(position) * s.lists.capacity + part * room
                                          : s.failed.partial + (int64_t(place) * parts + part) * room;
}

// A power of two as two floats, neither of which leaves their range. 0 for a row without a direction.
struct Power {
  float first, second;
};
__device__ inline Power power_of(Scaling scaling) {
  if (!(scaling.power > 0)) return {0, 0};
  const int exponent = int(__double_as_longlong(scaling.power) >> 52) - 1023, half = exponent / 2;
  return {__uint_as_float(unsigned(half + 127) << 23), __uint_as_float(unsigned(exponent - half + 127) << 23)};
}
template <class In>
__device__ inline float scaled(In x, Power by) {
  return by.first != 0 ? to_float(x) * by.first * by.second : 0.0f;
}

// The cosine of two rows by the lanes of a warp, as a sum of two floats a lane: products and sums leave their rounding
// errors (Dekker, Knuth), which are added up beside. With n products a lane, a sum is at most S = sum of |products|, so
// the 2 n errors come to (n + 1) u S, and their own rounding to 2 n (n + 1) u^2 S. *error: that, and float64's.
template <class In>
__device__ inline double two_term_cosine(const In* x, Scaling of_x, const In* y, Scaling of_y, int cols, int lane,
                                         double* error) {
  const Power scale_x = power_of(of_x), scale_y = power_of(of_y);
  float sum = 0, errors = 0;
  bool any = false;
  for (int c = lane; c < cols; c += 32) {
    const float a = scaled(x[c], scale_x), b = scaled(y[c], scale_y);
    const float product = __fmul_rn(a, b), next = __fadd_rn(sum, product), part = __fadd_rn(next, -sum);
    const float lost = __fadd_rn(__fadd_rn(sum, -__fadd_rn(next, -part)), __fadd_rn(product, -part));
    errors = __fadd_rn(errors, __fadd_rn(__fmaf_rn(a, b, -product), lost));
    sum = next;
    any = any || product != 0;
  }
  const double n = cols / 32 + 2;
  *error = __any_sync(0xffffffffu, any) ? 2 * n * n * 3.6e-15 + cols * 4.5e-16 : 0.0;  // 2^-48, 2^-51
  return warp_sum(double(sum) + double(errors)) * (of_x.rest * of_y.rest);
}

// The key of corpus row j, by a warp: the float64 cosine, rounded once. Or a key at or after `bound`, if its own is.
template <class In>
__device__ inline Key key_of(const Search<In>& s, const In* x, Scaling of_x, int64_t j, Key bound, int lane) {
  const double norm = s.corpus_norms[j];
  if (norm != norm) return order_key(-2.0f, unsigned(j));  // last; emit_kernel makes NaN of it
  if (!s.raw.rows) {  // else the norms are sums in float
    double error;
    const double cosine = two_term_cosine(x, of_x, s.corpus.row(j), scaling(norm), s.corpus.cols, lane, &error);
    const float low = float(cosine - error), high = float(cosine + error);
    const Key key = order_key(high + 0.0f, unsigned(j));
    if (low == high || key >= bound) return key;
  }
  return order_key(float(cosine_with(s, x, of_x, j, lane)) + 0.0f, unsigned(j));
}

// A warp a failed row. Does it lead: is it its own smallest copy, or no copy of it after all? A leader's bound is the
// last of the best entries that its list still holds: as many as are wanted are no worse.
template <class In>
__global__ void __launch_bounds__(32 * 4) lead_kernel(Search<In> s) {
  GLOSS_DYNAMIC_SHARED(Key, shared);  // [4, capacity]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, failed = *s.failed.count, found = found_of(s);
  Key* keys = shared + warp * s.lists.capacity;
  for (int at = int(blockIdx.x) * 4 + warp; at < failed; at += int(gridDim.x) * 4) {
    const int position = s.failed.positions[at], smallest = s.failed.smallest[s.failed.slot[position]];
    const int64_t id = s.packed_queries.id[position];
    const In *x = s.queries.row(id), *y = s.queries.row(s.packed_queries.id[smallest]);
    bool same = true;
    for (int c = lane; c < s.queries.cols; c += 32) same = same && to_float(x[c]) == to_float(y[c]);
    const bool leads = smallest == position || !__all_sync(0xffffffffu, same);
    if (lane == 0) s.failed.leader[position] = leads ? position : smallest;
    if (!leads) continue;
    int place = 0;
    if (lane == 0) {
      place = atomicAdd(s.failed.leaders_count, 1);
      s.failed.leaders[place] = position;
      s.failed.place[position] = place;
    }
    const int count = min(s.lists.count[position], s.lists.capacity);
    for (int e = lane; e < count; e += 32) keys[e] = s.lists.entries[int64_t(position) * s.lists.capacity + e];
    __syncwarp();
    bitonic_sort(keys, count, lane, 32, [] { __syncwarp(); });
    Key bound = count < found || keys[found - 1] == kNobody ? kNobody : 0;
    const auto of_x = scaling(s.query_norms[id]);
    for (int e = 0; e < found && bound != kNobody; ++e) {
      const Key key = key_of(s, x, of_x, s.packed_corpus.id[key_index(keys[e])], kNobody, lane);
      if (key >= bound) bound = key + 1;
    }
    if (lane == 0) s.failed.bounds[place] = bound;
    __syncwarp();
  }
}

struct alignas(16) Four {
  float numbers[4];
};
struct alignas(16) Shared {
  float rows[kDepth][kGroup + 4], others[kDepth][kOthers + 4];  // rows of 16 bytes, neighbours in other banks
  Key bounds[kGroup];
  Power row_power[kGroup], power[kOthers];
  float row_rest[kGroup], rest[kOthers];
  float limit[kGroup];   // the values of the bounds
  float slack[kOthers];  // what a product may be too small by
  unsigned survivors[kGroup][kOthers / 32];
  int positions[kGroup], ids[kGroup], counts[kGroup];
};

// part [kDepth, rows + 4] <- columns `from`.. of rows, transposed: a warp reads 32 neighbouring columns of 4 rows, and
// writes 16 bytes a thread.
template <int kCount, class In, class Row>
__device__ inline void fill(float* part, const Power* power, int from, int cols, const Row& row) {
  const int c = threadIdx.x % kDepth;
#pragma unroll
  for (int quad = int(threadIdx.x) / kDepth; quad < kCount / 4; quad += kThreads / kDepth) {
    Four four;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Power by = power[quad * 4 + i];
      four.numbers[i] = from + c < cols && by.first != 0 ? scaled(row(quad * 4 + i)[from + c], by) : 0.0f;
    }
    *reinterpret_cast<Four*>(part + c * (kCount + 4) + quad * 4) = four;
  }
}

// By a warp: the leader's survivors of a tile, in the order of their indices, to its list.
template <class In>
__device__ inline void take(const Search<In>& s, Shared& t, int q, int64_t first, Key* list, Key* bound_of_all,
                            Key* sorted, int lane) {
  const int found = found_of(s), room = room_of(found);
  const In* x = s.queries.row(t.ids[q]);
  const auto of_x = scaling(s.query_norms[t.ids[q]]);
  int count = t.counts[q];
  Key bound = t.bounds[q];
  for (int word = 0; word < kOthers / 32; ++word)
    for (unsigned left = t.survivors[q][word]; left; left &= left - 1) {
      const int64_t j = first + word * 32 + __ffs(int(left)) - 1;
      if (order_key(1.0f, unsigned(j)) >= bound) continue;
      const Key key = key_of(s, x, of_x, j, bound, lane);
      if (key >= bound) continue;
      if (lane == 0) list[count] = key;
      if (++count < room) continue;
      __syncwarp();
      for (int r = lane; r < room; r += 32) sorted[r] = list[r];
      __syncwarp();
      bitonic_sort(sorted, room, lane, 32, [] { __syncwarp(); });
      for (int r = lane; r < found; r += 32) list[r] = sorted[r];
      count = found;
      bound = sorted[found - 1];
      if (lane == 0) atomicMin(bound_of_all, bound);
      __syncwarp();
    }
  __syncwarp();
  if (lane == 0) t.counts[q] = count, t.bounds[q] = bound;
}

template <class In>
__global__ void __launch_bounds__(kThreads, 2) redo_kernel(Search<In> s) {
  GLOSS_DYNAMIC_SHARED(Shared, shared);  // then [kWarps, room] keys to be sorted
  Shared& t = *shared;
  const int me = threadIdx.x, lane = me % 32, warp = me / 32;
  const int leaders = *s.failed.leaders_count, groups = (leaders + kGroup - 1) / kGroup, parts = parts_of(s, leaders);
  const int cols = s.queries.cols, steps = (cols + kDepth - 1) / kDepth, room = room_of(found_of(s));
  Key* sorted = reinterpret_cast<Key*>(shared + 1) + warp * room;
  // A product passes kDepth sums of its step and those of the steps; 8 are left for the rests, for float64's rounding
  // to float and for the squares of all these. A raw corpus has norms of squares added likewise.
  const float slack = kHalfUlp * float(kDepth + steps + 8 + (s.raw.rows ? (kDepth + steps) / 2 + 2 : 0));
  const int first_row = warp / 4 * 32 + lane / 8 * 8, first_other = warp % 4 * 32 + lane % 8 * 4;  // of this thread
  // Part by part: the blocks at work share its rows through L2, and equal values fall to the smallest indices early.
  for (int item = blockIdx.x; item < groups * parts; item += gridDim.x) {
    const int part = item / groups, first_place = item % groups * kGroup;
    if (me < kGroup) {
      const bool real = first_place + me < leaders;
      const int position = s.failed.leaders[real ? first_place + me : first_place];
      t.positions[me] = position;
      t.ids[me] = s.packed_queries.id[position];
      const auto of_row = scaling(s.query_norms[t.ids[me]]);
      t.counts[me] = 0;
      t.row_power[me] = power_of(of_row);
      t.row_rest[me] = float(of_row.rest);
      t.bounds[me] = real ? kNobody : 0;
    }
    const int64_t begin = s.corpus.rows * part / parts, end = s.corpus.rows * (part + 1) / parts;
    for (int64_t first = begin; first < end; first += kOthers) {
      if (me < kGroup && first_place + me < leaders) {
        const volatile Key* bound_of_all = &s.failed.bounds[first_place + me];
        const Key bound = min(t.bounds[me], Key(*bound_of_all));
        t.bounds[me] = bound;
        t.limit[me] = bound == kNobody ? -INFINITY : key_value(bound);
      } else if (me < kGroup) {
        t.limit[me] = INFINITY;
      }
      if (me < kOthers) {
        const double norm = first + me < end ? s.corpus_norms[first + me] : 0.0;
        const auto of_other = scaling(norm);
        t.power[me] = power_of(of_other);
        t.rest[me] = norm == norm ? float(of_other.rest) : 0.0f;
        t.slack[me] = first + me >= end ? NAN : norm == norm ? slack : -2.0f;  // NaN reaches no limit
      }
      (&t.survivors[0][0])[me] = 0;
      __syncthreads();

      float totals[8][4] = {};
      for (int from = 0; from < cols; from += kDepth) {
        fill<kGroup, In>(t.rows[0], t.row_power, from, cols, [&](int r) { return s.queries.row(t.ids[r]); });
        fill<kOthers, In>(t.others[0], t.power, from, cols, [&](int r) { return s.corpus.row(first + r); });
        __syncthreads();
        float sums[8][4] = {};
#pragma unroll 2  // with 4, sm_80 is one register short in 16 bit; 73 instructions for 64 multiply-adds, then 71
        for (int c = 0; c < kDepth; ++c) {
          const Four a[2] = {*reinterpret_cast<const Four*>(&t.rows[c][first_row]),
                             *reinterpret_cast<const Four*>(&t.rows[c][first_row + 4])};
          const Four b = *reinterpret_cast<const Four*>(&t.others[c][first_other]);
#pragma unroll
          for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[i][j] += a[i / 4].numbers[i % 4] * b.numbers[j];
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) totals[i][j] += sums[i][j];
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float limit = t.limit[first_row + i], factor = t.row_rest[first_row + i];
        unsigned survive = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float most = totals[i][j] * factor * t.rest[first_other + j] + t.slack[first_other + j];
          survive |= unsigned(most >= limit) << j;
        }
        if (survive) atomicOr(&t.survivors[first_row + i][warp % 4], survive << (lane % 8 * 4));
      }
      __syncthreads();
      for (int q = warp; q < kGroup; q += kWarps)
        if (first_place + q < leaders)
          take(s, t, q, first, list_of(s, first_place + q, t.positions[q], part, parts),
               &s.failed.bounds[first_place + q], sorted, lane);
      __syncthreads();
    }
    for (int q = warp; q < kGroup && first_place + q < leaders; q += kWarps) {
      Key* list = list_of(s, first_place + q, t.positions[q], part, parts);
      for (int r = t.counts[q] + lane; r < room; r += 32) list[r] = kNobody;
    }
    __syncthreads();
  }
}

// From the lists of the leaders to the results of all failed rows.
template <class In>
__global__ void __launch_bounds__(kThreads) emit_kernel(Search<In> s) {
  GLOSS_DYNAMIC_SHARED(Key, keys);  // [found + kEmitted], then the number of them
  const int failed = *s.failed.count, parts = parts_of(s, *s.failed.leaders_count), found = found_of(s);
  const int me = threadIdx.x, all = parts * room_of(found);
  int* const count = reinterpret_cast<int*>(keys + found + kEmitted);
  if (blockIdx.x == 0 && me == 0) s.status->recomputed_rows = failed;
  for (int at = blockIdx.x; at < failed; at += gridDim.x) {
    const int position = s.failed.positions[at], leader = s.failed.leader[position], place = s.failed.place[leader];
    const int64_t id = s.packed_queries.id[position];
    const Key bound = s.failed.bounds[place];
    const Key* from = list_of(s, place, leader, 0, parts);  // the lists of the parts stand one after the other
    if (me == 0) *count = 0;
    __syncthreads();
    for (int first = 0; first < all; first += kThreads) {
      const Key key = first + me < all ? from[first + me] : kNobody;
      if (key != kNobody && key <= bound) keys[atomicAdd(count, 1)] = key;
      __syncthreads();
      const int held = *count;
      __syncthreads();
      if (held + kThreads <= found + kEmitted && first + kThreads < all) continue;
      bitonic_sort(keys, held, me, kThreads, [] { __syncthreads(); });
      if (me == 0) *count = min(held, found);
      __syncthreads();
    }
    for (int r = me; r < found; r += kThreads) {
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

Failed failed_carve(Workspace& memory, int64_t padded, int64_t corpus, int64_t k) {
  Failed f{};
  for (f.slots = 1024; f.slots < 2 * padded;) f.slots *= 2;
  f.count = memory.take<int>(1);
  f.positions = memory.take<int>(padded);
  f.place = memory.take<int>(padded);
  f.slot = memory.take<int>(padded);
  f.leader = memory.take<int>(padded);
  f.leaders_count = memory.take<int>(1);
  f.leaders = memory.take<int>(padded);
  f.bounds = memory.take<Key>(padded);
  f.hashes = memory.take<Key>(f.slots);
  f.smallest = memory.take<int>(f.slots);
  const int64_t items = std::min<int64_t>(kItems, (padded + kGroup - 1) / kGroup * most_parts(corpus));
  f.partial = memory.take<Key>(items * kGroup * room_of(int(k) + 1));
  return f;
}

template <class In>
void redo(const Search<In>& s) {
  const auto stream = static_cast<cudaStream_t>(s.queue.stream);
  check(cudaMemsetAsync(s.failed.leaders_count, 0, sizeof(int), stream), "cudaMemsetAsync");
  launch(lead_kernel<In>, kBlocks, 32 * 4, 4 * size_t(s.lists.capacity) * sizeof(Key), stream, s);
  const size_t sorted = size_t(kWarps) * size_t(room_of(found_of(s))) * sizeof(Key);
  launch(redo_kernel<In>, kBlocks, kThreads, sizeof(Shared) + sorted, stream, s);
  launch(emit_kernel<In>, kBlocks, kThreads, size_t(found_of(s) + kEmitted + 1) * sizeof(Key), stream, s);
}

template void redo<float>(const Search<float>&);
template void redo<__half>(const Search<__half>&);
template void redo<__nv_bfloat16>(const Search<__nv_bfloat16>&);

}  // namespace gloss::cuda
