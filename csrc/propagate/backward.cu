// Gradient of label propagation on the GPU (gloss_cuda.h: propagate_backward); the formulas stand in backward.cpp.
//
// After the solve one pass over the entries of the graph, a few lanes an entry. Both entries of an undirected weight
// are computed, each in the same arithmetic, so they are equal without a search for the mirror entry. Bytes for 10^6
// nodes of 27 edges, 70 % fixed, 32 classes of float: 13.8 million entries with a row of the system gather 2 rows of
// 128 bytes: 3.5 GB and the entries 0.4 GB, 1 ms at 4.3 TB/s.
#include <algorithm>
#include <stdexcept>

#include "propagate/solver.cuh"

namespace gloss::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <class T>
struct Space {
  Solver<T> solver;
  T* lam;        // [n, C], by row of the system
  double* pull;  // [n]: eps Lam_i . (F_i - prior)
};
template <class T>
Space<T> carve(Workspace& memory, int64_t n, int64_t capacity, int64_t num_classes) {
  Space<T> out{};
  out.solver = carve_solver<T>(memory, n, capacity, num_classes);
  out.lam = memory.take<T>(n * num_classes);
  out.pull = memory.take<double>(n);
  return out;
}

template <class T>
struct Fill {
  const T* grad_result;
  int64_t stride;
  __device__ T gather(const Hidden<T>&, int64_t, int64_t, int, int) const { return T(0); }
  __device__ T right(const Hidden<T>& hidden, int64_t row, int64_t column, T) const {
    return T(hidden.scale[row] * double(grad_result[hidden.node[row] * stride + column]));
  }
  __device__ T start(const Hidden<T>&, int64_t, int64_t) const { return T(0); }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
pull_kernel(Hidden<T> hidden, int64_t num_classes, double prior_strength, const T* __restrict__ lam,
            const T* __restrict__ result, const T* __restrict__ prior, double* __restrict__ pull) {
  const int64_t rows = hidden.rows();
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; row < rows; row += int64_t(gridDim.x) * kWarps) {
    const T *own = lam + row * num_classes, *f = result + hidden.node[row] * num_classes;
    double sum = 0;
    for (int64_t c = threadIdx.x % 32; c < num_classes; c += 32)
      sum += double(own[c]) * (double(f[c]) - double(prior[c]));
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) pull[row] = prior_strength * sum;
  }
}

// The row that holds entry e < crow[n], at or after `row`.
__device__ inline int64_t row_of_entry(const int64_t* __restrict__ crow, int64_t n, int64_t row, int64_t e) {
  for (int near = 0; near < 3; ++near, ++row)
    if (e < crow[row + 1]) return row;
  int64_t high = n - 1;  // the first row whose end lies after e
  while (row < high) {
    const int64_t middle = (row + high) / 2;
    if (e < crow[middle + 1]) high = middle;
    else row = middle + 1;
  }
  return row;
}

template <class T>
struct Edges {
  Csr graph;
  int64_t capacity, num_classes;
  const uint8_t* reachable;
  const T *result, *lam;
  const double* pull;  // null: no prior
  bool spreading;
  double alpha;
};

// A warp's part of 32 entries: first a lane looks one up, then `lanes` threads, a power of two, compute one that takes
// part in the system. Those that do not become 0, and so do entries past crow[n].
template <class T>
__global__ void __launch_bounds__(kThreads)
edges_kernel(Hidden<T> hidden, Edges<T> a, int64_t warp_entries, int lanes, T* __restrict__ grad_values) {
  struct Entry {
    int lane, i, j, row_i, row_j;
  };
  GLOSS_SHARED(Entry, entries, [kWarps][32]);
  Entry* const mine = entries[threadIdx.x / 32];
  const int64_t begin = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * warp_entries, nnz = a.graph.crow[a.graph.n];
  const int64_t end = begin + warp_entries < a.capacity ? begin + warp_entries : a.capacity;
  const int warp_lane = int(threadIdx.x) % 32, lane = warp_lane % lanes, group = warp_lane / lanes, groups = 32 / lanes;
  const T *__restrict__ result = a.result, *__restrict__ lam = a.lam;
  int64_t i = 0;
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t e = first + warp_lane;
    Entry entry{warp_lane, 0, 0, -1, -1};
    bool takes_part = false;
    if (e < nnz && e < end) {
      i = row_of_entry(a.graph.crow, a.graph.n, i, e);
      entry.i = int(i), entry.j = int(a.graph.col[e]);
      entry.row_i = hidden.row_of[i], entry.row_j = hidden.row_of[entry.j];
      takes_part =
          entry.i != entry.j && (entry.row_i >= 0 || entry.row_j >= 0) && a.reachable[i] && a.reachable[entry.j];
    }
    const unsigned parts = __ballot_sync(0xffffffffu, takes_part);
    if (takes_part) mine[__popc(parts & ((1u << warp_lane) - 1))] = entry;
    else if (e < end) grad_values[e] = T(0);
    __syncwarp();
    const int count = __popc(parts);
    for (int at = 0; at < count; at += groups) {
      const bool active = at + group < count;
      const Entry now = active ? mine[at + group] : Entry{0, 0, 0, -1, -1};
      const T *f_i = result + now.i * a.num_classes, *f_j = result + now.j * a.num_classes;
      const T *lam_i = lam + now.row_i * a.num_classes,
              *lam_j = lam + now.row_j * a.num_classes;  // read where row >= 0
      double sum = 0, other = 0;
      if (active && a.spreading) {
        for (int64_t c = lane; c < a.num_classes; c += lanes) {
          sum += double(lam_i[c]) * double(f_j[c]);
          other += double(lam_j[c]) * double(f_i[c]);
        }
        sum = a.alpha * (sum + other);
      } else if (active) {
#pragma unroll 4
        for (int64_t c = lane; c < a.num_classes; c += lanes) {
          const T l = (now.row_i >= 0 ? lam_i[c] : T(0)) - (now.row_j >= 0 ? lam_j[c] : T(0));
          sum -= double(l) * double(f_i[c] - f_j[c]);
        }
        if (a.pull && lane == 0)
          sum -= (now.row_i >= 0 ? a.pull[now.row_i] : 0.0) + (now.row_j >= 0 ? a.pull[now.row_j] : 0.0);
      }
      for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (active && lane == 0) grad_values[first + now.lane] = T(0.5 * sum);
    }
    __syncwarp();
  }
}

}  // namespace

template <class T>
int64_t propagate_backward_workspace(int64_t n, int64_t capacity, int64_t num_classes) {
  Workspace memory(nullptr);
  carve<T>(memory, n, capacity, num_classes);
  return memory.size();
}

template <class T>
void propagate_backward(Csr graph, int64_t capacity, const T* values, int64_t num_classes, const uint8_t* fixed,
                        const uint8_t* reachable, const T* prior, const T* result, const T* grad_result,
                        cpu::PropagateOptions options, const double* tol, T* grad_values, double* residual,
                        int64_t* iterations, void* workspace, Queue queue) {
  if (graph.n > INT32_MAX) throw std::invalid_argument("graph must have at most 2^31 - 1 nodes, got more");
  const DeviceGuard guard(queue.device);
  const bool spreading = is_spreading(options), pulls = !spreading && options.prior_strength > 0;
  const double finest = cpu::finest_tol<T>();
  Workspace memory(workspace);
  Space<T> space = carve<T>(memory, graph.n, capacity, num_classes);
  Solver<T>& solver = space.solver;
  solver.max_iter = options.max_iter;
  solver.residual = residual;
  start_solver(solver, options.tol, tol, finest, iterations, nullptr, queue);
  build_hidden(graph, values, fixed, reachable, options, solver.hidden, queue);
  if (num_classes > 0) {
    const int64_t panels = num_panels<T>(graph.n, num_classes);
    const auto prepare = [&](const Panel& panel, int64_t job) {
      launch(prepare_kernel<T, Fill<T>>, panel_blocks(graph.n, panel.lanes * Pack<T>::kSize), kPanelThreads, 0,
             queue.stream, solver, panel, job, false, Fill<T>{grad_result, num_classes});
      return false;
    };
    run_jobs(solver, num_classes, 1, queue, prepare, [&](const Panel& panel, int64_t number, int64_t job) {
      queue_take(solver, panel, job, nullptr, space.lam, num_classes,
                 number + 1 < panels ? After::next_panel : After::finish, iterations, nullptr, queue);
    });
  }
  if (pulls)
    launch(pull_kernel<T>, panel_blocks(graph.n, 32), kThreads, 0, queue.stream, solver.hidden, num_classes,
           options.prior_strength, space.lam, result, prior, space.pull);
  if (capacity == 0) return;
  int lanes = 1;
  while (lanes < 32 && 4 * lanes < num_classes) lanes *= 2;
  const Edges<T> edges{graph,     capacity,     num_classes, reachable, result, space.lam, pulls ? space.pull : nullptr,
                       spreading, options.alpha};
  // Of large graphs more entries a warp: the search for the first one's row is shared.
  const int64_t warp_entries = 32 * std::max<int64_t>(1, std::min<int64_t>(16, capacity >> 18));
  const int64_t a_block = warp_entries * kWarps;
  launch(edges_kernel<T>, unsigned((capacity + a_block - 1) / a_block), kThreads, 0, queue.stream, solver.hidden, edges,
         warp_entries, lanes, grad_values);
}

#define GLOSS_INSTANTIATE(T)                                                                                           \
  template int64_t propagate_backward_workspace<T>(int64_t, int64_t, int64_t);                                         \
  template void propagate_backward<T>(Csr, int64_t, const T*, int64_t, const uint8_t*, const uint8_t*, const T*,       \
                                      const T*, const T*, cpu::PropagateOptions, const double*, T*, double*, int64_t*, \
                                      void*, Queue);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cuda
