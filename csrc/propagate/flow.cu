// The harmonic system on the GPU (gloss_cuda.h: flow, flow_gradient): what takes the time of the multilevel solver, whose
// loop is torch operations (gloss_kernels/_backends/multilevel.py).
//
// A row of the system belongs to a few lanes, each with every lanes-th column, so that a gathered row is read as one
// piece. Bytes of flow, v = rows x columns x sizeof(T): x and out 2 v (3 v with a right side), 8 + sizeof(T) an entry,
// and a gathered row an entry, mostly from the second-level cache where the rows stand in the order of their groups.
#include <algorithm>

#include "cuda/common.cuh"

namespace gloss::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;

template <class T>
__global__ void __launch_bounds__(kThreads) flow_kernel(FlowLevel<T> level, int64_t columns, int lanes,
                                                        const T* __restrict__ x, const T* __restrict__ right,
                                                        T* __restrict__ out) {
  const int64_t stride = int64_t(gridDim.x) * (kThreads / lanes);
  const int lane = int(threadIdx.x) % lanes;
  for (int64_t row = int64_t(blockIdx.x) * (kThreads / lanes) + threadIdx.x / lanes; row < level.rows; row += stride) {
    const int64_t begin = level.crow[row], end = level.crow[row + 1];
    const T excess = level.excess[row];
    for (int64_t c = lane; c < columns; c += lanes) {
      const T own = x[row * columns + c];
      T sum = excess * own;
#pragma unroll 4
      for (int64_t e = begin; e < end; ++e) sum += level.weight[e] * (own - x[level.col[e] * columns + c]);
      out[row * columns + c] = right ? right[row * columns + c] - sum : sum;
    }
  }
}

// a - b, 0 where that is the noise of what they were computed with.
__device__ inline double difference(double a, double b, double noise) {
  const double d = a - b;
  return fabs(d) > noise * fmax(fabs(a), fabs(b)) ? d : 0;
}

// A warp takes a row, and 32 / lanes of its entries at a time. Both entries of an edge get the same bits.
__global__ void __launch_bounds__(kThreads) flow_gradient_kernel(Csr graph, FlowEnds ends, int64_t columns, int lanes,
                                                                 double* __restrict__ grad_values) {
  const int lane = int(threadIdx.x) % lanes, place = int(threadIdx.x) % 32 / lanes, at_once = 32 / lanes;
  const int64_t stride = int64_t(gridDim.x) * (kThreads / 32);
  const double *__restrict__ lam = ends.lam, *__restrict__ f = ends.f;
  for (int64_t i = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; i < graph.n; i += stride) {
    const int64_t begin = graph.crow[i], end = graph.crow[i + 1];
    for (int64_t first = begin; first < end; first += at_once) {
      const int64_t e = first + place, j = e < end ? graph.col[e] : i;
      const bool counts = j != i && ends.reachable[i] && ends.reachable[j];
      double sum = 0;
      for (int64_t c = lane; counts && c < columns; c += lanes)
        sum += difference(lam[i * columns + c], lam[j * columns + c], ends.lam_noise) *
               difference(f[i * columns + c], f[j * columns + c], ends.f_noise);
      for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (lane == 0 && e < end) grad_values[e] = counts ? -0.5 * (sum + (ends.pull[i] + ends.pull[j])) : 0.0;
    }
  }
}

int lanes_for(int64_t columns) {
  int lanes = 1;
  while (lanes < 32 && lanes < columns) lanes *= 2;
  return lanes;
}

dim3 blocks_for(int64_t rows, int lanes) {
  const int64_t at_once = kThreads / lanes;
  return dim3(unsigned(std::min(kMostBlocks, (rows + at_once - 1) / at_once)));
}

}  // namespace

template <class T>
void flow(const FlowLevel<T>& level, int64_t columns, const T* x, const T* right, T* out, Queue queue) {
  if (level.rows == 0 || columns == 0) return;
  const DeviceGuard guard(queue.device);
  const int lanes = lanes_for(columns);
  launch(flow_kernel<T>, blocks_for(level.rows, lanes), dim3(kThreads), 0, queue.stream, level, columns, lanes, x,
         right, out);
}

void flow_gradient(Csr graph, int64_t columns, const FlowEnds& ends, double* grad_values, Queue queue) {
  if (graph.n == 0) return;
  const DeviceGuard guard(queue.device);
  launch(flow_gradient_kernel, blocks_for(graph.n, 32), dim3(kThreads), 0, queue.stream, graph, ends, columns,
         lanes_for(columns), grad_values);
}

template void flow<float>(const FlowLevel<float>&, int64_t, const float*, const float*, float*, Queue);
template void flow<double>(const FlowLevel<double>&, int64_t, const double*, const double*, double*, Queue);

}  // namespace gloss::cuda
