// Some rows against a corpus. The corpus is packed piece by piece and forgotten: with few queries packing costs as much
// as the products, and with many it is repeated for every 1536 of them, at two hundredths of their cost.
#include <numeric>
#include <vector>

#include "refine.h"
#include "sweep_common.h"

namespace gloss::cpu {
namespace {

constexpr int64_t kUnit = 192;          // queries packed at a time: 3 groups, 32 tiles
constexpr int64_t kSuperBlock = 1536;   // queries that meet one packed piece of the corpus

// tiles [count / 192 rounded up][32][steps][6]
void pack_queries(const Job& job, Format format, int64_t steps, uint32_t* tiles, Candidates& candidates,
                  Meter& meter) {
  const int64_t cols = job.queries.source.cols;
  std::vector<Buffer<uint32_t>> scratch, groups;
  for (int t = 0; t < job.threads; ++t) {
    scratch.emplace_back(16 * (cols + 16), &meter);
    groups.emplace_back(kUnit * steps, &meter);
  }
  Queue queue((job.count + kUnit - 1) / kUnit, 1);
  parallel(job.threads, [&](int thread) {
    double inverse_norm[kGroup];
    float residual[kGroup];
    for (Range range; queue.next(range);) {
      const int64_t first = range.begin * kUnit, last = std::min(job.count, first + kUnit);
      for (int64_t begin = first; begin < last; begin += kGroup) {
        const int64_t count = std::min<int64_t>(kGroup, last - begin);
        if (kernels().pack_group(&job.queries.source, job.ids + begin, int(count), format == Format::bf16,
                                 groups[size_t(thread)].get() + (begin - first) * steps, inverse_norm, residual,
                                 scratch[size_t(thread)].get()) >= 0)
          throw_bad_row(job.queries);
        for (int64_t i = 0; i < count; ++i) {
          job.queries.inverse_norm[job.ids[begin + i]] = inverse_norm[i];
          candidates.open(begin + i, residual[i], inverse_norm[i] == 0);
        }
      }
      kernels().pack_tiles(groups[size_t(thread)].get(), 0, last - first, steps, tiles + first * steps);
    }
  });
}

// A thread's piece of the corpus.
struct Piece {
  Piece(int64_t group_count, int64_t steps, int64_t cols, Meter& meter)
      : groups(group_count * kGroup * steps, &meter), scratch(16 * (cols + 16), &meter), ids(group_count * kGroup),
        inverse_norm(group_count * kGroup), residual(group_count * kGroup) {}
  Buffer<uint32_t> groups, scratch;
  Buffer<int32_t> ids;
  Buffer<double> inverse_norm;
  Buffer<float> residual;
};

}  // namespace

int64_t visiting_stride(int64_t n) {
  int64_t stride = std::max<int64_t>(1, int64_t(double(n) * 0.6180339887498949));
  while (std::gcd(stride, n) != 1) ++stride;
  return stride;
}

bool sweep_rectangle(const Job& job, Format format, Candidates& candidates, Hint hint,
                     int64_t allowed_failures, Ticker& ticker, Meter& meter) {
  const int64_t n = job.corpus.rows, steps = packed_steps(job.corpus.source.cols, format);
  const int64_t rows = block_rows(steps), stride = visiting_stride(n);
  const int64_t group_count = (n + kGroup - 1) / kGroup, supers = (job.count + kSuperBlock - 1) / kSuperBlock;
  Buffer<uint32_t> tiles((job.count + kUnit - 1) / kUnit * kUnit * steps, &meter);
  pack_queries(job, format, steps, tiles.get(), candidates, meter);
  if (hint.rows) {
    compute_norms(job.corpus, job.threads);
    seed(job, candidates, hint);
  }

  // Groups a piece: half a megabyte, and enough pieces for all threads.
  const int64_t fit = std::clamp<int64_t>((int64_t(512) << 10) / (4 * kGroup * std::max<int64_t>(steps, 1)), 1, 8);
  const int64_t piece = std::clamp<int64_t>(group_count * supers / (4 * job.threads), 1, fit);
  const int64_t pieces = (group_count + piece - 1) / piece;

  std::vector<TileKernel> kernel;
  std::vector<Piece> local;
  for (int t = 0; t < job.threads; ++t) {
    kernel.emplace_back(format, steps, meter);
    std::fill_n(kernel.back().column_thresholds, kGroup, std::numeric_limits<float>::infinity());
    local.emplace_back(piece, steps, job.corpus.source.cols, meter);
  }
  Queue queue(supers * pieces, 1);
  ticker.stage(0.92, double(group_count) * double(job.count));
  parallel(job.threads, [&](int thread) {
    TileKernel& run = kernel[size_t(thread)];
    Piece& mine = local[size_t(thread)];
    for (Range range; queue.next(range);) {
      const int64_t super = range.begin / pieces, first_group = range.begin % pieces * piece;
      const int64_t last_group = std::min(group_count, first_group + piece);

      float seen = 0;
      for (int64_t g = first_group; g < last_group; ++g) {
        const int64_t begin = g * kGroup, count = std::min<int64_t>(kGroup, n - begin);
        const int64_t at = (g - first_group) * kGroup;
        for (int64_t i = 0; i < count; ++i) mine.ids[at + i] = int32_t((begin + i) * stride % n);
        if (kernels().pack_group(&job.corpus.source, mine.ids.get() + at, int(count), format == Format::bf16,
                                 mine.groups.get() + at * steps, mine.inverse_norm.get() + at,
                                 mine.residual.get() + at, mine.scratch.get()) >= 0)
          throw_bad_row(job.corpus);
        for (int64_t i = 0; i < count; ++i) {
          seen = std::max(seen, mine.residual[at + i]);
          if (super == 0) job.corpus.inverse_norm[mine.ids[at + i]] = mine.inverse_norm[at + i];
        }
      }
      candidates.widen(seen);

      const int64_t end = std::min(job.count, (super + 1) * kSuperBlock);
      for (int64_t begin = super * kSuperBlock; begin < end; begin += rows) {
        const int64_t count = std::min(rows, end - begin);
        for (int64_t g = first_group; g < last_group; ++g) {
          const int64_t at = (g - first_group) * kGroup, valid = std::min<int64_t>(kGroup, n - g * kGroup);
          candidates.thresholds(begin, count, run.row_thresholds);
          const int64_t found = run(tiles.get() + begin * steps, count, mine.groups.get() + at * steps);
          Survivor* survivors = run.survivors.get();
          int64_t kept = 0;
          for (int64_t s = 0; s < found; ++s) {
            const Survivor one = survivors[s];
            survivors[kept] = one;
            kept += one.column < valid && one.row < count &&
                    !(job.exclude_self && mine.ids[at + one.column] == job.ids[begin + one.row]);
          }
          add_to_rows(candidates, survivors, kept, begin,
                      [&](int32_t column) { return mine.ids[at + column]; });
        }
        if (!ticker.advance(thread, count * (last_group - first_group)) ||
            candidates.failed() > allowed_failures)
          return;
      }
    }
  });
  ticker.check();
  return candidates.failed() <= allowed_failures;
}

}  // namespace gloss::cpu
