// Label propagation on the GPU, forward (gloss_cuda.h: propagate); the formulas and the conditions are those of
// propagate.cpp.
//
// Launches beside the solver's: 22. Bytes for 10^6 nodes, 70 % fixed, 32 classes of float: the system 0.3 GB
// (hidden.cu), rows that are not solved for 0.23 GB, right-hand sides 5.7 million rows of 128 bytes, the result and its
// completion 0.2 GB: 0.4 ms at 4.3 TB/s; and an iteration 0.1 to 0.2 ms (solver.cu).
#include <algorithm>
#include <stdexcept>

#include "propagate/solver.cuh"

namespace gloss::cuda {
namespace {

constexpr int kRanges = 512;  // blocks that sum the fixed rows
constexpr int kWarps = kPanelThreads / 32;

template <class T>
struct Space {
  Solver<T> solver;
  double *mean_partials, *mean;  // [kRanges, C], [C]
};
template <class T>
Space<T> carve(Workspace& memory, int64_t n, int64_t capacity, int64_t num_classes) {
  Space<T> out{};
  out.solver = carve_solver<T>(memory, n, capacity, num_classes);
  out.mean_partials = memory.take<double>(kRanges * num_classes);
  out.mean = memory.take<double>(num_classes);
  return out;
}

// Right-hand sides and starts; see prepare_kernel.
template <class T>
struct Fill {
  Csr graph;
  const T* values;
  const uint8_t* fixed;
  const T *boundary, *prior, *last;  // last: the result of the attempt before, or null
  int64_t stride;
  bool spreading, has_initial;
  double alpha, prior_strength;

  // The fixed neighbours. No load waits at a branch, so that those of a batch of edges are in flight together: an edge
  // that does not count reads boundary[column], one cache line for all.
  __device__ T gather(const Hidden<T>& hidden, int64_t row, int64_t column, int part, int parts) const {
    constexpr int kFlight = 4;
    T sum = 0;
    if (spreading) return sum;
    const int64_t i = hidden.node[row], end = graph.crow[i + 1];
    const double scale = hidden.scale[row];
    for (int64_t first = graph.crow[i] + part; first < end; first += kFlight * parts) {
      int64_t neighbor[kFlight];
      T weight[kFlight], f[kFlight];
#pragma unroll
      for (int u = 0; u < kFlight; ++u) {
        const int64_t e = first + u * parts < end ? first + u * parts : end - 1;
        neighbor[u] = graph.col[e];
        weight[u] = values[e];
      }
      bool counts[kFlight];
#pragma unroll
      for (int u = 0; u < kFlight; ++u) counts[u] = fixed[neighbor[u]];
#pragma unroll
      for (int u = 0; u < kFlight; ++u) {
        counts[u] = counts[u] & (weight[u] > 0) & (first + u * parts < end);
        f[u] = boundary[(counts[u] ? neighbor[u] : 0) * stride + column];
      }
#pragma unroll
      for (int u = 0; u < kFlight; ++u) sum += counts[u] ? T(double(weight[u]) * scale) * f[u] : T(0);
    }
    return sum;
  }
  __device__ T right(const Hidden<T>& hidden, int64_t row, int64_t column, T sum) const {
    const int64_t i = hidden.node[row];
    if (spreading) return fixed[i] ? T((1 - alpha) * double(boundary[i * stride + column])) : T(0);
    const double pull = prior_strength * hidden.degree[row] * hidden.scale[row];
    return pull > 0 ? sum + T(pull * double(prior[column])) : sum;
  }
  __device__ T start(const Hidden<T>& hidden, int64_t row, int64_t column) const {
    const int64_t i = hidden.node[row];
    if (!last && fixed[i]) return T(0);
    return T(double((last ? last : boundary)[i * stride + column]) / hidden.scale[row]);
  }
};

// Rows that are not solved for; sums and number of the fixed rows. Block (range, 128 columns).
template <class T>
__global__ void __launch_bounds__(kPanelThreads, 2)
rest_kernel(Solver<T> s, int64_t num_classes, const uint8_t* __restrict__ fixed, const T* __restrict__ boundary,
            const T* __restrict__ prior, bool spreading, T* __restrict__ result, double* __restrict__ partials) {
  GLOSS_SHARED(double, space, [kPanelThreads]);
  const int64_t first = int64_t(blockIdx.y) * kMostColumns, n = s.hidden.n;
  const int width = num_classes - first < kMostColumns ? int(num_classes - first) : kMostColumns;
  const Place at(width);
  const int64_t column = first + at.lane;
  const T unknown = spreading || !at.valid ? T(0) : prior[column];
  constexpr int kFlight = 4;
  double sum = 0;
  int count = 0;
  if (at.valid)
    for (int64_t i = at.first_row(); i < n; i += kFlight * at.stride()) {  // loads of several rows in flight
      bool is_fixed[kFlight], solved[kFlight];
      T given[kFlight];
#pragma unroll
      for (int u = 0; u < kFlight; ++u) {
        const int64_t row = i + u * int64_t(at.stride());
        is_fixed[u] = (row < n) & fixed[row < n ? row : n - 1];
        solved[u] = (row >= n) | (s.hidden.row_of[row < n ? row : n - 1] >= 0);
      }
#pragma unroll
      for (int u = 0; u < kFlight; ++u)
        given[u] = boundary[(is_fixed[u] ? i + u * int64_t(at.stride()) : 0) * num_classes + column];
#pragma unroll
      for (int u = 0; u < kFlight; ++u) {
        if (!is_fixed[u]) given[u] = 0;
        if (!solved[u])
          result[(i + u * int64_t(at.stride())) * num_classes + column] = is_fixed[u] ? given[u] : unknown;
        sum += double(given[u]);
        count += is_fixed[u];
      }
    }
  if (at.valid) space[threadIdx.x] = sum;
  fold(space, at.groups, width);
  if (int(threadIdx.x) < width) partials[int64_t(blockIdx.x) * num_classes + first + threadIdx.x] = space[threadIdx.x];
  if (blockIdx.y == 0 && at.valid && at.lane == 0 && count > 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(&s.control->num_fixed), static_cast<unsigned long long>(count));
}

template <class T>
__global__ void __launch_bounds__(kPanelThreads)
mean_kernel(Solver<T> s, int64_t num_classes, int ranges, const double* __restrict__ partials,
            double* __restrict__ mean) {
  GLOSS_SHARED(double, space, [kPanelThreads]);
  const int64_t first = int64_t(blockIdx.x) * kMostColumns;
  const int width = num_classes - first < kMostColumns ? int(num_classes - first) : kMostColumns;
  const Place at(width);
  double sum = 0;
  if (at.valid) {
#pragma unroll 8
    for (int range = at.group; range < ranges; range += at.groups)
      sum += partials[range * num_classes + first + at.lane];
    space[threadIdx.x] = sum;
  }
  fold(space, at.groups, width);
  const int64_t count = s.control->num_fixed > 0 ? s.control->num_fixed : 1;
  if (int(threadIdx.x) < width) mean[first + threadIdx.x] = space[threadIdx.x] / double(count);
}

// 1 - the sum of a row, by a warp.
template <class T>
__device__ inline double lack_of(const T* __restrict__ row, int64_t num_classes) {
  double sum = 0;
  for (int64_t c = threadIdx.x % 32; c < num_classes; c += 32) sum += double(row[c]);
  return 1 - warp_sum(sum);
}

// The most that a row lacks; then the end of the attempt: a further one with a smaller tol, or what is to be returned.
template <class T>
__global__ void __launch_bounds__(kPanelThreads)
check_kernel(Solver<T> s, int64_t num_classes, int64_t job, double tol, const T* __restrict__ result,
             const double* __restrict__ mean, int64_t* iterations, double* used_tol) {
  GLOSS_SHARED(double, space, [kPanelThreads]);
  if (!s.is(job, Phase::check_rows)) return;
  const int64_t rows = s.hidden.rows();
  double largest = 0;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; row < rows; row += int64_t(gridDim.x) * kWarps)
    largest = fmax(largest, fabs(lack_of(result + s.hidden.node[row] * num_classes, num_classes)));
  const auto block_max = [&](double value) {
    space[threadIdx.x] = value;
    for (int half = kPanelThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (int(threadIdx.x) < half) space[threadIdx.x] = fmax(space[threadIdx.x], space[threadIdx.x + half]);
    }
    __syncthreads();
    return space[0];
  };
  largest = block_max(largest);
  if (threadIdx.x == 0) s.partials[blockIdx.x] = largest;
  Control& control = *s.control;
  if (!is_last_block(&control.ticket)) return;

  largest = 0;
  for (int block = threadIdx.x; block < int(gridDim.x); block += kPanelThreads)
    largest = fmax(largest, __ldcg(s.partials + block));
  largest = block_max(largest);
  double sum = 0;
  for (int64_t c = threadIdx.x; c < num_classes; c += kPanelThreads) sum += mean[c];
  __syncthreads();
  space[threadIdx.x] = sum;
  fold(space, kPanelThreads, 1);
  const bool completes = fabs(space[0] - 1) <= 1e-6;  // else the fixed rows are no classes of one label
  const double allowed = fmax(10 * tol, 0.01), finest = finest_attempt<T>();
  const int64_t total = control.total + control.slowest;
  const bool lacking = completes && largest > allowed;
  const bool again = lacking && control.tol > finest && total < s.max_iter;
  if (lacking && !again)
    for (int64_t c = threadIdx.x; c < num_classes; c += kPanelThreads) s.residual[c] = fmax(s.residual[c], largest);
  __syncthreads();  // all have read control
  if (threadIdx.x != 0) return;
  control.total = total;
  control.slowest = 0;
  if (again) {
    set_tol<T>(control, next_tol(control.tol, finest));
    ++control.job;
    return;
  }
  *iterations = total;
  *used_tol = control.tol;
  control.complete = completes;
  control.job = kAllDone;
}

// What a row lacks goes to the classes in the proportion that they have among the fixed rows (propagate.cpp says why).
template <class T>
__global__ void __launch_bounds__(kPanelThreads)
complete_kernel(Solver<T> s, int64_t num_classes, const double* __restrict__ mean, T* result) {
  if (!s.control->complete) return;
  const int64_t rows = s.hidden.rows();
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; row < rows; row += int64_t(gridDim.x) * kWarps) {
    T* f = result + s.hidden.node[row] * num_classes;
    const double lacks = lack_of(f, num_classes);
    for (int64_t c = threadIdx.x % 32; c < num_classes; c += 32) f[c] += T(lacks * mean[c]);
  }
}

}  // namespace

template <class T>
int64_t propagate_workspace(int64_t n, int64_t capacity, int64_t num_classes) {
  Workspace memory(nullptr);
  carve<T>(memory, n, capacity, num_classes);
  return memory.size();
}

template <class T>
void propagate(Csr graph, int64_t capacity, const T* values, int64_t num_classes, const uint8_t* fixed,
               const T* boundary, bool has_initial, const T* prior, cpu::PropagateOptions options, T* result,
               double* residual, uint8_t* reachable, double* used_tol, int64_t* iterations, void* workspace,
               Queue queue) {
  if (graph.n > INT32_MAX) throw std::invalid_argument("graph must have at most 2^31 - 1 nodes, got more");
  const DeviceGuard guard(queue.device);
  const bool spreading = is_spreading(options), completes = !spreading && !(options.prior_strength > 0);
  Workspace memory(workspace);
  Space<T> space = carve<T>(memory, graph.n, capacity, num_classes);
  Solver<T>& solver = space.solver;
  solver.max_iter = options.max_iter;
  solver.residual = residual;
  start_solver(solver, options.tol, nullptr, 0, iterations, used_tol, queue);
  find_reachable(graph, values, fixed, reachable, solver.hidden, queue);
  build_hidden(graph, values, fixed, reachable, options, solver.hidden, queue);
  if (num_classes == 0) return;

  const auto tiles = unsigned((num_classes + kMostColumns - 1) / kMostColumns);
  const auto ranges = unsigned(std::max<int64_t>(1, std::min<int64_t>(kRanges, graph.n)));
  launch(rest_kernel<T>, dim3(ranges, tiles), kPanelThreads, 0, queue.stream, solver, num_classes, fixed, boundary,
         prior, spreading, result, space.mean_partials);
  if (completes)
    launch(mean_kernel<T>, tiles, kPanelThreads, 0, queue.stream, solver, num_classes, int(ranges), space.mean_partials,
           space.mean);

  const int64_t panels = num_panels<T>(graph.n, num_classes);
  const auto prepare = [&](const Panel& panel, int64_t job) {
    const bool again = job >= panels, has_start = again || has_initial;
    const Fill<T> fill{graph,
                       values,
                       fixed,
                       boundary,
                       prior,
                       again ? result : nullptr,
                       num_classes,
                       spreading,
                       has_initial,
                       options.alpha,
                       options.prior_strength};
    launch(prepare_kernel<T, Fill<T>>, panel_blocks(graph.n, panel.lanes * Pack<T>::kSize), kPanelThreads, 0,
           queue.stream, solver, panel, job, has_start, fill);
    return has_start;
  };
  const unsigned row_blocks = panel_blocks(graph.n, 32, 4);
  const int64_t attempts = completes ? most_attempts<T>(options.tol) : 1;
  run_jobs(solver, num_classes, attempts, queue, prepare, [&](const Panel& panel, int64_t number, int64_t job) {
    const After after = number + 1 < panels ? After::next_panel : completes ? After::check_rows : After::finish;
    queue_take(solver, panel, job, solver.hidden.node, result, num_classes, after, iterations, used_tol, queue);
    if (after == After::check_rows)
      launch(check_kernel<T>, row_blocks, kPanelThreads, 0, queue.stream, solver, num_classes, job, options.tol,
             result, space.mean, iterations, used_tol);
  });
  if (completes)
    launch(complete_kernel<T>, row_blocks, kPanelThreads, 0, queue.stream, solver, num_classes, space.mean, result);
}

#define GLOSS_INSTANTIATE(T)                                                                            \
  template int64_t propagate_workspace<T>(int64_t, int64_t, int64_t);                                   \
  template void propagate<T>(Csr, int64_t, const T*, int64_t, const uint8_t*, const T*, bool, const T*, \
                             cpu::PropagateOptions, T*, double*, uint8_t*, double*, int64_t*, void*, Queue);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cuda
