// The dense mini-batch path on the GPU (gloss_cuda.h: dense_*): what dense_loss.cpp does, the same formulas, in double.
// Launches of dense_loss: weights, solve and edges; three more where M is normalised. n <= 512, so that a row is a block's
// work and the solve is one block's: its time is that of the n/3 or so steps of the factorisation one after the other.
#include "cuda/common.cuh"
#include "cuda/workspace.cuh"
#include "loss/solve.cuh"

namespace gloss::cuda {
namespace {

constexpr int kWarps = 4;         // of the kernels that give a row to a warp
constexpr int kRowThreads = 128;  // of the kernels that give a row to a block

// The sum over a block of a multiple of 32 threads, in every thread; `partial` has room for one double a warp.
__device__ inline double block_sum(double value, double* partial) {
  value = warp_sum(value);
  __syncthreads();  // `partial` may still be read from the last sum
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += partial[w];
  return sum;
}

__device__ inline double power(double x, double exponent) { return x > 0 ? pow(x, exponent) : 0.0; }

// ------------------------------------------------------------------------------------------- unit rows
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
unit_rows_kernel(int64_t n, int64_t cols, const T* __restrict__ x, T* __restrict__ unit,
                 double* __restrict__ inverse_norms) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= n) return;
  double largest = 0;  // squares of doubles may overflow or vanish
  for (int64_t c = lane; c < cols; c += 32) largest = fmax(largest, fabs(double(x[row * cols + c])));
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  const double factor = largest > 0 ? 1 / largest : 1;
  double squares = 0;
  for (int64_t c = lane; c < cols; c += 32) {
    const double v = double(x[row * cols + c]) * factor;
    squares += v * v;
  }
  const double norm = largest * sqrt(warp_sum(squares));
  const double scale = norm > 1e-307 || norm != norm ? 1 / norm : 0;  // a row with NaN stays NaN
  for (int64_t c = lane; c < cols; c += 32) unit[row * cols + c] = T(double(x[row * cols + c]) * scale);
  if (lane == 0) inverse_norms[row] = scale;
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps)
project_rows_kernel(int64_t n, int64_t cols, const T* __restrict__ unit, const double* __restrict__ inverse_norms,
                    const T* __restrict__ grad_unit, T* __restrict__ grad) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= n) return;
  double along = 0;
  for (int64_t c = lane; c < cols; c += 32) along += double(unit[row * cols + c]) * double(grad_unit[row * cols + c]);
  along = warp_sum(along);
  const double inverse = inverse_norms[row] > kLargestInverseNorm<T> ? 0 : inverse_norms[row];
  for (int64_t c = lane; c < cols; c += 32) {
    const int64_t at = row * cols + c;
    grad[at] = T((double(grad_unit[at]) - along * double(unit[at])) * inverse);
  }
}

// ------------------------------------------------------------------------------------- the n x n kernels
// Device memory of one call.
struct Space {
  double *weights, *factor;             // [n, n], [n, n + 1]
  double *f, *lam, *right;              // [n, C]: F before rows are made to sum to 1; adjoint; right-hand sides
  double *degree, *inner, *scale;       // [n]: d = W 1, d^-1/2, s
  double *to_degree, *to_inner, *root;  // [n]
};

Space carve(Workspace& memory, int64_t n, int64_t classes) {
  Space s;
  s.weights = memory.take<double>(n * n);
  s.factor = memory.take<double>(n * (n + 1));
  for (double** matrix : {&s.f, &s.lam, &s.right}) *matrix = memory.take<double>(n * classes);
  for (double** vector : {&s.degree, &s.inner, &s.scale, &s.to_degree, &s.to_inner, &s.root})
    *vector = memory.take<double>(n);
  return s;
}

constexpr double kSmallestExponent = -690;               // of a weight, and
constexpr double kRounding = 4 * 2.220446049250313e-16;  // of a component of F, as in loss/kernels.h

// W_ij = exp((c_ij - 1) / (sigma_i sigma_j)), 0 on the diagonal; d = W 1. One block a row.
template <class T>
__global__ void __launch_bounds__(kRowThreads) weights_kernel(cpu::DenseProblem<T> p, Space s) {
  GLOSS_SHARED(double, partial, [kRowThreads / 32]);
  const int64_t i = blockIdx.x;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < p.n; j += blockDim.x) {
    const double distance = fmin(double(p.cosines[i * p.n + j]) - 1, 0.0);
    const double exponent = distance * (p.inverse_sigma[i] * p.inverse_sigma[j]);
    const double w = i == j || exponent <= kSmallestExponent ? 0 : exp(exponent);
    s.weights[i * p.n + j] = w;
    sum += w;
  }
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) s.degree[i] = sum, s.inner[i] = power(sum, -0.5), s.scale[i] = 1;
}

// s = d^-1/2 or 1 / (W d^-1/2). One block a row.
__global__ void __launch_bounds__(kRowThreads) scale_kernel(int64_t n, bool published, Space s) {
  GLOSS_SHARED(double, partial, [kRowThreads / 32]);
  const int64_t i = blockIdx.x;
  double sum = 0;
  if (published)
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) sum += s.weights[i * n + j] * s.inner[j];
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) s.scale[i] = published ? power(sum, -1) : s.inner[i];
}

// dL/dM_ij + dL/dM_ji; lam is 0 on rows that were not solved for. Harmonic, a difference of two F within their rounding
// counts as 0: lam may be 1e70.
__device__ inline double edge_gradient(const Space& s, bool spreading, int64_t classes, int64_t i, int64_t j) {
  const double *f_i = s.f + i * classes, *f_j = s.f + j * classes;
  const double *lam_i = s.lam + i * classes, *lam_j = s.lam + j * classes;
  double sum = 0;
  for (int64_t c = 0; c < classes; ++c) {
    const double difference = f_j[c] - f_i[c];
    if (spreading) sum += lam_i[c] * f_j[c] + lam_j[c] * f_i[c];
    else if (fabs(difference) > kRounding * fmax(f_i[c], f_j[c])) sum += (lam_i[c] - lam_j[c]) * difference;
  }
  return sum;
}

// The gradient of d from that of d^-1/2. d^-3/2 by itself may overflow; taken factor by factor nothing does.
__device__ inline double of_degree(double degree, double to_root) {
  const double root = power(degree, -0.5);
  return -0.5 * to_root * root * root * root;
}

// The gradient of s, and what it is to d (symmetric) or to W d^-1/2 (published). One block a row.
__global__ void __launch_bounds__(kRowThreads)
to_scale_kernel(int64_t n, int64_t classes, bool spreading, bool published, Space s) {
  GLOSS_SHARED(double, partial, [kRowThreads / 32]);
  const int64_t i = blockIdx.x;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const double w = s.weights[i * n + j];
    if (w > 0) sum += edge_gradient(s, spreading, classes, i, j) * w * s.scale[j];
  }
  sum = block_sum(sum, partial);
  if (threadIdx.x != 0) return;
  s.to_degree[i] = published ? 0 : of_degree(s.degree[i], sum);
  s.to_inner[i] = published ? -sum * s.scale[i] * s.scale[i] : 0;
}

__global__ void __launch_bounds__(kRowThreads) to_degree_kernel(int64_t n, Space s) {
  GLOSS_SHARED(double, partial, [kRowThreads / 32]);
  const int64_t i = blockIdx.x;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) sum += s.weights[i * n + j] * s.to_inner[j];
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) s.to_degree[i] = of_degree(s.degree[i], sum);
}

// A label or a target that is neither -1 nor a class: it indexes nothing, and its row and the loss become NaN. (Nobody
// waits for the device to raise, as cpu::dense_loss does.)
template <class T>
__device__ inline bool is_wrong(const cpu::DenseProblem<T>& p, int64_t i) {
  const int64_t label = p.labels[i], target = p.targets[i];
  return label < -1 || label >= p.num_classes || target < (p.scored[i] ? 0 : -1) || target >= p.num_classes;
}

template <class T>
__device__ inline double weight_of(const cpu::DenseProblem<T>& p, int64_t i) {
  if (!p.scored[i] || is_wrong(p, i)) return 0.0;
  return p.class_weight ? p.class_weight[p.targets[i]] : 1.0;
}

// The gradients of the cosines and of 1 / sigma. One block a row.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
edges_kernel(cpu::DenseProblem<T> p, bool spreading, bool normalized, Space s, T* __restrict__ grad_cosines,
             double* __restrict__ grad_inverse_sigma) {
  GLOSS_SHARED(double, partial, [kRowThreads / 32]);
  const int64_t i = blockIdx.x;
  double to_sigma = 0;
  for (int64_t j = threadIdx.x; j < p.n; j += blockDim.x) {
    const double w = s.weights[i * p.n + j], distance = double(p.cosines[i * p.n + j]) - 1;
    double edge = 0;
    if (w > 0) {
      edge = edge_gradient(s, spreading, p.num_classes, i, j) * s.scale[i] * s.scale[j];
      if (normalized)
        edge += s.to_degree[i] + s.to_degree[j] + s.to_inner[i] * s.inner[j] + s.to_inner[j] * s.inner[i];
      edge *= w;
    }
    grad_cosines[i * p.n + j] = T(distance <= 0 ? edge * p.inverse_sigma[i] * p.inverse_sigma[j] : 0.0);
    to_sigma += edge * fmin(distance, 0.0) * p.inverse_sigma[j];
  }
  to_sigma = block_sum(to_sigma, partial);
  if (threadIdx.x == 0) grad_inverse_sigma[i] = to_sigma;
}

// Solves for F, scores it, and solves the adjoint: one block. `want_gradient` false: no adjoint.
template <class T>
__global__ void __launch_bounds__(kSolveThreads, 1)  // the only block: without the 1 ptxas spills on sm_100
solve_kernel(cpu::DenseProblem<T> p, cpu::DenseOptions options, bool spreading, bool want_gradient, Space s,
             cpu::DenseResult<T> out) {
  GLOSS_DYNAMIC_SHARED(double, panel);
  GLOSS_SHARED(double, partial, [kSolveThreads / 32]);
  GLOSS_SHARED(int, reached, [kMostRows]);
  GLOSS_SHARED(int, rows, [kMostRows]);
  GLOSS_SHARED(int, position_of, [kMostRows]);
  GLOSS_SHARED(int, labels, [kMostRows]);
  const int n = int(p.n), classes = int(p.num_classes), me = threadIdx.x, threads = blockDim.x;
  const double prior = 1.0 / classes;

  bool wrong = false;
  for (int i = me; i < n; i += threads) {
    wrong = wrong || is_wrong(p, i);
    labels[i] = p.labels[i] < 0 || is_wrong(p, i) ? -1 : int(p.labels[i]);
  }
  wrong = __syncthreads_or(wrong);
  find_reachable(n, s.weights, labels, reached);
  const int count = compact(n, rows, position_of, [&](int i) { return reached[i] && (spreading || labels[i] < 0); });
  for (int i = me; i < n; i += threads) out.reachable[i] = uint8_t(reached[i]);

  // The system and its right-hand sides (dense_loss.cpp, solve): a thread a row and class.
  for (int at = me; at < count * classes; at += threads) {
    const int a = at / classes, c = at % classes, i = rows[a];
    // A labelled document by itself: F = Y.
    const double root = !spreading ? 1 : sqrt(s.degree[i] > 0 ? s.degree[i] : 1 / (1 - options.alpha));
    if (c == 0) s.root[a] = root;
    double sum = 0;
    if (spreading) sum = labels[i] == c ? (1 - options.alpha) * root : 0;
    else
      for (int j = 0; j < n; ++j)
        if (labels[j] == c) sum += s.weights[int64_t(i) * n + j] * s.scale[i] * s.scale[j];
    s.right[at] = sum;
  }
  __syncthreads();
  for (int at = me; at < count * (count + 1); at += threads) {
    const int a = at / (count + 1), b = at % (count + 1), i = rows[a];
    double value = 0;
    if (b < count) {
      const double w = s.weights[int64_t(i) * n + rows[b]];
      value = spreading ? options.alpha * w : w * s.scale[i] * s.scale[rows[b]];
    } else if (spreading) {
      value = (1 - options.alpha) * s.root[a] * s.root[a];
    } else {
      for (int c = 0; c < classes; ++c) value += s.right[a * classes + c];
    }
    s.factor[at] = value;
  }
  __syncthreads();
  eliminate(count, count + 1, s.factor, panel);
  solve_factor(count, count + 1, s.factor, classes, s.right);

  // F; rows sum to 1: harmonic to a few n eps, spreading when divided by their sum.
  double lacks = 0;
  for (int i = me; i < n; i += threads) {
    double* f = s.f + int64_t(i) * classes;
    const int a = position_of[i];
    double sum = 0;
    for (int c = 0; c < classes; ++c) {
      if (a < 0) f[c] = spreading ? 0 : labels[i] >= 0 ? double(labels[i] == c) : prior;
      else f[c] = s.root[a] * s.right[a * classes + c];
      sum += f[c];
    }
    T* result = out.result + int64_t(i) * classes;
    const bool valid = !is_wrong(p, i);
    if (spreading) {
      s.to_degree[i] = sum;
      for (int c = 0; c < classes; ++c) result[c] = !valid ? T(NAN) : T(sum > 0 ? f[c] / sum : prior);
      continue;
    }
    if (a >= 0) lacks = fmax(lacks, fabs(1 - sum));
    for (int c = 0; c < classes; ++c) result[c] = valid ? T(f[c]) : T(NAN);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) lacks = fmax(lacks, __shfl_xor_sync(0xffffffffu, lacks, offset));
  if (me % 32 == 0) partial[me / 32] = lacks;
  __syncthreads();
  if (me == 0) {
    for (int w = 1; w < threads / 32; ++w) lacks = fmax(lacks, partial[w]);
    *out.lacks = lacks;
  }

  // The weighted mean over the scored documents, and dL/dF into s.lam.
  double total = 0, loss = 0;
  for (int i = me; i < n; i += threads) total += weight_of(p, i);
  total = block_sum(total, partial);
  for (int i = me; i < n; i += threads) {
    const double w = total > 0 ? weight_of(p, i) / total : 0;
    const double sum = spreading ? s.to_degree[i] : 1;
    const double* f = s.f + int64_t(i) * classes;
    double* grad = s.lam + int64_t(i) * classes;
    const auto probability = [&](int64_t c) { return spreading ? (sum > 0 ? f[c] / sum : prior) : f[c]; };
    for (int c = 0; c < classes; ++c) grad[c] = 0;
    if (!(w > 0)) continue;
    const int64_t y = p.targets[i];
    loss += w * target_loss(options.target, options.smoothing, classes, y, probability, w, grad);
  }
  loss = block_sum(loss, partial);
  if (me == 0) *out.loss = T(wrong ? NAN : loss);
  if (!want_gradient) return;

  for (int a = me; a < count; a += threads) {
    const int i = rows[a];
    const double *grad = s.lam + int64_t(i) * classes, *f = s.f + int64_t(i) * classes;
    const double sum = spreading ? s.to_degree[i] : 1;
    double along = 0;  // through the scaling of a row to sum 1
    for (int c = 0; spreading && sum > 0 && c < classes; ++c) along += grad[c] * f[c] / sum;
    for (int c = 0; c < classes; ++c)
      s.right[a * classes + c] = !spreading ? grad[c] : sum > 0 ? s.root[a] * ((grad[c] - along) / sum) : 0;
  }
  __syncthreads();
  solve_factor(count, count + 1, s.factor, classes, s.right);
  for (int at = me; at < n * classes; at += threads) {
    const int a = position_of[at / classes], c = at % classes;
    double lam = a < 0 ? 0 : s.right[a * classes + c];
    if (a >= 0 && spreading) lam *= options.alpha * s.root[a];
    s.lam[at] = wrong ? NAN : lam;
  }
}

__global__ void __launch_bounds__(kSolveThreads, 1) eliminate_kernel(int n, int64_t stride, double* a) {
  GLOSS_DYNAMIC_SHARED(double, panel);
  eliminate(n, stride, a, panel);
}

unsigned blocks(int64_t rows, int a_block) { return unsigned((rows + a_block - 1) / a_block); }

}  // namespace

template <class T>
void dense_unit_rows(int64_t n, int64_t cols, const T* x, T* unit, double* inverse_norms, Queue queue) {
  const DeviceGuard guard(queue.device);
  if (n > 0) launch(unit_rows_kernel<T>, blocks(n, kWarps), 32 * kWarps, 0, queue.stream, n, cols, x, unit, inverse_norms);
}

template <class T>
void dense_unit_rows_backward(int64_t n, int64_t cols, const T* unit, const double* inverse_norms, const T* grad_unit,
                              T* grad, Queue queue) {
  const DeviceGuard guard(queue.device);
  if (n > 0)
    launch(project_rows_kernel<T>, blocks(n, kWarps), 32 * kWarps, 0, queue.stream, n, cols, unit, inverse_norms,
           grad_unit, grad);
}

void eliminate(int64_t n, int64_t stride, double* a, Queue queue) {
  if (n < 1 || n > kMostRows || stride <= n)
    throw std::invalid_argument("n must be 1 to " + std::to_string(kMostRows) + " and less than stride, got " +
                                std::to_string(n) + " and " + std::to_string(stride));
  const DeviceGuard guard(queue.device);
  launch(eliminate_kernel, 1, kSolveThreads, size_t(n + 1) * kPanelRows * sizeof(double), queue.stream, int(n), stride,
         a);
}

int64_t dense_loss_workspace(int64_t n, int64_t num_classes) {
  Workspace memory(nullptr);
  carve(memory, n, num_classes);
  return memory.size();
}

template <class T>
void dense_loss(const cpu::DenseProblem<T>& problem, const cpu::DenseOptions& options,
                const cpu::DenseResult<T>& result, void* workspace, Queue queue) {
  const int64_t n = problem.n, classes = problem.num_classes;
  if (n < 1 || n > kMostRows)
    throw std::invalid_argument("embeddings must have 1 to " + std::to_string(kMostRows) + " rows, got " +
                                std::to_string(n));
  const DeviceGuard guard(queue.device);
  const bool spreading = !std::isnan(options.alpha), gradient = result.grad_cosines != nullptr;
  const bool normalized = options.normalization != Normalization::row;
  const bool published = options.normalization == Normalization::published;
  Workspace memory(workspace);
  const Space space = carve(memory, n, classes);
  const auto by_rows = [&](auto kernel, auto... arguments) {
    launch(kernel, unsigned(n), kRowThreads, 0, queue.stream, arguments...);
  };
  by_rows(weights_kernel<T>, problem, space);
  if (normalized) by_rows(scale_kernel, n, published, space);
  launch(solve_kernel<T>, 1, kSolveThreads, size_t(n + 1) * kPanelRows * sizeof(double), queue.stream, problem, options,
         spreading, gradient, space, result);
  if (!gradient) return;
  if (normalized) by_rows(to_scale_kernel, n, classes, spreading, published, space);
  if (published) by_rows(to_degree_kernel, n, space);
  by_rows(edges_kernel<T>, problem, spreading, normalized, space, result.grad_cosines, result.grad_inverse_sigma);
}

#define GLOSS_INSTANTIATE(T)                                                                                    \
  template void dense_unit_rows<T>(int64_t, int64_t, const T*, T*, double*, Queue);                             \
  template void dense_unit_rows_backward<T>(int64_t, int64_t, const T*, const double*, const T*, T*, Queue);    \
  template void dense_loss<T>(const cpu::DenseProblem<T>&, const cpu::DenseOptions&, const cpu::DenseResult<T>&, \
                              void*, Queue);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cuda
