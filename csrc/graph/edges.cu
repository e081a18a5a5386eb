// Weights of the symmetrised graph and its normalisations on the GPU; the formulas stand in graph/edges.cpp. Sums over a
// row are a warp's, in double, in an order of their own.
#include "cuda/common.cuh"
#include "cuda/workspace.cuh"

namespace gloss::cuda {
namespace {

constexpr int kThreads = 256, kWarps = 4;

unsigned blocks(int64_t items, int a_block) { return unsigned((items + a_block - 1) / a_block); }

// -1 is a weight that is not there; any other place outside the `count` weights makes its entry NaN.
__device__ inline bool is_place(int64_t at, int64_t count) { return uint64_t(at) + 1 <= uint64_t(count); }

template <class T>
__global__ void __launch_bounds__(kThreads)
combine_kernel(int64_t nnz, int64_t num_weights, const int64_t* __restrict__ forward,
               const int64_t* __restrict__ reverse, Symmetrize mode, const T* __restrict__ weights,
               T* __restrict__ values) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= nnz) return;
  const int64_t to = forward[e], from = reverse[e];
  const bool known = is_place(to, num_weights) && is_place(from, num_weights);
  values[e] = known ? combine(mode, to < 0 ? T(0) : weights[to], from < 0 ? T(0) : weights[from]) : T(NAN);
}

// A weight is the forward one of at most one entry and the reverse one of at most one: two passes without conflicts.
template <class T, bool kForward>
__global__ void __launch_bounds__(kThreads)
combine_backward_kernel(int64_t nnz, int64_t num_weights, const int64_t* __restrict__ forward,
                        const int64_t* __restrict__ reverse, Symmetrize mode, const T* __restrict__ weights,
                        const T* __restrict__ grad_values, T* grad_weights) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= nnz) return;
  const int64_t own = kForward ? forward[e] : reverse[e], other = kForward ? reverse[e] : forward[e];
  if (own < 0 || own >= num_weights) return;
  T g = T(NAN);
  if (is_place(other, num_weights)) g = grad_values[e] * share(mode, weights[own], other < 0 ? T(0) : weights[other]);
  grad_weights[own] = kForward ? g : grad_weights[own] + g;
}

// A graph as the caller gave it: rows end where its `capacity` entries do, and x of a column that is no node is NaN.
struct Given {
  Csr graph;
  int64_t capacity;

  __device__ int64_t begin(int64_t i) const { return graph.crow[i] < 0 ? 0 : graph.crow[i]; }
  __device__ int64_t end(int64_t i) const { return graph.crow[i + 1] < capacity ? graph.crow[i + 1] : capacity; }
  __device__ double of_column(const double* x, int64_t e) const {
    const int64_t j = graph.col[e];
    return uint64_t(j) < uint64_t(graph.n) ? x[j] : NAN;
  }
};

// out[i] = sum over row i of term(e), then finish(i, sum). One warp a row.
template <class Term, class Finish>
__device__ inline void row_sum(const Given& given, const Term& term, const Finish& finish) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (i >= given.graph.n) return;
  double sum = 0;
  for (int64_t e = given.begin(i) + threadIdx.x % 32, end = given.end(i); e < end; e += 32) sum += term(e);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) finish(i, sum);
}

__device__ inline double power(double x, double exponent) { return x > 0 ? pow(x, exponent) : 0.0; }

struct Space {
  double *r, *s;    // [n]: d^-1/2; the scale
  double *dt, *dd;  // [n]: of the backward pass
};
Space carve(Workspace& memory, int64_t n) {
  return {memory.take<double>(n), memory.take<double>(n), memory.take<double>(n), memory.take<double>(n)};
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) degree_kernel(Given given, const T* __restrict__ a, Space space) {
  row_sum(given, [&](int64_t e) { return double(a[e]); },
          [&](int64_t i, double d) { space.r[i] = space.s[i] = power(d, -0.5); });
}
template <class T>
__global__ void __launch_bounds__(32 * kWarps) published_scale_kernel(Given given, const T* __restrict__ a, Space space) {
  row_sum(given, [&](int64_t e) { return double(a[e]) * given.of_column(space.r, e); },
          [&](int64_t i, double t) { space.s[i] = power(t, -1); });
}
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
apply_kernel(Given given, const T* __restrict__ a, Space space, T* __restrict__ normalized) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (i >= given.graph.n) return;
  for (int64_t e = given.begin(i) + threadIdx.x % 32, end = given.end(i); e < end; e += 32)
    normalized[e] = T(double(a[e]) * space.s[i] * given.of_column(space.s, e));
}

// h_i = 2 sum_j G_ij A_ij s_j, and from it dt (published) or dd (symmetric).
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
to_scale_kernel(Given given, const T* __restrict__ a, const T* __restrict__ g, bool published, Space space) {
  row_sum(given, [&](int64_t e) { return 2.0 * double(g[e]) * double(a[e]) * given.of_column(space.s, e); },
          [&](int64_t i, double h) {
            space.dt[i] = published ? -h * space.s[i] * space.s[i] : 0;
            space.dd[i] = -0.5 * space.r[i] * space.r[i] * space.r[i] * h;
          });
}
template <class T>
__global__ void __launch_bounds__(32 * kWarps) to_degree_kernel(Given given, const T* __restrict__ a, Space space) {
  row_sum(given, [&](int64_t e) { return double(a[e]) * given.of_column(space.dt, e); },
          [&](int64_t i, double dr) { space.dd[i] = -0.5 * space.r[i] * space.r[i] * space.r[i] * dr; });
}
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
edges_backward_kernel(Given given, const T* __restrict__ g, Space s, T* __restrict__ grad_values) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (i >= given.graph.n) return;
  for (int64_t e = given.begin(i) + threadIdx.x % 32, end = given.end(i); e < end; e += 32) {
    const double s_j = given.of_column(s.s, e), dd_j = given.of_column(s.dd, e);
    const double both = s.dt[i] * given.of_column(s.r, e) + given.of_column(s.dt, e) * s.r[i];
    grad_values[e] = T(double(g[e]) * s.s[i] * s_j + 0.5 * (both + s.dd[i] + dd_j));
  }
}

template <class T>
void zero(T* values, int64_t count, Queue queue) {
  check(cudaMemsetAsync(values, 0, size_t(count) * sizeof(T), static_cast<cudaStream_t>(queue.stream)), "cudaMemsetAsync");
}

}  // namespace

template <class T>
void combine_edges(int64_t nnz, int64_t num_weights, const int64_t* forward, const int64_t* reverse, Symmetrize mode,
                   const T* weights, T* values, Queue queue) {
  const DeviceGuard guard(queue.device);
  if (nnz > 0)
    launch(combine_kernel<T>, blocks(nnz, kThreads), kThreads, 0, queue.stream, nnz, num_weights, forward, reverse, mode,
           weights, values);
}

template <class T>
void combine_edges_backward(int64_t nnz, int64_t num_weights, const int64_t* forward, const int64_t* reverse,
                            Symmetrize mode, const T* weights, const T* grad_values, T* grad_weights, Queue queue) {
  const DeviceGuard guard(queue.device);
  zero(grad_weights, num_weights, queue);
  if (nnz == 0) return;
  const auto pass = [&](auto kernel) {
    launch(kernel, blocks(nnz, kThreads), kThreads, 0, queue.stream, nnz, num_weights, forward, reverse, mode, weights,
           grad_values, grad_weights);
  };
  pass(combine_backward_kernel<T, true>);
  pass(combine_backward_kernel<T, false>);
}

template <class T>
int64_t normalize_edges_workspace(int64_t n, int64_t, Normalization) {
  Workspace memory(nullptr);
  carve(memory, n);
  return memory.size();
}
template <class T>
int64_t normalize_edges_backward_workspace(int64_t n, int64_t capacity, Normalization mode) {
  return normalize_edges_workspace<T>(n, capacity, mode);
}

template <class T>
void normalize_edges(Csr graph, int64_t capacity, const T* values, Normalization mode, T* normalized, void* workspace,
                     Queue queue) {
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  if (mode == Normalization::row) {
    check(cudaMemcpyAsync(normalized, values, size_t(capacity) * sizeof(T), cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
    return;
  }
  zero(normalized, capacity, queue);
  if (graph.n == 0) return;
  Workspace memory(workspace);
  const Space space = carve(memory, graph.n);
  const auto by_rows = [&](auto kernel, auto... arguments) {
    launch(kernel, blocks(graph.n, kWarps), 32 * kWarps, 0, queue.stream, Given{graph, capacity}, arguments...);
  };
  by_rows(degree_kernel<T>, values, space);
  if (mode == Normalization::published) by_rows(published_scale_kernel<T>, values, space);
  by_rows(apply_kernel<T>, values, space, normalized);
}

template <class T>
void normalize_edges_backward(Csr graph, int64_t capacity, const T* values, Normalization mode,
                              const T* grad_normalized, T* grad_values, void* workspace, Queue queue) {
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  if (mode == Normalization::row) {
    check(cudaMemcpyAsync(grad_values, grad_normalized, size_t(capacity) * sizeof(T), cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
    return;
  }
  zero(grad_values, capacity, queue);
  if (graph.n == 0) return;
  Workspace memory(workspace);
  const Space space = carve(memory, graph.n);
  const bool published = mode == Normalization::published;
  const auto by_rows = [&](auto kernel, auto... arguments) {
    launch(kernel, blocks(graph.n, kWarps), 32 * kWarps, 0, queue.stream, Given{graph, capacity}, arguments...);
  };
  by_rows(degree_kernel<T>, values, space);
  if (published) by_rows(published_scale_kernel<T>, values, space);
  by_rows(to_scale_kernel<T>, values, grad_normalized, published, space);
  if (published) by_rows(to_degree_kernel<T>, values, space);
  by_rows(edges_backward_kernel<T>, grad_normalized, space, grad_values);
}

#define GLOSS_INSTANTIATE(T)                                                                                            \
  template void combine_edges<T>(int64_t, int64_t, const int64_t*, const int64_t*, Symmetrize, const T*, T*, Queue);    \
  template void combine_edges_backward<T>(int64_t, int64_t, const int64_t*, const int64_t*, Symmetrize, const T*,       \
                                          const T*, T*, Queue);                                                         \
  template int64_t normalize_edges_workspace<T>(int64_t, int64_t, Normalization);                                       \
  template int64_t normalize_edges_backward_workspace<T>(int64_t, int64_t, Normalization);                              \
  template void normalize_edges<T>(Csr, int64_t, const T*, Normalization, T*, void*, Queue);                            \
  template void normalize_edges_backward<T>(Csr, int64_t, const T*, Normalization, const T*, T*, void*, Queue);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cuda
