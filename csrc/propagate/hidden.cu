// Which rows to solve for, and their system (hidden.cuh). One warp a row, so an edge's column and weight (12 bytes in
// float) are read coalesced; what is known of the neighbour (1 to 8 bytes) comes from the second-level cache.
//
// Bytes for 10^6 nodes of 27 edges, 70 % fixed: three passes over the edges of the other rows, 3 x 100 MB, the prefix
// sums 60 MB, B 20 MB: 0.1 ms at 4.3 TB/s; a row's chain of dependent loads makes it a few times that. 16 launches.
#include "propagate/hidden.cuh"

#include "cuda/scan.cuh"

namespace gloss::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// -------------------------------------------------------------------------------------------- reachable
// Nearly every row has a fixed neighbour. Rows without one are joined to components by their edges among each other
// (parent: a forest whose roots are the smallest members), and a component is reachable if a member has a neighbour
// with a fixed neighbour.

// The root of x; shortens the path on the way. Another thread's write is seen late at worst.
__device__ inline int root_of(int* parent, int x) {
  for (int up = __ldcg(parent + x); up != x;) {
    const int above = __ldcg(parent + up);
    if (above != up) parent[x] = above;
    x = up;
    up = above;
  }
  return x;
}

// Hooks the larger root below the smaller. Parents only fall, so it ends whatever other threads do.
__device__ inline void unite(int* parent, int a, int b) {
  a = root_of(parent, a), b = root_of(parent, b);
  while (a != b) {
    const int low = a < b ? a : b, high = a < b ? b : a;
    const int before = atomicCAS(parent + high, high, low);
    if (before == high) return;
    a = before, b = low;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
direct_kernel(Csr graph, const T* __restrict__ values, const uint8_t* __restrict__ fixed,
              uint8_t* __restrict__ reachable, int* __restrict__ parent, uint8_t* __restrict__ flag) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (i >= graph.n) return;
  bool found = fixed[i];
  for (int64_t first = graph.crow[i]; first < graph.crow[i + 1] && !found; first += 32) {
    const int64_t e = first + lane;
    const bool mine = e < graph.crow[i + 1] && values[e] > 0 && fixed[graph.col[e]];
    found = __any_sync(0xffffffffu, mine);
  }
  if (lane == 0) reachable[i] = found, parent[i] = int(i), flag[i] = 0;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
join_kernel(Csr graph, const T* __restrict__ values, const uint8_t* __restrict__ reachable, int* parent,
            int* __restrict__ touches) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (i >= graph.n || reachable[i]) return;
  bool touching = false;
  for (int64_t e = graph.crow[i] + threadIdx.x % 32; e < graph.crow[i + 1]; e += 32) {
    if (!(values[e] > 0)) continue;
    const int64_t j = graph.col[e];
    if (reachable[j]) touching = true;
    else if (j != i) unite(parent, int(i), int(j));
  }
  touching = __any_sync(0xffffffffu, touching);
  if (threadIdx.x % 32 == 0) touches[i] = touching;
}

__global__ void __launch_bounds__(kThreads) mark_kernel(int64_t n, const uint8_t* __restrict__ reachable,
                                                        const int* __restrict__ touches, int* parent, uint8_t* flag) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n && !reachable[i] && touches[i]) flag[root_of(parent, int(i))] = 1;
}

__global__ void __launch_bounds__(kThreads)
spread_kernel(int64_t n, int* parent, const uint8_t* __restrict__ flag, uint8_t* reachable) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n && !reachable[i] && flag[root_of(parent, int(i))]) reachable[i] = 1;
}

// ----------------------------------------------------------------------------------------------- system
__global__ void __launch_bounds__(kThreads)
select_kernel(int64_t n, const uint8_t* __restrict__ fixed, const uint8_t* __restrict__ reachable, bool spreading,
              uint8_t* __restrict__ flag) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) flag[i] = reachable[i] && (spreading || !fixed[i]);
}

__global__ void __launch_bounds__(kThreads)
place_kernel(int64_t n, const uint8_t* __restrict__ flag, const int64_t* __restrict__ position,
             int* __restrict__ row_of, int* __restrict__ node) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  row_of[i] = flag[i] ? int(position[i]) : -1;
  if (flag[i]) node[position[i]] = int(i);
}

// Degree, scale and number of inner edges of a row; 0 edges past the last row, so that prefix sums run over n.
template <class T>
__global__ void __launch_bounds__(kThreads)
measure_kernel(Csr graph, const T* __restrict__ values, const uint8_t* __restrict__ fixed, bool spreading,
               double prior_strength, Hidden<T> hidden) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= graph.n) return;
  if (row >= hidden.rows()) {
    if (lane == 0) hidden.count[row] = 0, hidden.flag[row] = 0;
    return;
  }
  const int64_t i = hidden.node[row], begin = graph.crow[i], end = graph.crow[i + 1];
  double degree = 0;
  int inner = 0;
#pragma unroll 4
  for (int64_t e = begin + lane; e < end; e += 32) {
    const T value = values[e];
    if (!(value > 0)) continue;
    const bool is_inner = hidden.row_of[graph.col[e]] >= 0;
    inner += is_inner;
    if (is_inner || fixed[graph.col[e]]) degree += double(value);
  }
  degree = warp_sum(degree);
  inner = __reduce_add_sync(0xffffffffu, inner);
  if (lane != 0) return;
  hidden.degree[row] = degree;
  hidden.scale[row] = spreading ? 1.0 : 1.0 / sqrt(degree * (1 + prior_strength));
  hidden.count[row] = inner;
  hidden.flag[row] = end - begin > kLongRow;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
fill_kernel(Csr graph, const T* __restrict__ values, bool spreading, double alpha, Hidden<T> hidden) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= hidden.rows()) return;
  const int64_t i = hidden.node[row], end = graph.crow[i + 1];
  const double scale = hidden.scale[row];
  int64_t to = hidden.begin[row];
  if (lane == 0) {
    hidden.row[row] = {to, hidden.count[row], hidden.flag[row]};
    if (hidden.flag[row]) hidden.long_row[hidden.long_at[row]] = int(row);
  }
  for (int64_t first = graph.crow[i]; first < end; first += 32) {
    const int64_t e = first + lane;
    const T value = e < end ? values[e] : T(0);
    const int col = value > 0 ? hidden.row_of[graph.col[e]] : -1;
    const unsigned inner = __ballot_sync(0xffffffffu, col >= 0);
    if (col >= 0) {
      const double b = spreading ? alpha * double(value) : double(value) * scale * hidden.scale[col];
      hidden.edge[to + __popc(inner & ((1u << lane) - 1))] = {T(b), col};
    }
    to += __popc(inner);
  }
}

unsigned blocks(int64_t items, int a_block) { return unsigned((items + a_block - 1) / a_block); }

}  // namespace

template <class T>
Hidden<T> carve_hidden(Workspace& memory, int64_t n, int64_t capacity) {
  Hidden<T> out{};
  out.n = n;
  for (int64_t** sums : {&out.position, &out.begin, &out.long_at}) *sums = memory.take<int64_t>(n + 1);
  for (int** numbers : {&out.row_of, &out.node, &out.long_row, &out.parent, &out.count}) *numbers = memory.take<int>(n);
  for (double** numbers : {&out.degree, &out.scale}) *numbers = memory.take<double>(n);
  out.row = memory.take<Row>(n);
  out.edge = memory.take<Edge<T>>(capacity);
  out.flag = memory.take<uint8_t>(n);
  out.sums = take_scan_space(memory, n);
  return out;
}

template <class T>
void find_reachable(Csr graph, const T* values, const uint8_t* fixed, uint8_t* reachable, const Hidden<T>& space,
                    Queue queue) {
  const int64_t n = graph.n;
  if (n == 0) return;
  launch(direct_kernel<T>, blocks(n, kWarps), kThreads, 0, queue.stream, graph, values, fixed, reachable, space.parent,
         space.flag);
  launch(join_kernel<T>, blocks(n, kWarps), kThreads, 0, queue.stream, graph, values, reachable, space.parent,
         space.count);
  launch(mark_kernel, blocks(n, kThreads), kThreads, 0, queue.stream, n, reachable, space.count, space.parent,
         space.flag);
  launch(spread_kernel, blocks(n, kThreads), kThreads, 0, queue.stream, n, space.parent, space.flag, reachable);
}

template <class T>
void build_hidden(Csr graph, const T* values, const uint8_t* fixed, const uint8_t* reachable,
                  const cpu::PropagateOptions& options, const Hidden<T>& hidden, Queue queue) {
  const bool spreading = is_spreading(options);
  const int64_t n = graph.n;
  if (n > 0)
    launch(select_kernel, blocks(n, kThreads), kThreads, 0, queue.stream, n, fixed, reachable, spreading, hidden.flag);
  exclusive_scan(hidden.flag, n, hidden.position, hidden.sums, queue);
  if (n > 0) {
    launch(place_kernel, blocks(n, kThreads), kThreads, 0, queue.stream, n, hidden.flag, hidden.position, hidden.row_of,
           hidden.node);
    launch(measure_kernel<T>, blocks(n, kWarps), kThreads, 0, queue.stream, graph, values, fixed, spreading,
           options.prior_strength, hidden);
  }
  exclusive_scan(hidden.count, n, hidden.begin, hidden.sums, queue);
  exclusive_scan(hidden.flag, n, hidden.long_at, hidden.sums, queue);
  if (n > 0)
    launch(fill_kernel<T>, blocks(n, kWarps), kThreads, 0, queue.stream, graph, values, spreading, options.alpha,
           hidden);
}

#define GLOSS_INSTANTIATE(T)                                                                                 \
  template Hidden<T> carve_hidden<T>(Workspace&, int64_t, int64_t);                                          \
  template void find_reachable<T>(Csr, const T*, const uint8_t*, uint8_t*, const Hidden<T>&, Queue);         \
  template void build_hidden<T>(Csr, const T*, const uint8_t*, const uint8_t*, const cpu::PropagateOptions&, \
                                const Hidden<T>&, Queue);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cuda
