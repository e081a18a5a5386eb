// cosine_topk on the CPU: filter (sweep), compact (candidates), refine. docs/architecture.md, section 3.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "arguments.h"
#include "operand.h"
#include "refine.h"
#include "sweep.h"

namespace gloss::cpu {
namespace {

int64_t list_capacity(int64_t k) { return (2 * k + 64 + 15) / 16 * 16; }

// Lists that would hold nearly everything filter nothing.
bool filter_pays(int64_t k, int64_t corpus_rows) { return corpus_rows >= 3 * k + 48; }

constexpr int64_t kRedoBytes = int64_t(256) << 20;  // for the longer lists
constexpr int64_t kFewRows = 256;    // of the corpus
constexpr int64_t kFewQueries = 8;  // packing a corpus row costs as much as scoring it ten times

// 64-bit hash of the bytes of a row.
uint64_t hash_row(const unsigned char* bytes, int64_t count) {
  uint64_t hash = 0x9e3779b97f4a7c15u;
  for (int64_t b = 0; b < count; b += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + b, size_t(std::min<int64_t>(8, count - b)));
    hash = (hash ^ word) * 0xd6e8feb86659fd93u;
    hash ^= hash >> 32;
  }
  return hash;
}

class Search {
 public:
  Search(Progress progress, Meter& meter, TopkStats& stats) : ticker_(progress), meter_(meter), stats_(stats) {}

  void run(const Job& job, Hint hint) {
    // Short rows gain little from 16 bit and have many near ties; in a small corpus scoring them again costs more than
    // the products.
    Format format = kernels().sweep_bf16 && job.queries.source.cols >= 64 && job.corpus.rows >= kFewRows ? Format::bf16
                                                                                                 : Format::f32;
    std::vector<int32_t> leftover;
    const int64_t capacity = list_capacity(job.k);
    if (!filter(job, format, hint, capacity, format == Format::bf16 ? job.count / 8 : job.count / 2, leftover) &&
        format == Format::bf16)
      filter(job, Format::f32, hint, capacity, job.count / 2, leftover);
    if (leftover.empty()) return;
    stats_.recomputed_rows += int64_t(leftover.size());
    redo(job, leftover);
  }

  template <class T>
  void run_brute_force(const Job& job, T* values) {
    compute_norms(job.queries, job.threads);
    if (!job.self) compute_norms(job.corpus, job.threads);
    std::vector<int32_t> all(size_t(job.count));
    std::iota(all.begin(), all.end(), 0);
    brute_force(job, all, values, job.indices, ticker_);
  }

 private:
  // Results of all rows but `leftover`. False, and all rows left over, if too many lists failed.
  bool filter(const Job& job, Format format, Hint hint, int64_t capacity, int64_t allowed_failures,
              std::vector<int32_t>& leftover) {
    // Each of d additions is rounded at a sum below 1.01; the final value is rounded to float.
    const double accumulation = double(job.queries.source.cols) * 0x1p-24 * 1.03 + 2e-7;
    Candidates candidates(job.count, job.k, capacity, accumulation, &meter_);
    const bool complete = (job.self ? sweep_self : sweep_rectangle)(job, format, candidates, hint, allowed_failures,
                                                                    ticker_, meter_);
    if (!complete) {
      leftover.resize(size_t(job.count));
      std::iota(leftover.begin(), leftover.end(), 0);
      return false;
    }
    leftover.clear();
    stats_.candidates += refine(job, candidates, leftover, ticker_);
    return true;
  }

  // Rows with more near ties than a list holds. Identical rows have the same k + 1 best rows when none is left out,
  // so that one of them is searched for all: a thousand copies of an empty document cost one row. They get longer
  // lists, and what is still left is compared with everything.
  void redo(const Job& job, const std::vector<int32_t>& positions) {
    const RowSource& source = job.queries.source;
    const int64_t size = source.dtype == 1 ? 4 : 2, bytes = source.cols * size;
    const auto row_bytes = [&](int32_t position) {
      return static_cast<const unsigned char*>(source.data) + job.ids[position] * source.stride * size;
    };
    std::vector<std::pair<uint64_t, int32_t>> order;  // (hash, position)
    for (int32_t position : positions) order.emplace_back(hash_row(row_bytes(position), bytes), position);
    std::sort(order.begin(), order.end());

    std::vector<int32_t> rows;       // one of each
    std::vector<int32_t> answer;     // of order[i]: which of them
    for (size_t i = 0; i < order.size(); ++i) {
      const bool repeats = i > 0 && order[i].first == order[i - 1].first &&
                           std::memcmp(row_bytes(order[i].second), row_bytes(order[i - 1].second), size_t(bytes)) == 0;
      if (!repeats) rows.push_back(job.ids[order[i].second]);
      answer.push_back(int32_t(rows.size()) - 1);
    }

    Job again = job;
    again.self = false;
    again.ids = rows.data();
    again.count = int64_t(rows.size());
    again.slot_is_position = true;
    again.k = job.k + (job.exclude_self ? 1 : 0);
    again.exclude_self = false;
    Buffer<float> values(again.count * again.k, &meter_);
    Buffer<int64_t> indices(again.count * again.k, &meter_);
    again.values = values.get();
    again.indices = indices.get();

    std::vector<int32_t> left(rows.size());
    std::iota(left.begin(), left.end(), 0);
    const int64_t most = (again.corpus.rows + 31) / 16 * 16;
    const int64_t least = std::min(list_capacity(again.k), most);
    const int64_t capacity = std::clamp(kRedoBytes / (8 * again.count) / 16 * 16, least, most);
    filter(again, Format::f32, {nullptr, 0}, capacity, again.count / 2, left);
    if (!left.empty()) {
      compute_norms(again.corpus, again.threads);
      brute_force(again, left, again.values, again.indices, ticker_);
    }

    for (size_t i = 0; i < order.size(); ++i) {
      const int64_t row = job.ids[order[i].second], slot = job.slot(order[i].second), from = answer[i] * again.k;
      for (int64_t r = 0, to = 0; to < job.k; ++r) {
        if (job.exclude_self && indices[from + r] == row) continue;
        job.values[slot * job.k + to] = values[from + r];
        job.indices[slot * job.k + to++] = indices[from + r];
      }
    }
  }

  Ticker ticker_;
  Meter& meter_;
  TopkStats& stats_;
};

}  // namespace

void cosine_topk(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, const int64_t* hint,
                 int64_t hint_k, void* values, int64_t* indices, int threads, Progress progress, TopkStats* stats) {
  check_search(queries, corpus, k, exclude_self);
  TopkStats unused;
  TopkStats& result = stats ? *stats : unused;
  result = {0, 0, 0, queries.dtype == DType::f64 ? "float64" : isa_name(isa())};
  if (queries.rows == 0) return;

  Meter meter;
  const bool self = same_matrix(queries, corpus);
  OperandStorage query_rows("queries", queries, &meter);
  OperandStorage corpus_rows("corpus", self ? MatrixView{nullptr, DType::f32, 0, 0, 0} : corpus, &meter);
  Job job{query_rows.operand, self ? query_rows.operand : corpus_rows.operand,
          self, nullptr, queries.rows, false, k, exclude_self, static_cast<float*>(values), indices,
          std::max(threads, 1)};

  Buffer<int32_t> ids(queries.rows, &meter);
  const int64_t stride = self ? visiting_stride(queries.rows) : 1;
  for (int64_t p = 0; p < queries.rows; ++p) ids[p] = int32_t(p * stride % queries.rows);
  job.ids = ids.get();

  Search search(progress, meter, result);
  if (queries.dtype == DType::f64) search.run_brute_force(job, static_cast<double*>(values));
  else if (queries.rows <= kFewQueries || !filter_pays(k, corpus.rows))
    search.run_brute_force(job, static_cast<float*>(values));
  else search.run(job, {hint_k > 0 ? hint : nullptr, hint_k});
  result.workspace_bytes = meter.most;
}

}  // namespace gloss::cpu
