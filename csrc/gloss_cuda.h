// The C++ API of the CUDA core, built where nvcc was found (macro GLOSS_CUDA). The functions do what their namesakes of
// gloss.h do; here is what differs.
//
// All pointers are device pointers and the work is queued on queue.stream. Nothing waits for it, except where said.
// The caller owns every buffer; `workspace` is device memory, aligned to 256 bytes, of the size that the function
// NAME_workspace with the same arguments returns. Results do not depend on timing: the same input gives the same bits.
// The emulator (csrc/emulator) builds the same sources as C++, with host pointers and without a queue.
#pragma once
#include "gloss.h"

namespace gloss::cuda {

struct Queue {
  int device;
  void* stream;  // cudaStream_t
};

// Why no kernel of this build can run on a GPU (no driver or one too old, no such GPU, no code for its architecture), or
// "" if they can. Touches that GPU only.
std::string problem(int device);

// ---------------------------------------------------------------------------------------------- topk
// Written on the device; reading it is up to the caller.
struct TopkStatus {
  int64_t bad_query_row;   // first row that contains NaN or Inf, or -1. Its values come out NaN, its indices valid.
  int64_t bad_corpus_row;  // likewise; a corpus row with NaN or Inf is nobody's neighbour while others are left
  int64_t candidates;      // entries that passed the filter and were scored again
  int64_t recomputed_rows; // rows that could not be certified and were redone exactly
};
int64_t cosine_topk_workspace(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, int64_t hint_k);
void cosine_topk(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, const int64_t* hint,
                 int64_t hint_k, void* values, int64_t* indices, TopkStatus* status, void* workspace, Queue queue);

template <class T>
int64_t cosine_topk_backward_workspace(MatrixView queries, MatrixView corpus, int64_t k);
template <class T>
void cosine_topk_backward(MatrixView queries, MatrixView corpus, int64_t k, const int64_t* indices,
                          const T* grad_values, T* grad_queries, T* grad_corpus, void* workspace, Queue queue);

// --------------------------------------------------------------------------------------------- graph
// An index outside 0..n-1, i itself, or a repeat in row i is left out (the CPU throws).
int64_t knn_structure_workspace(int64_t n, int64_t k);
void knn_structure(const int64_t* indices, int64_t n, int64_t k, Symmetrize mode, int64_t capacity, int64_t* crow,
                   int64_t* col, int64_t* forward, int64_t* reverse, void* workspace, Queue queue);

// A place or a column outside its array (the CPU throws) is NaN, in the entry and in what hangs on it; rows end where the
// arrays do.
template <class T>
void combine_edges(int64_t nnz, int64_t num_weights, const int64_t* forward, const int64_t* reverse, Symmetrize mode,
                   const T* weights, T* values, Queue queue);
template <class T>
void combine_edges_backward(int64_t nnz, int64_t num_weights, const int64_t* forward, const int64_t* reverse,
                            Symmetrize mode, const T* weights, const T* grad_values, T* grad_weights, Queue queue);

// `capacity` is the length of graph.col and the values: entries past crow[n] are padding and come out 0.
template <class T>
int64_t normalize_edges_workspace(int64_t n, int64_t capacity, Normalization mode);
template <class T>
void normalize_edges(Csr graph, int64_t capacity, const T* values, Normalization mode, T* normalized, void* workspace,
                     Queue queue);
template <class T>
int64_t normalize_edges_backward_workspace(int64_t n, int64_t capacity, Normalization mode);
template <class T>
void normalize_edges_backward(Csr graph, int64_t capacity, const T* values, Normalization mode,
                              const T* grad_normalized, T* grad_values, void* workspace, Queue queue);

// ----------------------------------------------------------------------------------------- propagate
// options.threads is not used. The iteration stops when every column has converged: the host looks at a flag that
// arrives some iterations late, so it waits for the device now and then but never drains it. While the stream is being
// captured into a graph no flag is read: max_iter iterations of every attempt and panel are queued, and those past
// convergence do nothing; the replay gives the bits of a plain call. Of the harmonic solution this is the solver while
// a stream is captured (else: flow, below): its preconditioner is the diagonal, so weights should not span more than 1e5.
// residual [num_classes], iterations, used_tol: on the device.
template <class T>
int64_t propagate_workspace(int64_t n, int64_t capacity, int64_t num_classes);
template <class T>
void propagate(Csr graph, int64_t capacity, const T* values, int64_t num_classes, const uint8_t* fixed,
               const T* boundary, bool has_initial, const T* prior, cpu::PropagateOptions options, T* result,
               double* residual, uint8_t* reachable, double* used_tol, int64_t* iterations, void* workspace,
               Queue queue);

// tol: on the device, the used_tol of propagate; raised to what T can hold (2e-6 for float, 1e-14 for double).
template <class T>
int64_t propagate_backward_workspace(int64_t n, int64_t capacity, int64_t num_classes);
template <class T>
void propagate_backward(Csr graph, int64_t capacity, const T* values, int64_t num_classes, const uint8_t* fixed,
                        const uint8_t* reachable, const T* prior, const T* result, const T* grad_result,
                        cpu::PropagateOptions options, const double* tol, T* grad_values, double* residual,
                        int64_t* iterations, void* workspace, Queue queue);

// The harmonic system, of the multilevel solver (gloss_kernels/_backends/multilevel.py).
//
// out = A x, (A x)_i = excess_i x_i + sum_j weight_ij (x_i - x_j), or with `right` (else null) right - A x, all
// [rows, columns]. Never a diagonal: weights span many orders of magnitude, and the small ones decide.
template <class T>
struct FlowLevel {
  int64_t rows;
  const int64_t* crow;  // [rows + 1]
  const int32_t* col;   // [nnz]
  const T* weight;      // [nnz]
  const T* excess;      // [rows]
};
template <class T>
void flow(const FlowLevel<T>& level, int64_t columns, const T* x, const T* right, T* out, Queue queue);

// grad_values of entry (i, j), where both rows are reachable and i != j,
// -(lam_i - lam_j) . (f_i - f_j) / 2 - (pull_i + pull_j) / 2; else 0. A difference of a column counts where it is
// larger than lam_noise, or f_noise, times the larger of the two. Entries past crow[n] are left as they are.
struct FlowEnds {
  const double *lam, *f;     // [n, columns]
  const double* pull;        // [n]
  const uint8_t* reachable;  // [n]
  double lam_noise, f_noise;
};
void flow_gradient(Csr graph, int64_t columns, const FlowEnds& ends, double* grad_values, Queue queue);

// ------------------------------------------------------------------------------ dense mini-batch path
// n <= 512. A row with NaN or Inf gives NaN (the CPU throws). A label that is no class makes its row, the loss and the
// gradient NaN.
template <class T>
void dense_unit_rows(int64_t n, int64_t cols, const T* x, T* unit, double* inverse_norms, Queue queue);
template <class T>
void dense_unit_rows_backward(int64_t n, int64_t cols, const T* unit, const double* inverse_norms, const T* grad_unit,
                              T* grad, Queue queue);
void eliminate(int64_t n, int64_t stride, double* a, Queue queue);  // stride > n
int64_t dense_loss_workspace(int64_t n, int64_t num_classes);
template <class T>
void dense_loss(const cpu::DenseProblem<T>& problem, const cpu::DenseOptions& options,
                const cpu::DenseResult<T>& result, void* workspace, Queue queue);

}  // namespace gloss::cuda
