// Conjugate gradients for (I - B) x = b on the GPU, panel after panel of right-hand sides, as solver.cpp has them.
//
// All decisions are the device's: step sizes, frozen columns, rounds of correction, the end of a panel. A job is one
// panel of one attempt (a further attempt has a smaller tol). The host queues batches of iterations, each followed by
// what ends a round and a job; kernels whose turn it is not return at once. After each batch the number of the device's
// job goes to the host, which reads it one batch late: the device always has work.
#pragma once
#include "propagate/columns.cuh"
#include "propagate/hidden.cuh"
#include "propagate/mailbox.cuh"

namespace gloss::cuda {

// 16 bytes of a row: what one lane works on.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / int(sizeof(T));
  T v[kSize];
};

// Columns [first, first + columns) of all classes; a row has `lanes` packs, zeros past its columns.
struct Panel {
  int64_t first;
  int columns, lanes;
};

enum class Phase : int { iterate, end_round, solved, check_rows };
constexpr int64_t kAllDone = int64_t(1) << 62;  // as job
constexpr int kRounds = 3;                      // of correction, at most, of a panel

struct Control {
  double tol, target;  // of the residual; of a round's own recurrence, a little lower
  int64_t job;
  int64_t iterations;  // of this panel
  int64_t slowest;     // of the panels of this attempt
  int64_t total;       // of the attempts before
  int64_t advanced;    // the last iteration that was done, in the host's count
  int64_t num_fixed;
  Phase phase;
  int round;
  unsigned ticket;
  int complete;  // the rows of the result are to be completed
};

template <class T>
struct Solver {
  Hidden<T> hidden;
  Pack<T> *b, *x, *r, *p, *q, *e;  // [n, lanes]; x + e is the solution so far, r the residual of e's system
  T *step, *beta;                 // [kMostColumns]
  double *norm, *rr;              // |b|, |r|^2
  int* active;
  double* partials;  // [kMostBlocks, kMostColumns]
  Control* control;
  int64_t max_iter;
  double* residual;  // [num_classes], output

  __device__ bool is(int64_t job, Phase phase) const { return control->job == job && control->phase == phase; }
};

__host__ __device__ inline double precision(float) { return 1.1920928955078125e-07; }
__host__ __device__ inline double precision(double) { return 2.220446049250313e-16; }

// A round aims lower than tol, so that the measured residual passes as well.
template <class T>
__device__ inline void set_tol(Control& control, double tol) {
  control.tol = tol;
  control.target = tol * fmax(0.5, 1 - 100 * precision(T(0)) / tol);
}

template <class T>
Solver<T> carve_solver(Workspace& memory, int64_t n, int64_t capacity, int64_t num_classes);

// Panels of so many columns that the gathered rows of one stay in the second-level cache, but at least 32.
template <class T>
int64_t num_panels(int64_t n, int64_t num_classes);
template <class T>
Panel panel_of(int64_t n, int64_t num_classes, int64_t number);

// Blocks of a kernel whose groups of `lanes` threads take a row at a time: as many as a multiprocessor's registers hold
// at once, times the multiprocessors.
unsigned panel_blocks(int64_t rows, int lanes, int at_once = 2);

// tol_pointer (on the device, may be null) replaces tol, raised to `finest`.
template <class T>
void start_solver(const Solver<T>& solver, double tol, const double* tol_pointer, double finest, int64_t* iterations,
                  double* used_tol, Queue queue);

// In the last block, with the residual's squared norms in `space`: which columns go on, or that the panel is solved.
template <class T>
__device__ void decide(const Solver<T>& s, const Panel& panel, const double* space) {
  const int c = int(threadIdx.x);
  Control& control = *s.control;
  bool wanted = false;
  if (c < panel.lanes * Pack<T>::kSize) {
    const double lacks = s.norm[c] > 0 ? sqrt(space[c]) / s.norm[c] : 0;
    wanted = lacks > control.tol;
    s.active[c] = wanted;
    s.rr[c] = space[c];
    if (c < panel.columns) s.residual[panel.first + c] = lacks;
  }
  const bool any = __syncthreads_or(wanted);
  if (threadIdx.x != 0) return;
  if (!any || control.round == kRounds || control.iterations >= s.max_iter - control.total)
    control.phase = Phase::solved;
  else control.phase = Phase::iterate, ++control.round;
}

// b, the start x, r = p = b, e = 0, |b|. Fill has gather(hidden, row, column, part, parts), a sum over a part of the
// row's edges; right(hidden, row, column, sum) = b and start(hidden, row, column) = x. One thread a column: boundary
// rows have any length, so no packs.
template <class T, class Fill>
__global__ void __launch_bounds__(kPanelThreads, 2)
prepare_kernel(Solver<T> s, Panel panel, int64_t job, bool has_start, Fill fill) {
  GLOSS_SHARED(double, space, [kPanelThreads]);
  if (s.control->job != job) return;
  const int width = panel.lanes * Pack<T>::kSize;
  const Place at(width);
  const bool filled = at.valid && at.lane < panel.columns;
  const int64_t column = panel.first + at.lane;
  double squares = 0;
  const auto store = [&](int64_t row, T sum) {
    const T b = filled ? fill.right(s.hidden, row, column, sum) : T(0);
    const int64_t to = row * width + at.lane;
    reinterpret_cast<T*>(s.b)[to] = reinterpret_cast<T*>(s.r)[to] = reinterpret_cast<T*>(s.p)[to] = b;
    reinterpret_cast<T*>(s.x)[to] = has_start && filled ? fill.start(s.hidden, row, column) : T(0);
    reinterpret_cast<T*>(s.e)[to] = T(0);
    squares += double(b) * double(b);
  };
  const int64_t rows = s.hidden.rows(), long_rows = s.hidden.long_rows();
  if (at.valid)
    for (int64_t row = at.first_row(); row < rows; row += at.stride())
      if (!s.hidden.row[row].is_long) store(row, filled ? fill.gather(s.hidden, row, column, 0, 1) : T(0));
  for (int64_t l = blockIdx.x; l < long_rows; l += gridDim.x) {
    const int64_t row = s.hidden.long_row[l];
    if (at.valid) space[threadIdx.x] = filled ? double(fill.gather(s.hidden, row, column, at.group, at.groups)) : 0.0;
    fold(space, at.groups, width);
    if (at.valid && at.group == 0) store(row, T(space[at.lane]));
  }
  if (at.valid) space[threadIdx.x] = squares;
  if (!column_sums(space, at.groups, width, s.partials, &s.control->ticket)) return;
  if (int(threadIdx.x) < width) s.norm[threadIdx.x] = sqrt(space[threadIdx.x]);
  if (threadIdx.x == 0) s.control->iterations = 0, s.control->round = 0, s.control->phase = Phase::end_round;
  if (!has_start) decide(s, panel, space);  // x = 0: the residual is b
}

// Queues `count` iterations and what ends a round. `slot` numbers the iterations of a call.
template <class T>
void queue_round(const Solver<T>& solver, const Panel& panel, int64_t job, int count, int64_t& slot, Queue queue);

enum class After { next_panel, finish, check_rows };
// out[node[row], first + c] = scale x, once the panel is solved; without node by the system's own rows. Then `after`.
template <class T>
void queue_take(const Solver<T>& solver, const Panel& panel, int64_t job, const int* node, T* out, int64_t stride,
                After after, int64_t* iterations, double* used_tol, Queue queue);

// A further attempt has a hundredth of the tol, down to this; a smaller one T cannot tell from it.
template <class T>
__host__ __device__ inline double finest_attempt() {
  return 8 * precision(T(0));
}
__host__ __device__ inline double next_tol(double tol, double finest) {
  return tol * 1e-2 > finest ? tol * 1e-2 : finest;
}
template <class T>
int64_t most_attempts(double tol) {
  int64_t attempts = 1;
  for (; tol > finest_attempt<T>(); ++attempts) tol = next_tol(tol, finest_attempt<T>());
  return attempts;
}

// Runs the jobs, panel by panel, of at most `attempts` attempts. prepare(panel, job): launches prepare_kernel, tells
// whether there is a start. finish(panel, number of the panel, job): takes the solution and moves on to the next job.
//
// While the stream is captured nothing can be read, so all that the device might want is queued: every job of every
// attempt, each with max_iter iterations and, since a round that ends within a batch leaves the rest of it idle, a
// batch more a round. About 3.5 max_iter launches a job; those past convergence return at once.
template <class T, class Prepare, class Finish>
void run_jobs(const Solver<T>& solver, int64_t num_classes, int64_t attempts, Queue queue, const Prepare& prepare,
              const Finish& finish) {
  constexpr int kBatch = 8;
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  const int64_t n = solver.hidden.n, panels = num_panels<T>(n, num_classes);
  int64_t slot = 0;
  const auto round = [&](int64_t job, int count) {
    const Panel panel = panel_of<T>(n, num_classes, job % panels);
    queue_round(solver, panel, job, count, slot, queue);
    finish(panel, job % panels, job);
  };
  const auto begin = [&](int64_t job) {
    if (prepare(panel_of<T>(n, num_classes, job % panels), job)) round(job, 0);  // measures the start
  };

  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
  if (capture != cudaStreamCaptureStatusNone) {
    for (int64_t job = 0; job < attempts * panels; ++job) {
      begin(job);
      for (int64_t batch = 0; batch < solver.max_iter / kBatch + kRounds; ++batch) round(job, kBatch);
    }
    return;
  }
  Mailbox mailbox(queue);
  for (int64_t job = 0, begun = -1; job < kAllDone;) {
    if (job != begun) begin(job);
    begun = job;
    round(job, kBatch);
    job = mailbox.pending() ? mailbox.receive() : job;  // of the batch before
    if (job < kAllDone) mailbox.send(&solver.control->job);
  }
  mailbox.close();
}

}  // namespace gloss::cuda
