// The kernels of the solver (solver.cuh). A row of a panel belongs to a group of lanes, 16 bytes a lane, so an edge
// costs one coalesced read of the neighbour's row; lanes whose columns have all converged skip their part.
//
// Bytes of an iteration, v = rows x width x sizeof(T), 3 launches: multiply reads p and the edges, gathers a row an
// edge (from the second-level cache where p fits), writes q; advance reads q and r, writes r; turn reads r, p, e,
// writes p, e: 10 v + edges (8 + 4 width) bytes. 10^6 nodes, 70 % fixed, 32 columns of float: v = 38 MB, 2.4 million
// edges, 0.40 + 0.33 GB, 0.1 to 0.2 ms at 4.3 TB/s. The end of a round: 3 launches, 12 v and another gather.
#include "propagate/solver.cuh"

#include <type_traits>

namespace gloss::cuda {
namespace {

template <class T>
__global__ void start_kernel(Solver<T> s, double tol, const double* tol_pointer, double finest, int64_t* iterations,
                             double* used_tol) {
  if (tol_pointer) tol = fmax(*tol_pointer, finest);
  *s.control = Control{};
  s.control->advanced = -1;
  set_tol<T>(*s.control, tol);
  *iterations = 0;
  if (used_tol) *used_tol = tol;
}

// sum += the neighbours' rows, times their weights: of every `step`-th edge from `begin` on. The loads of a batch of
// edges are in flight together, those past the end left out.
template <class Sum, class T>
__device__ inline void add_neighbors(const Edge<T>* __restrict__ edges, int begin, int end, int step,
                                     const Pack<T>* __restrict__ x, int lanes, int lane, Sum* sum) {
  constexpr int kFlight = sizeof(Sum) == 4 ? 4 : sizeof(T) == 8 ? 3 : 2;  // more do not fit in 64 registers
#pragma unroll 1
  for (int first = begin; first < end; first += kFlight * step) {
    Edge<T> edge[kFlight];
    Pack<T> other[kFlight];
#pragma unroll
    for (int u = 0; u < kFlight; ++u) edge[u] = first + u * step < end ? edges[first + u * step] : Edge<T>{T(0), -1};
#pragma unroll
    for (int u = 0; u < kFlight; ++u) other[u] = edge[u].col >= 0 ? x[int64_t(edge[u].col) * lanes + lane] : Pack<T>{};
#pragma unroll
    for (int u = 0; u < kFlight; ++u)
#pragma unroll
      for (int v = 0; v < Pack<T>::kSize; ++v) sum[v] += Sum(edge[u].value) * Sum(other[u].v[v]);
  }
}

// multiply: q = p - B p and p . q. residual: r = b - (x - B x), summed in double, and |r|^2; p = r and e = 0.
template <class T, bool kResidual>
__global__ void __launch_bounds__(kPanelThreads, 2) apply_kernel(Solver<T> s, Panel panel, int64_t job) {
  using Sum = std::conditional_t<kResidual, double, T>;
  constexpr int kSize = Pack<T>::kSize;
  GLOSS_SHARED(double, space, [kPanelThreads * kSize]);
  if (!s.is(job, kResidual ? Phase::end_round : Phase::iterate)) return;
  const Place at(panel.lanes);
  const int width = panel.lanes * kSize, own = at.lane * kSize;
  bool wanted = at.valid;
  if (!kResidual && at.valid) {
    wanted = false;
#pragma unroll
    for (int v = 0; v < kSize; ++v) wanted |= s.active[own + v] != 0;
  }
  const Pack<T>* __restrict__ x = kResidual ? s.x : s.p;
  const Edge<T>* __restrict__ edges = s.hidden.edge;
  double dots[kSize] = {};
  const auto store = [&](unsigned row, const Sum* sum) {
    const int64_t to = int64_t(row) * panel.lanes + at.lane;
    const Pack<T> mine = x[to];
    Pack<T> out;
    if constexpr (kResidual) {
      const Pack<T> b = s.b[to];
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        const double value = double(b.v[v]) - double(mine.v[v]) + sum[v];
        out.v[v] = T(value);
        dots[v] += value * value;
      }
      s.r[to] = out;
      s.p[to] = out;
      s.e[to] = Pack<T>{};
    } else {
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        out.v[v] = mine.v[v] - sum[v];
        dots[v] += double(mine.v[v]) * double(out.v[v]);
      }
      s.q[to] = out;
    }
  };

  const auto rows = unsigned(s.hidden.rows());
  const int64_t long_rows = s.hidden.long_rows();
  if (wanted) {
    Row next = at.first_row() < rows ? s.hidden.row[at.first_row()] : Row{};  // one load less to wait for
    for (unsigned i = at.first_row(); i < rows; i += at.stride()) {
      const Row row = next;
      if (i + at.stride() < rows) next = s.hidden.row[i + at.stride()];
      if (row.is_long) continue;
      Sum sum[kSize] = {};
      add_neighbors(edges + row.begin, 0, row.count, 1, x, panel.lanes, at.lane, sum);
      store(i, sum);
    }
  }
  for (int64_t l = blockIdx.x; l < long_rows; l += gridDim.x) {
    const auto i = unsigned(s.hidden.long_row[l]);
    const Row row = s.hidden.row[i];
    Sum sum[kSize] = {};
    if (wanted) add_neighbors(edges + row.begin, at.group, row.count, at.groups, x, panel.lanes, at.lane, sum);
    if (at.valid)
#pragma unroll
      for (int v = 0; v < kSize; ++v) space[at.group * width + own + v] = double(sum[v]);
    fold(space, at.groups, width);
    if (wanted && at.group == 0) {
#pragma unroll
      for (int v = 0; v < kSize; ++v) sum[v] = Sum(space[own + v]);
      store(i, sum);
    }
  }

  if (at.valid)
#pragma unroll
    for (int v = 0; v < kSize; ++v) space[at.group * width + own + v] = dots[v];
  if (!column_sums(space, at.groups, width, s.partials, &s.control->ticket)) return;
  if constexpr (kResidual) {
    decide(s, panel, space);
  } else if (const int c = int(threadIdx.x); c < width) {
    // p.Ap below the rounding of r.r: a direction that the system cannot tell from a null vector. The column stays
    // where it is, and its residual says so.
    const bool active = s.active[c] && space[c] > precision(T(0)) * s.rr[c];
    s.active[c] = active;
    s.step[c] = active ? T(s.rr[c] / space[c]) : T(0);
  }
}

// The numbers of a lane's columns; whether one is not 0.
template <class T>
__device__ inline bool load_columns(const T* __restrict__ columns, const Place& at, Pack<T>& out) {
  bool any = false;
  out = Pack<T>{};
  if (at.valid)
#pragma unroll
    for (int v = 0; v < Pack<T>::kSize; ++v) out.v[v] = columns[at.lane * Pack<T>::kSize + v], any |= out.v[v] != T(0);
  return any;
}

// r -= step q and |r|^2; beta, and which columns go on.
template <class T>
__global__ void __launch_bounds__(kPanelThreads, 2)
advance_kernel(Solver<T> s, Panel panel, int64_t job, int64_t slot) {
  constexpr int kSize = Pack<T>::kSize;
  GLOSS_SHARED(double, space, [kPanelThreads * kSize]);
  if (!s.is(job, Phase::iterate)) return;
  const Place at(panel.lanes);
  const int width = panel.lanes * kSize;
  const auto rows = unsigned(s.hidden.rows());
  Pack<T> step;
  double dots[kSize] = {};
  Pack<T>* __restrict__ residual = s.r;
  const Pack<T>* __restrict__ product = s.q;
  if (load_columns(s.step, at, step))
    for (unsigned i = at.first_row(); i < rows; i += 2 * at.stride()) {  // two rows, for more loads in flight
      const bool both = i + at.stride() < rows;
      const int64_t to[2] = {int64_t(i) * panel.lanes + at.lane, int64_t(i + at.stride()) * panel.lanes + at.lane};
      Pack<T> r[2] = {residual[to[0]], both ? residual[to[1]] : Pack<T>{}};
      const Pack<T> q[2] = {product[to[0]], both ? product[to[1]] : Pack<T>{}};
#pragma unroll
      for (int u = 0; u < 2; ++u) {
#pragma unroll
        for (int v = 0; v < kSize; ++v) {
          r[u].v[v] -= step.v[v] * q[u].v[v];
          dots[v] += double(r[u].v[v]) * double(r[u].v[v]);
        }
        if (u == 0 || both) residual[to[u]] = r[u];
      }
    }
  if (at.valid)
#pragma unroll
    for (int v = 0; v < kSize; ++v) space[at.group * width + at.lane * kSize + v] = dots[v];
  if (!column_sums(space, at.groups, width, s.partials, &s.control->ticket)) return;
  Control& control = *s.control;
  bool active = false;
  if (const int c = int(threadIdx.x); c < width) {
    active = s.active[c];
    s.beta[c] = active ? T(space[c] / s.rr[c]) : T(0);
    if (active) s.rr[c] = space[c], active = sqrt(space[c]) > control.target * s.norm[c];
    s.active[c] = active;
  }
  const bool any = __syncthreads_or(active);
  if (threadIdx.x != 0) return;
  control.advanced = slot;
  ++control.iterations;
  if (!any || control.iterations >= s.max_iter - control.total) control.phase = Phase::end_round;
}

// e += step p, which could wait until p is read again; p = r + beta p.
template <class T>
__global__ void __launch_bounds__(kPanelThreads, 2) turn_kernel(Solver<T> s, Panel panel, int64_t job, int64_t slot) {
  if (s.control->job != job || s.control->advanced != slot) return;
  const Place at(panel.lanes);
  const auto rows = unsigned(s.hidden.rows());
  Pack<T> step, beta;
  load_columns(s.beta, at, beta);
  Pack<T> *__restrict__ direction = s.p, *__restrict__ sum = s.e;
  const Pack<T>* __restrict__ residual = s.r;
  if (load_columns(s.step, at, step))
    for (unsigned i = at.first_row(); i < rows; i += at.stride()) {
      const int64_t to = int64_t(i) * panel.lanes + at.lane;
      const Pack<T> r = residual[to];
      Pack<T> p = direction[to], e = sum[to];
#pragma unroll
      for (int v = 0; v < Pack<T>::kSize; ++v) {
        e.v[v] += step.v[v] * p.v[v];
        p.v[v] = r.v[v] + beta.v[v] * p.v[v];
      }
      sum[to] = e;
      direction[to] = p;
    }
}

// x += e at the end of a round; 0 in a column with b = 0.
template <class T>
__global__ void __launch_bounds__(kPanelThreads, 2) add_kernel(Solver<T> s, Panel panel, int64_t job) {
  if (!s.is(job, Phase::end_round)) return;
  const Place at(panel.lanes);
  const auto rows = unsigned(s.hidden.rows());
  if (!at.valid) return;
  bool zero[Pack<T>::kSize];
#pragma unroll
  for (int v = 0; v < Pack<T>::kSize; ++v) zero[v] = !(s.norm[at.lane * Pack<T>::kSize + v] > 0);
  Pack<T>* __restrict__ solution = s.x;
  const Pack<T>* __restrict__ sum = s.e;
  for (unsigned i = at.first_row(); i < rows; i += at.stride()) {
    const int64_t to = int64_t(i) * panel.lanes + at.lane;
    Pack<T> x = solution[to];
    const Pack<T> e = sum[to];
#pragma unroll
    for (int v = 0; v < Pack<T>::kSize; ++v) x.v[v] = zero[v] ? T(0) : x.v[v] + e.v[v];
    solution[to] = x;
  }
}

template <class T>
__global__ void __launch_bounds__(kPanelThreads)
take_kernel(Solver<T> s, Panel panel, int64_t job, const int* __restrict__ node, T* __restrict__ out,
            int64_t stride, After after, int64_t* iterations, double* used_tol) {
  if (!s.is(job, Phase::solved)) return;
  const int width = panel.lanes * Pack<T>::kSize;
  const Place at(width);
  const auto rows = unsigned(s.hidden.rows());
  const T* __restrict__ x = reinterpret_cast<const T*>(s.x);
  if (at.valid && at.lane < panel.columns)
    for (unsigned row = at.first_row(); row < rows; row += at.stride())
      out[int64_t(node ? unsigned(node[row]) : row) * stride + panel.first + at.lane] =
          T(s.hidden.scale[row] * double(x[int64_t(row) * width + at.lane]));
  if (!is_last_block(&s.control->ticket) || threadIdx.x != 0) return;
  Control& control = *s.control;
  if (control.iterations > control.slowest) control.slowest = control.iterations;
  if (after == After::check_rows) {
    control.phase = Phase::check_rows;
  } else if (after == After::next_panel) {
    ++control.job;
  } else {
    *iterations = control.total + control.slowest;
    if (used_tol) *used_tol = control.tol;
    control.job = kAllDone;
  }
}

}  // namespace

template <class T>
void start_solver(const Solver<T>& solver, double tol, const double* tol_pointer, double finest, int64_t* iterations,
                  double* used_tol, Queue queue) {
  launch(start_kernel<T>, 1, 1, 0, queue.stream, solver, tol, tol_pointer, finest, iterations, used_tol);
}

template <class T>
void queue_round(const Solver<T>& solver, const Panel& panel, int64_t job, int count, int64_t& slot, Queue queue) {
  const auto queue_one = [&](int at_once, auto kernel, auto... arguments) {
    launch(kernel, panel_blocks(solver.hidden.n, panel.lanes, at_once), kPanelThreads, 0, queue.stream, solver, panel,
           job, arguments...);
  };
  for (int i = 0; i < count; ++i, ++slot) {
    queue_one(2, apply_kernel<T, false>);
    queue_one(2, advance_kernel<T>, slot);
    queue_one(3, turn_kernel<T>, slot);
  }
  queue_one(3, add_kernel<T>);
  queue_one(2, apply_kernel<T, true>);
}

template <class T>
void queue_take(const Solver<T>& solver, const Panel& panel, int64_t job, const int* node, T* out, int64_t stride,
                After after, int64_t* iterations, double* used_tol, Queue queue) {
  launch(take_kernel<T>, panel_blocks(solver.hidden.n, panel.lanes * Pack<T>::kSize, 3), kPanelThreads, 0, queue.stream,
         solver, panel, job, node, out, stride, after, iterations, used_tol);
}

#define GLOSS_INSTANTIATE(T)                                                                                     \
  template void start_solver<T>(const Solver<T>&, double, const double*, double, int64_t*, double*, Queue);      \
  template void queue_round<T>(const Solver<T>&, const Panel&, int64_t, int, int64_t&, Queue);                   \
  template void queue_take<T>(const Solver<T>&, const Panel&, int64_t, const int*, T*, int64_t, After, int64_t*, \
                              double*, Queue);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cuda
