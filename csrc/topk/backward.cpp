// Gradient of cosine_topk. With u = x / |x| and g_ir the gradient of the r-th value of row i, whose index is j(i, r):
//   dL/du_i += sum_r g_ir u_j        dL/du_j += sum_{(i, r): j(i, r) = j} g_ir u_i
//   dL/dx    = (dL/du - u (u . dL/du)) / |x|,  0 for a zero row and one near it
// Every row gathers its own sum, in a fixed order: no atomics, the same bits for every number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "arguments.h"
#include "operand.h"
#include "refine.h"

namespace gloss::cpu {
namespace {

// The edges (i, r) that end in each corpus row, as flat numbers i * k + r, ascending.
struct Incoming {
  Incoming(const int64_t* indices, int64_t edges, int64_t rows) : begin(rows + 1), edge(edges) {
    std::fill_n(begin.get(), rows + 1, int64_t(0));
    for (int64_t e = 0; e < edges; ++e) ++begin[indices[e]];
    int64_t total = 0;
    for (int64_t j = 0; j <= rows; ++j) {
      const int64_t count = begin[j];
      begin[j] = total;
      total += j < rows ? count : 0;
    }
    // begin[j] walks to the end of j while filling, which is where j + 1 began
    for (int64_t e = 0; e < edges; ++e) edge[begin[indices[e]]++] = e;
    for (int64_t j = rows; j > 0; --j) begin[j] = begin[j - 1];
    begin[0] = 0;
  }
  Buffer<int64_t> begin;  // [rows + 1]
  Buffer<int64_t> edge;   // [edges]
};

struct Gather {
  explicit Gather(int64_t cols) : unit(size_t((cols + 15) / 16 * 16)), sum(unit.size()) {}
  std::vector<double> unit, sum;
  std::vector<double> weight;
  std::vector<int32_t> ids;

  // sum += g * u over the pairs collected so far
  void flush(const Operand& operand) {
    kernels().add_rows(weight.data(), &operand.source, ids.data(), int64_t(ids.size()), sum.data());
    weight.clear();
    ids.clear();
  }
  void add(const Operand& operand, int64_t row, double g) {
    const double w = g * operand.inverse_norm[row];
    if (w == 0) return;
    weight.push_back(w);
    ids.push_back(int32_t(row));
  }
  // out [cols] = (sum - u (u . sum)) / |x|
  template <class T>
  void project(const Operand& operand, int64_t row, T* out) {
    const int64_t cols = operand.source.cols;
    const double inverse = operand.inverse_norm[row], scale = operand.source.scale ? operand.source.scale[row] : 1;
    kernels().load_row(&operand.source, row, unit.data());
    double along = 0;
    for (int64_t c = 0; c < cols; ++c) {
      unit[size_t(c)] *= inverse;
      along += unit[size_t(c)] * sum[size_t(c)];
    }
    const bool vanishes = inverse == 0 || inverse * scale > kLargestInverseNorm<T>;
    for (int64_t c = 0; c < cols; ++c)
      out[c] = vanishes ? T(0) : T((sum[size_t(c)] - unit[size_t(c)] * along) * inverse * scale);
  }
};

}  // namespace

template <class T>
void cosine_topk_backward(MatrixView queries, MatrixView corpus, int64_t k, const int64_t* indices,
                          const T* grad_values, T* grad_queries, T* grad_corpus, int threads) {
  check_pair(queries, corpus);
  const int64_t edges = queries.rows * k, cols = queries.cols;
  for (int64_t e = 0; e < edges; ++e)
    if (indices[e] < 0 || indices[e] >= corpus.rows)
      throw std::invalid_argument("indices must be rows of the corpus, 0.." + std::to_string(corpus.rows - 1) + ", got " +
                                  std::to_string(indices[e]) + " in row " + std::to_string(e / k));
  if (!grad_queries && !grad_corpus) return;
  threads = std::max(threads, 1);

  const bool self = same_matrix(queries, corpus);
  OperandStorage query_rows("queries", queries, nullptr);
  OperandStorage corpus_rows("corpus", self ? MatrixView{nullptr, DType::f32, 0, 0, 0} : corpus, nullptr);
  const Operand& q = query_rows.operand;
  const Operand& c = self ? query_rows.operand : corpus_rows.operand;
  compute_norms(q, threads);
  if (!self) compute_norms(c, threads);

  const bool both = grad_queries == grad_corpus;  // one matrix: both sums before the projection
  const auto outgoing = [&](Gather& gather, int64_t i) {
    for (int64_t e = i * k; e < (i + 1) * k; ++e) gather.add(c, indices[e], double(grad_values[e]));
    gather.flush(c);
  };
  const auto each_row = [&](const Operand& operand, T* grad, auto&& gather_row) {
    Queue queue(operand.rows, 64);
    parallel(threads, [&](int) {
      Gather gather(cols);
      for (Range range; queue.next(range);) {
        for (int64_t i = range.begin; i < range.end; ++i) {
          std::fill(gather.sum.begin(), gather.sum.end(), 0.0);
          gather_row(gather, i);
          gather.project(operand, i, grad + i * cols);
        }
      }
    });
  };
  if (grad_queries && !both) each_row(q, grad_queries, outgoing);
  if (grad_corpus) {
    const Incoming incoming(indices, edges, c.rows);
    each_row(c, grad_corpus, [&](Gather& gather, int64_t j) {
      if (both) outgoing(gather, j);
      for (int64_t at = incoming.begin[j]; at < incoming.begin[j + 1]; ++at) {
        const int64_t e = incoming.edge[at];
        gather.add(q, e / k, double(grad_values[e]));
      }
      gather.flush(q);
    });
  }
}

template void cosine_topk_backward<float>(MatrixView, MatrixView, int64_t, const int64_t*, const float*, float*,
                                          float*, int);
template void cosine_topk_backward<double>(MatrixView, MatrixView, int64_t, const int64_t*, const double*, double*,
                                           double*, int);

}  // namespace gloss::cpu
