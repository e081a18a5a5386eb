// Every pair in double: the whole search for float64, for small problems and for rows that no filter can separate.
#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "refine.h"

namespace gloss::cpu {
namespace {

int64_t padded(int64_t cols) { return (cols + 15) / 16 * 16; }

// A power of two near 1 / max |x|: the squares of a scaled row neither overflow nor vanish. 0 if not finite.
double power_of_two_scale(const double* x, int64_t cols) {
  double most = 0;
  for (int64_t c = 0; c < cols; ++c) {
    const double size = std::fabs(x[c]);
    if (!(size <= std::numeric_limits<double>::max())) return 0;
    most = std::max(most, size);
  }
  return most == 0 ? 1 : std::ldexp(1.0, -std::clamp(std::ilogb(most), -1000, 1000));
}

// 1 / |x|, 0 for a zero row, NaN for a row that is not finite. query [cols rounded up to 16] is overwritten.
double inverse_norm(const Operand& operand, int64_t row, double* query) {
  const int32_t id = int32_t(row);
  double squared;
  kernels().load_row(&operand.source, row, query);
  kernels().dots(query, 1, 0, &operand.source, &id, 1, &squared);
  if (!(squared <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::quiet_NaN();
  return squared > 0 ? 1 / std::sqrt(squared) : 0;
}

constexpr int64_t kQueries = 16, kRows = 64;  // up to 16 queries meet 64 corpus rows while these are in L2

struct Entry {
  double value;
  int32_t index;
  bool operator<(const Entry& other) const {  // the better first
    return value != other.value ? value > other.value : index < other.index;
  }
};

}  // namespace

void throw_bad_row(const Operand& operand) {
  std::vector<double> query(static_cast<size_t>(padded(operand.source.cols)));
  int64_t row = 0;
  for (; row < operand.rows; ++row) {
    kernels().load_row(&operand.source, row, query.data());
    double sum = 0;
    for (int64_t c = 0; c < operand.source.cols; ++c) sum += query[size_t(c)] * 0;  // 0 * Inf is NaN
    if (sum != 0) break;
  }
  throw std::invalid_argument(std::string(operand.name) + ": row " + std::to_string(row) + " contains NaN or Inf");
}

void compute_norms(const Operand& operand, int threads) {
  Queue queue(operand.rows, 256);
  const auto* wide = static_cast<const double*>(operand.source.data);
  auto* scale = const_cast<double*>(operand.source.scale);
  std::atomic<bool> bad{false};
  parallel(threads, [&](int) {
    std::vector<double> query(static_cast<size_t>(padded(operand.source.cols)));
    for (Range range; queue.next(range) && !bad;) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        if (scale) scale[i] = power_of_two_scale(wide + i * operand.source.stride, operand.source.cols);
        operand.inverse_norm[i] = inverse_norm(operand, i, query.data());
        if (std::isnan(operand.inverse_norm[i]) || (scale && scale[i] == 0)) bad = true;
      }
    }
  });
  if (!bad) return;
  if (scale) std::fill_n(scale, operand.rows, 1.0);  // not all were reached
  throw_bad_row(operand);
}

template <class T>
void brute_force(const Job& job, const std::vector<int32_t>& positions, T* values, int64_t* indices,
                 Ticker& ticker) {
  const int64_t queries_at_once = std::clamp<int64_t>(int64_t(positions.size()) / job.threads, 1, kQueries);
  const int64_t n = job.corpus.rows, k = job.k, wide = padded(job.queries.source.cols);
  Queue queue(int64_t(positions.size()), queries_at_once);
  ticker.stage(1.0, double(positions.size()) * double(n));
  parallel(job.threads, [&](int thread) {
    std::vector<double> query(size_t(queries_at_once * wide));
    std::vector<std::vector<Entry>> best(static_cast<size_t>(queries_at_once));  // heaps, the worst at the front
    for (Range range; queue.next(range);) {
      for (int64_t q = range.begin; q < range.end; ++q) {
        kernels().load_row(&job.queries.source, job.ids[positions[size_t(q)]],
                           query.data() + (q - range.begin) * wide);
        best[size_t(q - range.begin)].clear();
      }
      int32_t ids[kRows];
      double products[kQueries * kRows];
      for (int64_t first = 0; first < n; first += kRows) {
        const int64_t count = std::min(kRows, n - first);
        std::iota(ids, ids + count, int32_t(first));
        kernels().dots(query.data(), range.end - range.begin, wide, &job.corpus.source, ids, count, products);
        for (int64_t q = range.begin; q < range.end; ++q) {
          const int64_t row = job.ids[positions[size_t(q)]];
          const double inverse = job.queries.inverse_norm[row];
          auto& heap = best[size_t(q - range.begin)];
          const double* dot = products + (q - range.begin) * count;
          for (int64_t c = 0; c < count; ++c) {
            if (job.exclude_self && ids[c] == row) continue;
            const Entry entry{double(T(dot[c] * (inverse * job.corpus.inverse_norm[ids[c]]))) + 0.0, ids[c]};
            if (int64_t(heap.size()) < k) {
              heap.push_back(entry);
              std::push_heap(heap.begin(), heap.end());
            } else if (entry < heap.front()) {
              std::pop_heap(heap.begin(), heap.end());
              heap.back() = entry;
              std::push_heap(heap.begin(), heap.end());
            }
          }
        }
        if (!ticker.advance(thread, count * (range.end - range.begin))) return;
      }
      for (int64_t q = range.begin; q < range.end; ++q) {
        auto& heap = best[size_t(q - range.begin)];
        std::sort_heap(heap.begin(), heap.end());
        const int64_t slot = job.slot(positions[size_t(q)]);
        for (int64_t r = 0; r < k; ++r) {
          values[slot * k + r] = T(heap[size_t(r)].value);
          indices[slot * k + r] = heap[size_t(r)].index;
        }
      }
    }
  });
  ticker.check();
}

template void brute_force<float>(const Job&, const std::vector<int32_t>&, float*, int64_t*, Ticker&);
template void brute_force<double>(const Job&, const std::vector<int32_t>&, double*, int64_t*, Ticker&);

}  // namespace gloss::cpu
