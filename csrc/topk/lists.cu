#include "topk/lists.cuh"

#include <algorithm>

#include "cuda/sort.cuh"

namespace gloss::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int64_t kListBytes = int64_t(32) << 20;  // lists may grow to this
constexpr int kMostEntries = 2048;

// keys [..] <- the entries of a list that stand for somebody, by a warp. Returns how many. `itself` is left out.
template <class In>
__device__ inline int gather(const Search<In>& s, int64_t position, int count, Key* keys, int lane) {
  const Key* entries = s.lists.entries + position * s.lists.capacity;
  // The self search stores no row in its own list.
  const int itself = s.exclude_self && !s.self ? s.packed_queries.id[position] : -1;
  int kept = 0;
  for (int first = 0; first < count; first += 32) {
    const Key key = first + lane < count ? entries[first + lane] : kNobody;
    const bool keep = key != kNobody && (itself < 0 || s.packed_corpus.id[key_index(key)] != itself);
    const unsigned keeping = __ballot_sync(0xffffffffu, keep);
    if (keep) keys[kept + __popc(keeping & ((1u << lane) - 1))] = key;
    kept += __popc(keeping);
  }
  __syncwarp();
  return kept;
}

// A value that at least k of the keys reach, within `tolerance` of the largest such; k <= count.
__device__ inline float kth_value(const Key* keys, int count, int64_t k, float tolerance, int lane) {
  float low = INFINITY, high = -INFINITY;
  for (int c = lane; c < count; c += 32) {
    low = fminf(low, key_value(keys[c]));
    high = fmaxf(high, key_value(keys[c]));
  }
  high = warp_max(high);
  low = -warp_max(-low);
  while (high - low > tolerance) {
    const float middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) break;
    int reach = 0;
    for (int first = 0; first < count; first += 32)
      reach += __popc(__ballot_sync(0xffffffffu, first + lane < count && key_value(keys[first + lane]) >= middle));
    if (reach >= k) low = middle;
    else high = middle;
  }
  return low;
}

// Moves the keys of at least `bound` to the front, in place. Returns how many.
__device__ inline int keep_from(Key* keys, int count, float bound, int lane) {
  int kept = 0;
  for (int first = 0; first < count; first += 32) {
    const Key key = first + lane < count ? keys[first + lane] : kNobody;
    const bool keep = first + lane < count && key_value(key) >= bound;
    const unsigned keeping = __ballot_sync(0xffffffffu, keep);  // all have read
    if (keep) keys[kept + __popc(keeping & ((1u << lane) - 1))] = key;
    kept += __popc(keeping);
  }
  __syncwarp();
  return kept;
}

// One warp a query: the k-th best cosine with earlier neighbours is a lower bound of the k-th best of all. Hints that
// are no rows, or the row itself, or come twice, do not count.
template <class In>
__global__ void __launch_bounds__(32 * kWarps)
seed_kernel(Search<In> s, const int64_t* __restrict__ hint, int hint_k) {
  GLOSS_DYNAMIC_SHARED(Key, shared);
  const int64_t position = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (position >= s.packed_queries.padded || s.lists.threshold[position] == kClosed) return;
  const int64_t id = s.packed_queries.id[position];
  const In* x = s.queries.row(id);
  const Scaling of_x = scaling(s.query_norms[id]);
  Key* keys = shared + threadIdx.x / 32 * hint_k;
  const auto sort = [&] { bitonic_sort(keys, hint_k, lane, 32, [] { __syncwarp(); }); };
  for (int c = lane; c < hint_k; c += 32) {
    const int64_t j = hint[id * hint_k + c];
    keys[c] = j < 0 || j >= s.corpus.rows || (s.exclude_self && j == id) ? kNobody : Key(j);
  }
  __syncwarp();
  sort();
  for (int c = 0; c < hint_k; ++c) {
    const Key j = keys[c];
    const bool counts = j != kNobody && (c + 1 == hint_k || keys[c + 1] != j);  // of equal ones the last
    const double cosine = counts ? cosine_with(s, x, of_x, int64_t(j), lane) : 0.0;
    __syncwarp();  // all have read the key and the next
    if (lane == 0) keys[c] = counts && cosine == cosine ? order_key(float(cosine), unsigned(c)) : kNobody;
    __syncwarp();
  }
  sort();
  if (lane == 0 && keys[s.k - 1] != kNobody)
    s.lists.threshold[position] =
        key_value(keys[s.k - 1]) - guard(s.packed_queries.residual[position], s.lists, s.accumulation);
}

// One warp a list. What is below the k-th value by two guards is dropped: its cosine is below the k-th best.
template <class In>
__global__ void __launch_bounds__(32 * kWarps) compact_kernel(Search<In> s, int stored) {
  GLOSS_DYNAMIC_SHARED(Key, shared);
  const int64_t position = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Lists& lists = s.lists;
  if (position >= s.packed_queries.padded || lists.threshold[position] == kClosed) return;
  const int count = stored ? stored : lists.count[position];
  if (count > lists.capacity) {
    if (lane == 0) lists.threshold[position] = kClosed;  // it is redone, and collects no more
    return;
  }
  Key* keys = shared + threadIdx.x / 32 * lists.capacity;
  int kept = gather(s, position, count, keys, lane);
  float bound = lists.threshold[position];
  if (kept >= s.k) {
    const float margin = guard(s.packed_queries.residual[position], lists, s.accumulation);
    bound = fmaxf(bound, kth_value(keys, kept, s.k, margin / 8, lane) - 2 * margin);
  }
  kept = keep_from(keys, kept, bound, lane);
  for (int c = lane; c < kept; c += 32) lists.entries[position * lists.capacity + c] = keys[c];
  if (lane != 0) return;
  lists.count[position] = kept;
  lists.threshold[position] = bound;
}

// Rows without a direction: cosine 0 with everything (NaN, if not finite), so the first rows that are finite, and then,
// if those are too few, the others.
template <class In>
__device__ inline void first_rows(const Search<In>& s, int64_t id, bool finite, int lane) {
  int64_t found = 0;
  for (int pass = 0; pass < 2 && found < s.k; ++pass)
    for (int64_t first = 0; first < s.corpus.rows && found < s.k; first += 32) {
      const int64_t j = first + lane;
      const bool take = j < s.corpus.rows && !(s.exclude_self && j == id) &&
                        (s.corpus_norms[j] == s.corpus_norms[j]) == (pass == 0);
      const unsigned taking = __ballot_sync(0xffffffffu, take);
      const int64_t at = found + __popc(taking & ((1u << lane) - 1));
      if (take && at < s.k) {
        s.values[id * s.k + at] = finite && pass == 0 ? 0.0f : NAN;
        s.indices[id * s.k + at] = j;
      }
      found += __popc(taking);
    }
}

// Lists a row to be redone, and its bytes' hash with the smallest position that has it.
template <class In>
__device__ inline void fail(const Search<In>& s, int64_t position, const In* x, int lane) {
  Key hash = 0;
  for (int c = lane; c < s.queries.cols; c += 32) {
    const auto bits = Key(__double_as_longlong(to_double(x[c])));
    Key mixed = (bits ^ Key(c) * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;
    hash += (mixed ^ mixed >> 32) * 0xc4ceb9fe1a85ec53u;
  }
  for (int offset = 16; offset > 0; offset /= 2) hash += __shfl_xor_sync(0xffffffffu, hash, offset);
  if (lane != 0) return;
  const Failed& f = s.failed;
  const int place = atomicAdd(f.count, 1);
  f.positions[place] = int(position);
  f.place[position] = place;
  hash = (hash ^ hash >> 29) | 1;  // 0: an empty slot
  Key slot = (hash >> 7) & Key(f.slots - 1);
  for (;; slot = (slot + 1) & Key(f.slots - 1)) {
    const Key before = atomicCAS(&f.hashes[slot], Key(0), hash);
    if (before == 0 || before == hash) break;
  }
  atomicMin(&f.smallest[slot], int(position));
  f.slot[position] = int(slot);
}

// One warp a query. The lists hold all that can be among the k best.
template <class In>
__global__ void __launch_bounds__(32 * kWarps, 6) refine_kernel(Search<In> s) {
  GLOSS_DYNAMIC_SHARED(Key, shared);
  const int lane = threadIdx.x % 32;
  Key* keys = shared + threadIdx.x / 32 * s.lists.capacity;
  Key scored = 0;
  for (int64_t position = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; position < s.packed_queries.padded;
       position += int64_t(gridDim.x) * kWarps) {
    const int64_t id = s.packed_queries.id[position];
    if (id < 0) continue;
    const double norm = s.query_norms[id];
    if (!(norm > 0)) {
      first_rows(s, id, norm == 0, lane);
      continue;
    }
    const In* x = s.queries.row(id);
    int count = s.lists.count[position];
    if (s.raw.rows && s.raw.odd[position] > 0) count = s.lists.capacity + 1;
    if (count <= s.lists.capacity) count = gather(s, position, count, keys, lane);
    if (count > s.lists.capacity || count < s.k) {  // few: nearly all of the corpus is not finite
      fail(s, position, x, lane);
      continue;
    }
    const float margin = guard(s.packed_queries.residual[position], s.lists, s.accumulation);
    count = keep_from(keys, count, kth_value(keys, count, s.k, margin / 8, lane) - 2 * margin, lane);
    const auto of_x = scaling(norm);
    for (int c = 0; c < count; ++c) {
      const int other = s.packed_corpus.id[key_index(keys[c])];
      const double cosine = cosine_with(s, x, of_x, other, lane);
      __syncwarp();  // all have read the key
      if (lane == 0) keys[c] = order_key(float(cosine) + 0.0f, unsigned(other));
    }
    __syncwarp();
    bitonic_sort(keys, count, lane, 32, [] { __syncwarp(); });
    for (int64_t r = lane; r < s.k; r += 32) {
      s.values[id * s.k + r] = key_value(keys[r]);
      s.indices[id * s.k + r] = int64_t(key_index(keys[r]));
    }
    scored += Key(count);
    __syncwarp();
  }
  if (lane == 0 && scored > 0) atomicAdd(reinterpret_cast<Key*>(&s.status->candidates), scored);
}

}  // namespace

Lists lists_carve(Workspace& memory, int64_t padded, int64_t k) {
  // A wave adds k (g - 1) entries on average if it multiplies what a row has met by g, with a variance of k (g - 1) g:
  // search.cu chooses g so that a list overflows at 8 sigma at the least. These sizes leave it g = 3 and more.
  Lists l{};
  l.capacity = k <= 32 ? 256 : k <= 96 ? 512 : 768;
  while (2 * l.capacity <= kMostEntries && padded * 2 * l.capacity * int64_t(sizeof(Key)) <= kListBytes)
    l.capacity *= 2;
  l.entries = memory.take<Key>(padded * l.capacity);
  l.count = memory.take<int>(padded);
  l.threshold = memory.take<float>(padded);
  l.largest_residual = memory.take<unsigned>(1);
  return l;
}

template <class In>
void seed_lists(const Search<In>& s, const int64_t* hint, int64_t hint_k) {
  if (!hint || hint_k < s.k || hint_k > kMostEntries) return;
  launch(seed_kernel<In>, blocks_for(s.packed_queries.padded, kWarps), 32 * kWarps,
         size_t(kWarps) * size_t(hint_k) * sizeof(Key), s.queue.stream, s, hint, int(hint_k));
}
template <class In>
void compact(const Search<In>& s, int count) {
  launch(compact_kernel<In>, blocks_for(s.packed_queries.padded, kWarps), 32 * kWarps,
         size_t(kWarps) * size_t(s.lists.capacity) * sizeof(Key), s.queue.stream, s, count);
}
template <class In>
void refine(const Search<In>& s) {
  launch(refine_kernel<In>, std::min(blocks_for(s.packed_queries.padded, kWarps), 8192u), 32 * kWarps,
         size_t(kWarps) * size_t(s.lists.capacity) * sizeof(Key), s.queue.stream, s);
}

#define GLOSS_INSTANTIATE(In)                                               \
  template void seed_lists<In>(const Search<In>&, const int64_t*, int64_t); \
  template void compact<In>(const Search<In>&, int);    \
  template void refine<In>(const Search<In>&);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(__half)
GLOSS_INSTANTIATE(__nv_bfloat16)

}  // namespace gloss::cuda
