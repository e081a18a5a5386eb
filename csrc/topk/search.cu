// Exact cosine top-k on the GPU (gloss_cuda.h: cosine_topk): which way a search goes, and the order of its launches.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "topk/arguments.h"
#include "topk/lists.cuh"

namespace gloss::cuda {
namespace {

constexpr int64_t kFewPairs = int64_t(1) << 18;  // so many are scored faster than filtered
constexpr int64_t kSplitCols = 64;               // rows as short are packed in two halves: three times as long
constexpr int64_t kFewRows = 512;                // of the corpus: three blocks at least

bool same_matrix(MatrixView a, MatrixView b) {
  return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.stride == b.stride;
}

bool is_filtered(MatrixView queries, MatrixView corpus, int64_t k) {
  return queries.dtype != DType::f64 && queries.cols > 0 && k <= kLargestK && 4 * k <= corpus.rows && corpus.rows > kFewRows &&
         queries.rows > kFewPairs / corpus.rows;
}

// A few tiles of queries read a corpus of 16-bit rows once, as it is. Its rows must be made of aligned chunks of 8
// numbers.
bool is_swept_raw(MatrixView queries, MatrixView corpus) {
  return queries.rows <= 4 * kTileRows && (corpus.dtype == DType::f16 || corpus.dtype == DType::bf16) &&
         corpus.cols > 0 &&
         corpus.cols % 8 == 0 && corpus.stride % 8 == 0 && reinterpret_cast<uintptr_t>(corpus.data) % 16 == 0;
}

void check_arguments(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self) {
  check_search(queries, corpus, k, exclude_self);
  if (corpus.rows > INT32_MAX || queries.rows > INT32_MAX)
    throw std::invalid_argument("queries and corpus must have at most 2^31 - 1 rows, got more");
}

struct Norms {
  double *queries, *corpus;
};
Norms norms_carve(Workspace& memory, MatrixView queries, MatrixView corpus, bool self) {
  double* of_queries = memory.take<double>(queries.rows);
  return {of_queries, self ? of_queries : memory.take<double>(corpus.rows)};
}

struct Hint {
  const int64_t* indices;  // [queries.rows, k] or null
  int64_t k;
};

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

// How many times what a row has met the next wave brings it to. It adds k (g - 1) entries to the row's list, and
// ln n / ln g waves do: g minimises their cost, (kCompaction + k (g - 1)) / ln g. The list must hold what a wave adds,
// at 8 sigma, beside its k best and those that the packed rows cannot tell from them. k = 1: 6, 15: 2,
// 100: 1.4.
constexpr double kCompaction = 6;  // of a row, in appends (0.7 ns): 2 ns, and a share of two launches
double growth_of(int64_t k, int64_t capacity) {
  const double n = double(k);
  const auto added = [&](double g) { return n * (g - 1) + 8 * std::sqrt(n * (g - 1) * g); };
  const auto cost = [&](double g) { return (kCompaction + n * (g - 1)) / std::log(g); };
  double growth = 1.25;
  const auto fits = [&](double g) { return n + n / 4 + 16 + added(g) <= double(capacity); };
  while (fits(growth * 1.05) && cost(growth * 1.05) < cost(growth)) growth *= 1.05;
  return growth;
}

// Waves of tiles; between them the thresholds rise. The first stores whatever it computes, the last leaves its entries
// to refine().
template <class In>
void run_waves(const Search<In>& s) {
  const double growth = growth_of(s.k, s.lists.capacity);
  const int64_t blocks = s.packed_corpus.blocks, room = s.lists.capacity / kBlock;
  if (!s.self) {
    int64_t end = std::min(room, blocks);
    sweep(s.packed_queries, s.packed_corpus, s.raw, s.lists, {false, true, s.exclude_self, 0, 0, end}, s.queue);
    compact(s, int(end) * kBlock);
    while (end < blocks) {
      const int64_t begin = end;
      end = std::min(blocks, std::max(begin + 1, int64_t(growth * double(begin))));
      sweep(s.packed_queries, s.packed_corpus, s.raw, s.lists, {false, false, s.exclude_self, 0, begin, end}, s.queue);
      if (end < blocks) compact(s, 0);
    }
    return;
  }
  // Deltas below `end` make a row meet 2 end - 1 blocks. Dense, both sides are computed.
  const auto met = [](int64_t end) { return 2 * end - 1; };
  int64_t end = (std::min(room, blocks) + 1) / 2;
  sweep(s.packed_queries, s.packed_corpus, s.raw, s.lists, {true, true, s.exclude_self, blocks, 1 - end, end}, s.queue);
  compact(s, int(met(end)) * kBlock);
  const int64_t whole = (blocks + 1) / 2;  // deltas that all blocks take part in
  while (end < whole) {
    const int64_t begin = end;
    end = std::min(whole, std::max(begin + 1, int64_t((growth * double(met(begin)) + 1) / 2)));
    sweep(s.packed_queries, s.packed_corpus, s.raw, s.lists, {true, false, s.exclude_self, blocks, begin, end},
          s.queue);
    if (met(end) < blocks) compact(s, 0);
  }
  if (blocks % 2 == 0 && met(end) < blocks)  // half way round
    sweep(s.packed_queries, s.packed_corpus, s.raw, s.lists, {true, false, s.exclude_self, blocks / 2, end, end + 1},
          s.queue);
}

template <class In>
void filtered(Workspace& memory, MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, Hint hint,
              float* values, int64_t* indices, TopkStatus* status, Queue queue, bool run) {
  const bool self = same_matrix(queries, corpus);
  Search<In> s{};
  s.queries = rows_of<In>(queries);
  s.corpus = rows_of<In>(corpus);
  const Norms norms = norms_carve(memory, queries, corpus, self);
  s.query_norms = norms.queries;
  s.corpus_norms = norms.corpus;
  const bool raw = !self && is_swept_raw(queries, corpus), split = !raw && queries.cols <= kSplitCols;
  s.packed_queries = packed_carve(memory, queries.rows, queries.cols, split, self, true);
  s.packed_corpus = self ? s.packed_queries : packed_carve(memory, corpus.rows, corpus.cols, split, true, !raw);
  if (raw)
    s.raw = {static_cast<const Chunk*>(corpus.data), corpus.dtype,      corpus.stride / 8,
             int(corpus.cols),                       s.packed_corpus.id, s.corpus_norms,
             status ? &status->bad_corpus_row : nullptr, memory.take<int>(s.packed_queries.padded)};
  s.lists = lists_carve(memory, s.packed_queries.padded, k);
  s.failed = failed_carve(memory, s.packed_queries.padded, corpus.rows, k);
  if (!run) return;
  s.self = self;
  s.exclude_self = exclude_self;
  s.k = k;
  // Sums of products that come to 1 at most in all. The tensor cores add 8 or 16 of them to a sum at a time, each cut
  // to the length of the largest: below 9 / 8 * 2^-23 a product. A split leaves out low . low, below 2^-22.
  s.accumulation = 1.4e-7f * float(s.packed_queries.steps * kStep) + (split ? 3e-7f : 0.0f) + 4e-7f;
  s.values = values;
  s.indices = indices;
  s.status = status;
  s.queue = queue;

  const auto fill = [&](void* at, int byte, size_t bytes) {
    check(cudaMemsetAsync(at, byte, bytes, static_cast<cudaStream_t>(queue.stream)), "cudaMemsetAsync");
  };
  fill(s.lists.largest_residual, 0, sizeof(unsigned));
  fill(s.failed.count, 0, sizeof(int));
  fill(s.failed.hashes, 0, size_t(s.failed.slots) * sizeof(Key));
  fill(s.failed.smallest, 0x7f, size_t(s.failed.slots) * sizeof(int));
  if (raw) fill(s.raw.odd, 0, size_t(s.packed_queries.padded) * sizeof(int));
  pack(s.queries, s.query_norms, s.packed_queries, raw && queries.dtype == DType::bf16, &s.lists,
       self ? s.lists.largest_residual : nullptr, &status->bad_query_row, queue);
  if (!self && !raw)
    pack(s.corpus, s.corpus_norms, s.packed_corpus, false, static_cast<const Lists*>(nullptr), s.lists.largest_residual,
         &status->bad_corpus_row, queue);
  seed_lists(s, hint.indices, hint.k);
  run_waves(s);
  refine(s);
  redo(s);
}

// Carves the workspace, and runs where it is there.
void search(Workspace& memory, MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, Hint hint,
            void* values, int64_t* indices, TopkStatus* status, Queue queue, bool run) {
  by_dtype(queries.dtype, [&](auto type) {
    using In = decltype(type);
    if constexpr (std::is_same_v<In, double>) {
      exact<In>(memory, queries, corpus, k, exclude_self, hint, static_cast<double*>(values), indices, status, queue,
                run);
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

void cosine_topk(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, const int64_t* hint,
                 int64_t hint_k, void* values, int64_t* indices, TopkStatus* status, void* workspace, Queue queue) {
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
