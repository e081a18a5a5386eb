// Queries and corpus are one matrix: the upper triangle, each product offered to both of its rows.
#include <vector>

#include "refine.h"
#include "sweep_common.h"

namespace gloss::cpu {
namespace {

// groups [n / 64 rounded up][64 * steps]
void pack_all(const Job& job, Format format, int64_t steps, uint32_t* groups, Candidates& candidates,
              Ticker& ticker, Meter& meter) {
  const int64_t n = job.count, cols = job.queries.source.cols;
  std::vector<Buffer<uint32_t>> scratch;
  for (int t = 0; t < job.threads; ++t) scratch.emplace_back(16 * (cols + 16), &meter);
  Queue queue((n + kGroup - 1) / kGroup, 4);
  parallel(job.threads, [&](int thread) {
    double inverse_norm[kGroup];
    float residual[kGroup];
    for (Range range; queue.next(range);) {
      for (int64_t g = range.begin; g < range.end; ++g) {
        const int64_t first = g * kGroup, count = std::min<int64_t>(kGroup, n - first);
        if (kernels().pack_group(&job.queries.source, job.ids + first, int(count), format == Format::bf16,
                                 groups + g * kGroup * steps, inverse_norm, residual,
                                 scratch[size_t(thread)].get()) >= 0)
          throw_bad_row(job.queries);
        for (int64_t i = 0; i < count; ++i) {
          job.queries.inverse_norm[job.ids[first + i]] = inverse_norm[i];
          candidates.open(first + i, residual[i], inverse_norm[i] == 0);
          candidates.widen(residual[i]);
        }
      }
      if (!ticker.advance(thread, range.end - range.begin)) return;
    }
  });
  ticker.check();
}

struct Block {
  int64_t begin, end;
};
struct Task {
  Block block;
  int64_t group_begin, group_end;
};

// The first blocks are short: until a first few rows have met every column, no threshold is known and every product
// is a candidate.
std::vector<Task> triangle(int64_t n, int64_t rows, int threads) {
  const int64_t groups = (n + kGroup - 1) / kGroup;
  const int64_t chunk = std::clamp<int64_t>(groups / (8 * threads), 4, 64);
  std::vector<Task> tasks;
  for (Block block{0, 0}; block.begin < n; block.begin = block.end) {
    const int64_t length = std::clamp<int64_t>(block.begin, 48, rows);
    block.end = std::min(n, block.begin + length / 48 * 48);
    for (int64_t g = block.begin / kGroup; g < groups; g += chunk)
      tasks.push_back({block, g, std::min(groups, g + chunk)});
  }
  return tasks;
}

// Hands the survivors of a block and a group to both sides.
void collect(const Job& job, Candidates& candidates, Block block, int64_t group, Survivor* survivors, int64_t count) {
  const int64_t first_column = group * kGroup, valid = std::min<int64_t>(kGroup, job.count - first_column);
  const bool diagonal = first_column < block.end;
  if (diagonal || valid < kGroup || (block.end - block.begin) % kTileRows != 0) {
    // Keep what lies above the diagonal (on it too, if a row may find itself) and is no padding.
    int64_t kept = 0;
    for (int64_t s = 0; s < count; ++s) {
      const int64_t row = block.begin + survivors[s].row, column = first_column + survivors[s].column;
      survivors[kept] = survivors[s];
      kept += row < block.end && survivors[s].column < valid && (column > row || (column == row && !job.exclude_self));
    }
    count = kept;
  }
  if (count == 0) return;
  {
    std::lock_guard<std::mutex> hold(candidates.lock(first_column));
    for (int64_t s = 0; s < count; ++s) {
      const int64_t row = block.begin + survivors[s].row, column = first_column + survivors[s].column;
      if (row != column) candidates.add(column, survivors[s].value, job.ids[row]);
    }
  }
  add_to_rows(candidates, survivors, count, block.begin,
              [&](int32_t column) { return job.ids[first_column + column]; });
}

}  // namespace

bool sweep_self(const Job& job, Format format, Candidates& candidates, Hint hint, int64_t allowed_failures,
                Ticker& ticker, Meter& meter) {
  const int64_t n = job.count, steps = packed_steps(job.queries.source.cols, format);
  const int64_t group_count = (n + kGroup - 1) / kGroup, rows = block_rows(steps);
  Buffer<uint32_t> groups(group_count * kGroup * steps, &meter);
  ticker.stage(0.08, double(group_count));
  pack_all(job, format, steps, groups.get(), candidates, ticker, meter);
  if (hint.rows) seed(job, candidates, hint);

  const std::vector<Task> tasks = triangle(n, rows, job.threads);
  double work = 0;
  for (const Task& task : tasks)
    work += double(task.group_end - task.group_begin) * double(task.block.end - task.block.begin);
  ticker.stage(0.92, work);

  std::vector<TileKernel> kernel;
  std::vector<Buffer<uint32_t>> tiles;  // [rows / 6][steps][6] a thread
  for (int t = 0; t < job.threads; ++t) {
    kernel.emplace_back(format, steps, meter);
    tiles.emplace_back(rows * steps, &meter);
  }
  Queue queue(int64_t(tasks.size()), 1);
  parallel(job.threads, [&](int thread) {
    TileKernel& run = kernel[size_t(thread)];
    int64_t packed = -1;  // the block whose tiles are there
    for (Range range; queue.next(range);) {
      const Task& task = tasks[size_t(range.begin)];
      const int64_t begin = task.block.begin, count = task.block.end - begin;
      if (begin != packed) kernels().pack_tiles(groups.get(), begin, count, steps, tiles[size_t(thread)].get());
      packed = begin;
      for (int64_t g = task.group_begin; g < task.group_end; ++g) {
        candidates.thresholds(begin, count, run.row_thresholds);
        candidates.thresholds(g * kGroup, kGroup, run.column_thresholds);
        const int64_t found = run(tiles[size_t(thread)].get(), count, groups.get() + g * kGroup * steps);
        collect(job, candidates, task.block, g, run.survivors.get(), found);
        if (!ticker.advance(thread, count) || candidates.failed() > allowed_failures) return;
      }
    }
  });
  ticker.check();
  return candidates.failed() <= allowed_failures;
}

}  // namespace gloss::cpu
