// The C++ API of the core: one function per operation and device. It knows neither torch nor Python.
//
// The caller owns every buffer. Matrices are row-major. Functions with `threads` run on that many OpenMP
// threads and give the same bits for every number of threads. Errors are thrown as std::invalid_argument
// (the input is wrong) or std::runtime_error (the machine is).
#pragma once
#include <cstdint>
#include <string>

#include "graph/symmetrize.h"
#include "loss/target.h"
#include "options.h"

namespace gloss {

enum class DType : int32_t { f64, f32, f16, bf16 };

// rows x cols elements; `stride` elements lie between the starts of two rows, columns are contiguous.
struct MatrixView {
  const void* data;
  DType dtype;
  int64_t rows, cols, stride;
};

// Called now and then from the calling thread with the share of the work done, 0..1. Returning false cancels:
// the operation then throws Cancelled. `report` may be null.
struct Progress {
  bool (*report)(void* context, double done) = nullptr;
  void* context = nullptr;
};
struct Cancelled {};

// A square sparse matrix in CSR form: row i holds entries crow[i] .. crow[i+1]-1, columns ascending.
struct Csr {
  const int64_t* crow;  // [n + 1]
  const int64_t* col;   // [crow[n]] or longer
  int64_t n;
};

enum class Normalization : int32_t { row, symmetric, published };
inline constexpr const char* kNormalizationNames[] = {"row", "symmetric", "published"};

namespace cpu {

// ---------------------------------------------------------------------------------------------- topk
struct TopkStats {
  int64_t candidates;       // entries that passed the filter and were scored again
  int64_t recomputed_rows;  // rows that could not be certified and were redone exactly
  int64_t workspace_bytes;  // most memory held at once beside input and output
  const char* kernel;       // "avx512bf16", "avx512", "avx2", "generic", "float64"
};

// The k largest cosines of every query row with the corpus rows, sorted by (value descending, index ascending).
// The corpus is the same matrix as the queries when the data pointers, shapes and strides are equal: then only the
// upper triangle is computed. exclude_self leaves out index i for row i. A zero row has cosine 0 with everything.
// `hint` [queries.rows, hint_k] (may be null): indices of probably near rows, any quality; -1 for none; it seeds the
// thresholds and never changes the result. Throws if a row contains NaN or Inf (naming the first).
void cosine_topk(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self,
                 const int64_t* hint, int64_t hint_k,
                 void* values,      // [queries.rows, k] double for f64 input, else float
                 int64_t* indices,  // [queries.rows, k]
                 int threads, Progress progress, TopkStats* stats);

// With g = dL/dvalues and u the unit rows: dL/du_i += sum_r g_ir u_{j(i,r)}, dL/du_{j(i,r)} += g_ir u_i, and
// dL/dx = (I - u u^T) dL/du / |x|. T is double for f64 input, else float. Either output may be null. Where corpus and
// queries are the same matrix, pass the same pointer twice as output: it receives both sides.
template <class T>
void cosine_topk_backward(MatrixView queries, MatrixView corpus, int64_t k, const int64_t* indices,
                          const T* grad_values,  // [queries.rows, k]
                          T* grad_queries,       // [queries.rows, cols]
                          T* grad_corpus,        // [corpus.rows, cols]
                          int threads);

// --------------------------------------------------------------------------------------------- graph
// Sparsity of the symmetrised k-nearest-neighbour graph. Entry e = (i, j) of the CSR remembers where its two directed
// weights lie in the flat [n * k] array: forward[e] = i * k + r if j is the r-th neighbour of i, else -1;
// reverse[e] = j * k + r if i is the r-th neighbour of j, else -1. graph/symmetrize.h says which pairs are entries. The
// arrays have room for `capacity` entries, at least as many as there can be; those past crow[n] are filled with 0, -1,
// -1. Throws on an index outside 0..n-1, on i itself and on a repeat.
void knn_structure(const int64_t* indices, int64_t n, int64_t k, Symmetrize mode,  // indices [n, k]
                   int64_t capacity, int64_t* crow, int64_t* col, int64_t* forward, int64_t* reverse, int threads);

// values[e] = combine(weights[forward[e]], weights[reverse[e]]), an absent weight (-1) counting as 0. Throws on a place
// that is none.
template <class T>
void combine_edges(int64_t nnz, int64_t num_weights, const int64_t* forward, const int64_t* reverse, Symmetrize mode,
                   const T* weights,  // [num_weights], n * k
                   T* values,         // [nnz]
                   int threads);
// Deterministic.
template <class T>
void combine_edges_backward(int64_t nnz, int64_t num_weights, const int64_t* forward, const int64_t* reverse,
                            Symmetrize mode, const T* weights, const T* grad_values,
                            T* grad_weights,  // [num_weights]
                            int threads);

// M_ij = A_ij s_i s_j for a symmetric A with d = A 1 and t = A d^-1/2.
//   row: M = A.   symmetric: s = d^-1/2.   published: s = 1 / t  (the published code's three normalisations in one).
// A node without weight has s = 0. `capacity` is the length of graph.col and the values; those past crow[n] stay as they
// are. Throws on rows outside of it and on columns that are no nodes.
template <class T>
void normalize_edges(Csr graph, int64_t capacity, const T* values, Normalization mode, T* normalized, int threads);
// The gradient is that of an undirected weight: grad_normalized must be symmetric, and grad_values comes out symmetric.
template <class T>
void normalize_edges_backward(Csr graph, int64_t capacity, const T* values, Normalization mode,
                              const T* grad_normalized, T* grad_values, int threads);

// ----------------------------------------------------------------------------------------- propagate
// The smallest tol that is of use: float cannot hold a solution to much less than 1e-6, and asking for more only costs
// iterations. (gloss_kernels/_math.py has the same.)
template <class T>
constexpr double finest_tol() {
  return sizeof(T) == 8 ? 1e-14 : 2e-6;
}
struct PropagateOptions {
  double alpha;           // NaN: harmonic solution. Else label spreading with this alpha in (0, 1)
  double prior_strength;  // eps >= 0 of the harmonic solution
  double tol;             // see propagate
  int64_t max_iter;
  int threads;
  Progress progress = {};  // of the CPU
};

// Harmonic: (D (1 + eps) - M)_UU F_U = M_UL F_L + eps D_U prior, D = diag(M 1), L the fixed rows, F_L = boundary_L.
// Spreading: (I - alpha M) F = (1 - alpha) Y, Y = boundary on fixed rows and 0 elsewhere.
// reachable[i]: a path of positive weights leads from i to a fixed row. Rows that are not reachable become `prior`
// (spreading: 0) and do not take part.
// Harmonic: conjugate gradients with a multilevel preconditioner, or elimination (propagate/multilevel.h); a column is done
// when no number would be corrected by more than tol / 2, and residual[c] is that number. Where the fixed rows sum to 1,
// so do all rows; while one lacks more than max(10 tol, 0.01) before that is made up, the solve goes on with a smaller
// tol, and where that fails residual[c] is at least what it lacks.
// Spreading: conjugate gradients with the diagonal (propagate/solver.h); residual[c] = |r_c| / |b_c|, 0 where b_c = 0.
// `boundary` holds, on the other rows, the start of the iteration where has_initial is set. *used_tol is the last tol, for
// propagate_backward. Returns the iterations done. Throws Cancelled where options.progress says so.
template <class T>
int64_t propagate(Csr graph, const double* values, int64_t num_classes,
                  const uint8_t* fixed,  // [n]
                  const T* boundary,     // [n, num_classes]
                  bool has_initial,
                  const T* prior,        // [num_classes]
                  PropagateOptions options,
                  T* result,             // [n, num_classes]
                  double* residual,      // [num_classes]
                  uint8_t* reachable,    // [n]
                  double* used_tol);

// Solves the same system for lam with grad_result (reachable free rows; all reachable rows when spreading) on the right
// and writes the gradient of the undirected weight, symmetric in (i, j):
//   harmonic:  grad_ij = -(lam_i - lam_j) . (F_i - F_j) / 2, minus the eps D terms:
//              each D_i also carries -eps lam_i . (F_i - prior) to every entry of row i (shared with the mirror entry)
//   spreading: grad_ij = alpha (lam_i . F_j + lam_j . F_i) / 2
// grad_values [crow[n]] comes zeroed; entries without a mirror entry above the diagonal stay so.
// Harmonic: differences of F and of lam within their rounding count as 0, and residual[c] is the largest correction that
// is left, relative to its row's largest number. Spreading: residual[c] = |r_c| / |b_c|. Returns the iterations done.
template <class T>
int64_t propagate_backward(Csr graph, const double* values, int64_t num_classes, const uint8_t* fixed,
                           const uint8_t* reachable, const T* prior, const T* result, const T* grad_result,
                           PropagateOptions options, double* grad_values, double* residual);

// ------------------------------------------------------------------------------ dense mini-batch path
// G-Loss of a mini-batch whose documents all neighbour each other: between these calls stand two matrix products,
// cosines = unit unit^T and grad_unit = grad_cosines unit. T is float or double; inside, all is double.

// C [n, m] = A [n, k] B [k, m], or A B^T with B [m, k] where `transposed`, in full float32.
void dense_product(int64_t n, int64_t k, int64_t m, const float* a, const float* b, bool transposed, float* c,
                   int threads);

// The factor R of X = diag(W 1 + e) - W = R^T R in place, without a subtraction (loss/kernels.h, DenseKernels::eliminate):
// a [n, stride], stride > n a multiple of 16, holds W right of the diagonal, e in column n and zeros after it.
void eliminate(int64_t n, int64_t stride, double* a);

// gradient [n, n] = -(lam_i - lam_j) . (x_i - x_j), dL/dW of both entries of an edge together, where differences of x
// within its rounding count as 0; x and lam as columns [classes, stride], stride at least n rounded up to 64, padded with zeros.
void edge_gradients(int64_t n, int64_t classes, int64_t stride, const double* x, const double* lam, double* gradient,
                    int threads);

// unit = x / |x| by rows, inverse_norms[i] = 1 / |x_i|; a zero row has 0. Throws on NaN and Inf, naming the row.
template <class T>
void dense_unit_rows(int64_t n, int64_t cols, const T* x, T* unit, double* inverse_norms, int threads);
template <class T>
void dense_unit_rows_backward(int64_t n, int64_t cols, const T* unit, const double* inverse_norms, const T* grad_unit,
                              T* grad, int threads);

template <class T>
struct DenseProblem {
  int64_t n, num_classes;
  const T* cosines;             // [n, n]
  const double* inverse_sigma;  // [n]: W_ij = exp((c_ij - 1) inverse_sigma_i inverse_sigma_j)
  const int64_t* labels;        // [n], -1 is unlabelled
  const int64_t* targets;       // [n], the true class; may be -1 where not scored
  const uint8_t* scored;        // [n]
  const double* class_weight;   // [num_classes] or null
};
struct DenseOptions {
  double alpha;  // NaN: harmonic solution. Else label spreading, with symmetric normalisation.
  Normalization normalization;
  Target target;
  double smoothing;  // of target nll
  int threads;
};
template <class T>
struct DenseResult {
  T* loss;                     // []
  T* result;                   // [n, num_classes], rows sum to 1
  uint8_t* reachable;          // [n]
  double* lacks;               // []: the most that a row's sum differed from 1
  T* grad_cosines;             // [n, n], symmetric: of c_ij and c_ji together. Null where no gradient is wanted.
  double* grad_inverse_sigma;  // [n]
};
// Throws where a label or a target is neither -1 nor a class, naming the document.
template <class T>
void dense_loss(const DenseProblem<T>& problem, const DenseOptions& options, const DenseResult<T>& result);

}  // namespace cpu

}  // namespace gloss
