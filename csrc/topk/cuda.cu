// Exact cosine top-k on the GPU (gloss_cuda.h: cosine_topk): which way a search goes, and the order of its launches.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "topk/lists.cuh"

namespace gloss::cuda {
namespace {

constexpr int64_t kFewQueries = 512;  // so many read a half-precision corpus where it is
constexpr int64_t kFewRows = 1024;   // up to so many queries and corpus rows all pairs in double are a handful of launches

bool same_matrix(MatrixView a, MatrixView b) {
  return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.stride == b.stride;
}

// Whether the filter is worth its launches, and its lists hold k.
bool is_filtered(MatrixView queries, MatrixView corpus, int64_t k) {
  return queries.dtype != DType::f64 && k <= kLargestK && 2 * k + kTile <= corpus.rows &&
         (queries.rows > kFewRows || corpus.rows > kFewRows);
}

void check_arguments(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self) {
  if (queries.cols != corpus.cols || queries.dtype != corpus.dtype)
    throw std::invalid_argument("corpus: wants the columns and the dtype of queries");
  if (exclude_self && queries.rows > corpus.rows)
    throw std::invalid_argument("exclude_self: got " + std::to_string(queries.rows) + " queries, but the corpus has " +
                                std::to_string(corpus.rows) + " rows");
  const int64_t available = std::max<int64_t>(corpus.rows - (exclude_self ? 1 : 0), 0);
  if (k < 1 || k > available)
    throw std::invalid_argument("k: got " + std::to_string(k) + ", but only " + std::to_string(available) +
                                " candidates a row (corpus rows " + std::to_string(corpus.rows) +
                                (exclude_self ? ", self excluded)" : ")"));
  if (corpus.rows > INT32_MAX || queries.rows > INT32_MAX)
    throw std::invalid_argument("queries: more than 2^31 - 1 rows");
}

// Whether the corpus need not be packed: its rows can be copied in pieces of 16 bytes.
bool is_direct(MatrixView queries, MatrixView corpus, bool self) {
  return !self && corpus.dtype == DType::f16 && queries.rows <= kFewQueries && corpus.cols % 8 == 0 &&
         corpus.stride % 8 == 0 && reinterpret_cast<uintptr_t>(corpus.data) % 16 == 0;
}

struct Hint {
  const int64_t* indices;  // [queries.rows, k] or null
  int64_t k;
};

struct Norms {
  double *queries, *corpus;
};
Norms norms_carve(Workspace& memory, MatrixView queries, MatrixView corpus, bool self) {
  double* of_queries = memory.take<double>(queries.rows);
  return {of_queries, self ? of_queries : memory.take<double>(corpus.rows)};
}

template <class In, class T>
void exact(Workspace& memory, MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, Hint, T* values,
           int64_t* indices, TopkStatus* status, Queue queue, bool run) {
  const bool self = same_matrix(queries, corpus);
  const Norms norms = norms_carve(memory, queries, corpus, self);
  const auto space = exact_carve<In, T>(memory, queries.rows, corpus.rows, k);
  if (!run) return;
  compute_norms(rows_of<In>(queries), norms.queries, &status->bad_query_row, queue);
  if (!self) compute_norms(rows_of<In>(corpus), norms.corpus, &status->bad_corpus_row, queue);
  exact_search(rows_of<In>(queries), rows_of<In>(corpus), norms.queries, norms.corpus, k, exclude_self, values, indices,
               space, queue);
}

template <class In>
void filtered(Workspace& memory, MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, Hint hint,
              float* values, int64_t* indices, TopkStatus* status, Queue queue, bool run) {
  const bool self = same_matrix(queries, corpus), direct = is_direct(queries, corpus, self);
  Search<In> s{};
  s.queries = rows_of<In>(queries);
  s.corpus = rows_of<In>(corpus);
  const Norms norms = norms_carve(memory, queries, corpus, self || direct);
  s.query_norms = norms.queries;
  s.corpus_norms = direct ? nullptr : norms.corpus;
  s.packed_queries = packed_carve(memory, queries.rows, queries.cols, self);
  if (!direct) s.packed_corpus = self ? s.packed_queries : packed_carve(memory, corpus.rows, corpus.cols, true);
  s.lists = lists_carve(memory, s.packed_queries.padded, k, direct ? 512 : 192);
  const auto redo_space = redo_carve<In>(memory, corpus.rows, k);
  if (!run) return;
  s.self = self;
  s.exclude_self = exclude_self;
  s.k = k;
  // float sums of `depth` products of at most 1 in all, truncated once in 16: generous, and small beside the residuals.
  // Rows that are not packed have no residual, but a norm summed in float.
  s.accumulation = 1.2e-7f * float(2 + s.packed_queries.depth / (direct ? 4 : 8));
  s.values = values;
  s.indices = indices;
  s.status = status;
  s.queue = queue;

  const auto stream = static_cast<cudaStream_t>(queue.stream);
  for (void* counter : {static_cast<void*>(s.lists.largest_residual), static_cast<void*>(s.lists.failed_count)})
    check(cudaMemsetAsync(counter, 0, 4, stream), "cudaMemsetAsync");
  pack(s.queries, s.packed_queries, s.query_norms, self ? s.lists.largest_residual : nullptr, &status->bad_query_row, queue);
  if (!self && !direct) pack(s.corpus, s.packed_corpus, s.corpus_norms, s.lists.largest_residual, &status->bad_corpus_row, queue);
  open_lists(s);
  seed_lists(s, hint.indices, hint.k);

  // Waves of tiles, each some three times all before it: between them the thresholds rise, so that a wave adds about 3 k
  // entries to a list. The first one comes without thresholds and must fit into the lists; what it holds beyond k is the
  // sample that the first threshold comes from.
  // Few queries have longer lists and take larger steps, to be done in fewer launches.
  const int64_t tiles = (corpus.rows + kTile - 1) / kTile, growth = direct ? 8 : 4;
  Direct rows{};
  if (direct)
    rows = {static_cast<const __half*>(corpus.data), corpus.rows, corpus.stride, corpus.cols, tiles,
            scattering_stride(tiles), &status->bad_corpus_row};
  const int64_t across = self ? tiles / 2 + 1 : tiles;
  const auto columns = [&](int64_t end) { return kTile * (self ? 2 * end - 1 : end); };  // that a row has met
  int64_t end = 1;
  while (end < across && (columns(end) < 2 * k || (direct && columns(end + 1) <= s.lists.capacity))) ++end;
  for (int64_t begin = 0; begin < across; begin = end, end = std::min(across, growth * end)) {
    if (direct) sweep_direct(s.packed_queries, rows, s.lists, exclude_self, begin, end, queue);
    else sweep(s.packed_queries, s.packed_corpus, s.lists, self, exclude_self, begin, end, queue);
    compact(s);
  }
  refine(s);
  redo_rows(s.queries, s.corpus, s.query_norms, s.corpus_norms, k, exclude_self, s.lists.failed, s.lists.failed_count,
            values, indices, redo_space, queue);
  check(cudaMemcpyAsync(&status->recomputed_rows, s.lists.failed_count, 4, cudaMemcpyDeviceToDevice, stream),
        "cudaMemcpyAsync");
}

// Carves the workspace, and runs where it is there.
void search(Workspace& memory, MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, Hint hint,
            void* values, int64_t* indices, TopkStatus* status, Queue queue, bool run) {
  by_dtype(queries.dtype, [&](auto type) {
    using In = decltype(type);
    if constexpr (std::is_same_v<In, double>) {
      exact<In>(memory, queries, corpus, k, exclude_self, hint, static_cast<double*>(values), indices, status, queue, run);
    } else {
      const auto way = is_filtered(queries, corpus, k) ? filtered<In> : exact<In, float>;
      way(memory, queries, corpus, k, exclude_self, hint, static_cast<float*>(values), indices, status, queue, run);
    }
  });
}

}  // namespace

int64_t cosine_topk_workspace(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, int64_t) {
  check_arguments(queries, corpus, k, exclude_self);
  Workspace memory(nullptr);
  search(memory, queries, corpus, k, exclude_self, {}, nullptr, nullptr, nullptr, {}, false);
  return memory.size();
}

void cosine_topk(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, const int64_t* hint, int64_t hint_k,
                 void* values, int64_t* indices, TopkStatus* status, void* workspace, Queue queue) {
  check_arguments(queries, corpus, k, exclude_self);
  const DeviceGuard guard(queue.device);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  check(cudaMemsetAsync(&status->bad_query_row, 0xff, 16, stream), "cudaMemsetAsync");
  check(cudaMemsetAsync(&status->candidates, 0, 16, stream), "cudaMemsetAsync");
  if (queries.rows == 0) return;
  Workspace memory(workspace);
  search(memory, queries, corpus, k, exclude_self, {hint, hint_k}, values, indices, status, queue, true);
}

}  // namespace gloss::cuda
