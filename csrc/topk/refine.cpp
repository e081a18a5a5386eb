#include "refine.h"

#include <algorithm>

namespace gloss::cpu {
namespace {

int64_t padded(int64_t cols) { return (cols + 15) / 16 * 16; }

// A zero row has cosine 0 with everything: the first k indices.
void fill_zero_row(const Job& job, int64_t row, int64_t slot) {
  for (int64_t r = 0, j = 0; r < job.k; ++j) {
    if (job.exclude_self && j == row) continue;
    job.values[slot * job.k + r] = 0;
    job.indices[slot * job.k + r++] = j;
  }
}

// Room of one thread.
struct Scratch {
  explicit Scratch(int64_t cols) : query(size_t(padded(cols))) {}
  std::vector<double> query, dot;
  std::vector<int32_t> ids;
  std::vector<float> approximate;
  std::vector<uint64_t> keys;

  // keys += order keys of the pairs (row, ids)
  void score(const Job& job, int64_t row) {
    dot.resize(ids.size());
    kernels().dots(query.data(), 1, 0, &job.corpus.source, ids.data(), int64_t(ids.size()), dot.data());
    for (size_t c = 0; c < ids.size(); ++c)
      keys.push_back(order_key(float(dot[c] * (job.queries.inverse_norm[row] * job.corpus.inverse_norm[ids[c]])),
                               ids[c]));
  }
};

int64_t refine_row(const Job& job, const Candidates& candidates, int64_t position, Scratch& s) {
  const int64_t row = job.ids[position], slot = job.slot(position), k = job.k;
  const auto& state = candidates.state(position);
  const float* values = candidates.values(position);
  const int32_t* indices = candidates.indices(position);
  const float g = candidates.guard(state);
  kernels().load_row(&job.queries.source, row, s.query.data());

  // First those with the k best approximate values: their k-th true value tells who else can be among the best.
  const float kth = candidates.kth_value(position, g / 8);
  s.ids.clear();
  s.keys.clear();
  for (int32_t c = 0; c < state.count; ++c)
    if (values[c] >= kth) s.ids.push_back(indices[c]);
  s.score(job, row);
  std::nth_element(s.keys.begin(), s.keys.begin() + (k - 1), s.keys.end());
  const float bound = key_value(s.keys[size_t(k - 1)]) - g;

  s.ids.clear();
  for (int32_t c = 0; c < state.count; ++c)
    if (values[c] < kth && values[c] >= bound) s.ids.push_back(indices[c]);
  s.score(job, row);
  std::partial_sort(s.keys.begin(), s.keys.begin() + k, s.keys.end());
  for (int64_t r = 0; r < k; ++r) {
    job.values[slot * k + r] = key_value(s.keys[size_t(r)]);
    job.indices[slot * k + r] = key_index(s.keys[size_t(r)]);
  }
  return int64_t(s.keys.size());
}

}  // namespace

int64_t refine(const Job& job, const Candidates& candidates, std::vector<int32_t>& leftover, Ticker& ticker) {
  std::atomic<int64_t> scored{0};
  Queue queue(job.count, 32);
  ticker.stage(0.99, double(job.count));
  parallel(job.threads, [&](int thread) {
    Scratch scratch(job.queries.source.cols);
    int64_t mine = 0;
    for (Range range; queue.next(range);) {
      for (int64_t p = range.begin; p < range.end; ++p) {
        const int32_t count = candidates.state(p).count;
        if (count == Candidates::kClosed) fill_zero_row(job, job.ids[p], job.slot(p));
        else if (count != Candidates::kFailed) mine += refine_row(job, candidates, p, scratch);
      }
      if (!ticker.advance(thread, range.end - range.begin)) return;
    }
    scored += mine;
  });
  ticker.check();
  for (int64_t p = 0; p < job.count; ++p)
    if (candidates.state(p).count == Candidates::kFailed) leftover.push_back(int32_t(p));
  return scored;
}

void seed(const Job& job, Candidates& candidates, Hint hint) {
  Queue queue(job.count, 64);
  parallel(job.threads, [&](int) {
    Scratch s(job.queries.source.cols);
    for (Range range; queue.next(range);) {
      for (int64_t p = range.begin; p < range.end; ++p) {
        const int64_t row = job.ids[p];
        s.ids.clear();
        s.keys.clear();
        for (const int64_t* h = hint.rows + row * hint.k; h < hint.rows + (row + 1) * hint.k; ++h)
          if (*h >= 0 && *h < job.corpus.rows && !(job.exclude_self && *h == row)) s.ids.push_back(int32_t(*h));
        std::sort(s.ids.begin(), s.ids.end());
        s.ids.erase(std::unique(s.ids.begin(), s.ids.end()), s.ids.end());
        if (int64_t(s.ids.size()) < job.k) continue;
        kernels().load_row(&job.queries.source, row, s.query.data());
        s.score(job, row);
        std::nth_element(s.keys.begin(), s.keys.begin() + (job.k - 1), s.keys.end());
        candidates.raise(p, key_value(s.keys[size_t(job.k - 1)]));
      }
    }
  });
}

}  // namespace gloss::cpu
