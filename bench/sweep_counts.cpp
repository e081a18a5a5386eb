// For bench/sweep_counts.py: the waves of a self search, and what they append, on the emulator.
//   sweep_counts plan ROWS K              the waves that a search of so many rows would make
//   sweep_counts run FILE ROWS COLS K     a search of the float32 rows of a file
// A line a wave: "wave", whether it is dense, column blocks met by a row before and after, tiles, entries appended.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numeric>
#include <vector>

#include "topk/lists.cuh"

namespace gloss::cuda {

bool plan_only = false;
int64_t met = 0, lost = 0, compactions = 0;

// Stand between the search and its stages.
void counted_sweep(const Packed& queries, const Packed& corpus, const RawCorpus& raw, const Lists& lists, Wave wave,
                   Queue queue) {
  const auto entries = [&] {
    return plan_only ? int64_t(0) : std::accumulate(lists.count, lists.count + queries.padded, int64_t(0));
  };
  const int64_t blocks = wave.end - wave.begin, before = entries(), met_before = met;
  if (!plan_only) sweep(queries, corpus, raw, lists, wave, queue);
  met += wave.dense || wave.row_blocks < corpus.blocks ? blocks : 2 * blocks;  // half way round: each pair once
  for (int64_t p = 0; p < queries.padded && !plan_only && !wave.dense; ++p) lost += lists.count[p] > lists.capacity;
  std::printf("wave %d %lld %lld %lld %lld\n", wave.dense, static_cast<long long>(met_before),
              static_cast<long long>(met), static_cast<long long>(2 * wave.row_blocks * blocks),
              static_cast<long long>(wave.dense ? 0 : entries() - before));
}
template <class In>
void counted_compact(const Search<In>& s, int count) {
  ++compactions;
  if (!plan_only) compact(s, count);
}

}  // namespace gloss::cuda

#define sweep counted_sweep
#define compact counted_compact
#include "topk/search.cu"
#undef sweep
#undef compact

using namespace gloss;

int main(int argc, char** argv) {
  const bool plan = argc == 4 && !std::strcmp(argv[1], "plan");
  if (!plan && argc != 6) return std::printf("plan ROWS K, or run FILE ROWS COLS K\n"), 1;
  const int64_t rows = std::atoll(argv[plan ? 2 : 3]), k = std::atoll(argv[plan ? 3 : 5]);
  cuda::TopkStatus status{};
  if (plan) {
    cuda::plan_only = true;
    cuda::Workspace nothing(nullptr);
    cuda::Search<float> s{};
    s.self = s.exclude_self = true;
    s.k = k;
    s.packed_queries = s.packed_corpus = cuda::packed_carve(nothing, rows, 384, false, true, true);
    s.lists = cuda::lists_carve(nothing, s.packed_queries.padded, k);
    cuda::run_waves(s);
  } else {
    const int64_t cols = std::atoll(argv[4]);
    std::vector<float> x(size_t(rows * cols)), values(size_t(rows * k));
    std::ifstream file(argv[2], std::ios::binary);
    if (!file.read(reinterpret_cast<char*>(x.data()), std::streamsize(x.size() * 4)))
      return std::printf("%s: too short\n", argv[2]), 1;
    std::vector<int64_t> indices(values.size());
    const MatrixView view{x.data(), DType::f32, rows, cols, cols};
    std::vector<char> workspace(size_t(cuda::cosine_topk_workspace(view, view, k, true, 0)) + 256);
    char* aligned = workspace.data() + (256 - reinterpret_cast<uintptr_t>(workspace.data()) % 256) % 256;
    cuda::cosine_topk(view, view, k, true, nullptr, 0, values.data(), indices.data(), &status, aligned, {0, nullptr});
  }
  std::printf("compactions %lld\nlost %lld\n", static_cast<long long>(cuda::compactions),
              static_cast<long long>(cuda::lost));
  std::printf("candidates %lld\nrecomputed %lld\n", static_cast<long long>(status.candidates),
              static_cast<long long>(status.recomputed_rows));
}
