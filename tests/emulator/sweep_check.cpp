// Every wave of the CUDA sweep on the emulator: all products that it stores or lists, against float64 products of the
// packed rows, and no pair left out. The search as a whole shows less: refine() scores what the lists hold once more,
// and redo() what they lost. "sweep_check GROUP" runs one group of cases.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "topk/lists.cuh"

namespace gloss::cuda {
int shared_memory = 227 << 10;  // of the device that is played
cudaError_t device_attribute(int* value, cudaDeviceAttr which, int device) {
  if (which != cudaDevAttrMaxSharedMemoryPerBlockOptin) return cudaDeviceGetAttribute(value, which, device);
  return *value = shared_memory, cudaSuccess;
}
void checked_sweep(const Packed&, const Packed&, const RawCorpus&, const Lists&, Wave, Queue);
}  // namespace gloss::cuda

#define cudaDeviceGetAttribute device_attribute
#include "topk/sweep.cu"
#undef cudaDeviceGetAttribute
#define sweep checked_sweep  // what the search calls
#include "topk/search.cu"
#undef sweep

using namespace gloss;

namespace {

std::string context;
int failures = 0;
int64_t products = 0, listed = 0, waves = 0;

void expect(bool good, const char* what, double got, int64_t row, int64_t column) {
  if (good || ++failures > 20) return;
  std::printf("wrong: %s: %s (%.9g, row %lld, column %lld)\n", context.c_str(), what, got,
              static_cast<long long>(row), static_cast<long long>(column));
}

using Numbers = std::vector<std::vector<float>>;

Numbers unpacked(const cuda::Packed& packed, const cuda::Chunk* operand, bool as_bf16) {
  Numbers rows;
  for (int64_t p = 0; p < packed.padded; ++p) {
    std::vector<float> row;
    for (int64_t c = 0; c < packed.steps * 4; ++c) {
      const int64_t r = p % cuda::kBlock;
      const cuda::Chunk& chunk =
          operand[((p / cuda::kBlock * packed.steps + c / 4) * cuda::kBlock + r) * 4 + (c % 4 ^ (r / 2 & 3))];
      for (int e = 0; e < 8; ++e) {
        __nv_bfloat16 wide;
        std::memcpy(static_cast<void*>(&wide), &chunk.numbers[e], 2);
        row.push_back((as_bf16 ? float(wide) : float(chunk.numbers[e])) / cuda::kUnit);
      }
    }
    rows.push_back(row);
  }
  return rows;
}

// Rows of a raw corpus over their norms, by position.
Numbers raw_rows(const cuda::Packed& packed, const cuda::RawCorpus& raw) {
  Numbers rows;
  for (int64_t p = 0; p < packed.padded; ++p) {
    std::vector<float> row(size_t(packed.steps * cuda::kStep));
    const int64_t at = packed.first(p / cuda::kBlock) + p % cuda::kBlock;
    const int64_t id = at < packed.first(p / cuda::kBlock + 1) ? cuda::scatter(at, packed.count) : -1;
    double squares = 0;
    for (int c = 0; id >= 0 && c < raw.cols; ++c) {
      const __half* bits = raw.rows[id * raw.stride + c / 8].numbers + c % 8;
      row[size_t(c)] = raw.dtype == DType::f16 ? float(*bits) : float(*reinterpret_cast<const __nv_bfloat16*>(bits));
      squares += double(row[size_t(c)]) * row[size_t(c)];
    }
    for (float& x : row) x = float(x / std::sqrt(std::max(squares, 1e-30)));
    rows.push_back(row);
  }
  return rows;
}

}  // namespace

void gloss::cuda::checked_sweep(const Packed& queries, const Packed& corpus, const RawCorpus& raw, const Lists& lists,
                                Wave wave, Queue queue) {
  const std::vector<int> before(lists.count, lists.count + queries.padded);
  const std::vector<float> threshold(lists.threshold, lists.threshold + queries.padded);
  sweep(queries, corpus, raw, lists, wave, queue);
  if (wave.end <= wave.begin) return;
  ++waves;
  const Numbers rows = unpacked(queries, queries.rows, raw.rows && raw.dtype == DType::bf16);
  const Numbers columns = raw.rows ? raw_rows(corpus, raw) : unpacked(corpus, corpus.columns, false);
  const double tolerance = 1.4e-7 * queries.steps * kStep + 6e-7;  // cuda.cu: accumulation; norms of a raw corpus

  std::vector<std::unordered_map<unsigned, float>> found(size_t(queries.padded));
  for (int64_t p = 0; p < queries.padded && !wave.dense; ++p)
    for (int e = before[size_t(p)]; e < lists.count[p] && lists.count[p] <= lists.capacity; ++e, ++listed) {
      const Key key = lists.entries[p * lists.capacity + e];
      expect(found[size_t(p)].emplace(key_index(key), key_value(key)).second, "listed twice", 0, p, key_index(key));
    }
  const auto real = [](const Packed& packed, int64_t p) {
    return packed.first(p / kBlock) + p % kBlock < packed.first(p / kBlock + 1);
  };
  const auto check = [&](int64_t p, int64_t other, double product) {
    auto& mine = found[size_t(p)];
    const auto at = mine.find(unsigned(other));
    const double least = threshold[size_t(p)];
    if (at == mine.end()) {
      expect(!(product >= least + tolerance) || lists.count[p] > lists.capacity, "left out", product - least, p, other);
      return;
    }
    expect(product >= least - tolerance, "listed below the threshold", product - least, p, other);
    expect(std::fabs(at->second - product) <= tolerance, "product", at->second - product, p, other);
    mine.erase(at);
  };
  const int64_t row_blocks = wave.self ? wave.row_blocks : queries.blocks;
  for (int64_t block = 0; block < row_blocks; ++block)
    for (int64_t step = wave.begin; step < wave.end; ++step) {
      const int64_t column_block = wave.self ? (block + step + queries.blocks) % queries.blocks : step;
      for (int64_t p = block * kBlock; p < (block + 1) * kBlock; ++p)
        for (int64_t c = column_block * kBlock; c < (column_block + 1) * kBlock; ++c) {
          if (!real(queries, p)) continue;
          const bool nobody = !real(corpus, c) || (wave.self && wave.exclude_self && wave.dense && p == c);
          double product = 0;
          for (size_t e = 0; e < rows[size_t(p)].size(); ++e)
            product += double(rows[size_t(p)][e]) * double(columns[size_t(c)][e]);
          ++products;
          if (wave.dense) {
            const Key key = lists.entries[p * lists.capacity + (step - wave.begin) * kBlock + c % kBlock];
            expect((key == kNobody) == nobody, "somebody", double(key), p, c);
            if (!nobody) expect(key_index(key) == unsigned(c), "index", key_index(key), p, c);
            const double off = nobody ? 0 : key_value(key) - product;
            expect(std::fabs(off) <= tolerance, "product", off, p, c);
          } else if (!nobody) {
            check(p, c, product);
            if (wave.self) check(c, p, product);
          }
        }
    }
  for (size_t p = 0; p < found.size(); ++p)
    for (const auto& [other, value] : found[p])
      expect(false, "listed, but not of this wave", value, int64_t(p), int64_t(other));
}

namespace {

// Clustered rows with a common offset, so that cosines are positive; every `opposite`-th points the other way.
std::vector<float> documents(int64_t rows, int64_t cols, unsigned seed, int64_t opposite) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> centers(size_t(20 * cols));
  std::vector<float> x;
  for (double& v : centers) v = normal(random);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < cols; ++c) {
      const double v = centers[size_t(i % 20 * cols + c)] + normal(random) + 0.7;
      x.push_back(float(opposite && i % opposite == 0 ? -v : v));
    }
  return x;
}

struct Case {
  int64_t queries, corpus, cols, k;  // corpus 0: the queries
  DType dtype = DType::f32;
  int shared = 227 << 10;
  unsigned seed = 5;
  int64_t opposite = 0;
};

void run(const Case& c) {
  context = std::to_string(c.queries) + " x " + std::to_string(c.corpus) + " x " + std::to_string(c.cols) + " k=" +
            std::to_string(c.k) + " shared " + std::to_string(c.shared >> 10) + " KB, schedule " +
            std::to_string(c.seed);
  emulator::seed() = c.seed;
  cuda::shared_memory = c.shared;
  products = listed = waves = 0;
  const auto stored = [&](const std::vector<float>& x) {
    std::vector<char> bytes(x.size() * 4 + 64);
    char* at = bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
    for (size_t i = 0; i < x.size(); ++i) {
      if (c.dtype == DType::f32) reinterpret_cast<float*>(at)[i] = x[i];
      if (c.dtype == DType::f16) reinterpret_cast<__half*>(at)[i] = __half(x[i]);
      if (c.dtype == DType::bf16) reinterpret_cast<__nv_bfloat16*>(at)[i] = __nv_bfloat16(x[i]);
    }
    return std::pair(std::move(bytes), at);
  };
  const auto q = stored(documents(c.queries, c.cols, 1, c.opposite)), x = stored(documents(c.corpus, c.cols, 2, 0));
  const MatrixView queries{q.second, c.dtype, c.queries, c.cols, c.cols};
  const MatrixView corpus = c.corpus ? MatrixView{x.second, c.dtype, c.corpus, c.cols, c.cols} : queries;
  std::vector<float> values(size_t(c.queries * c.k));
  std::vector<int64_t> indices(values.size());
  cuda::TopkStatus status;
  const int64_t bytes = cuda::cosine_topk_workspace(queries, corpus, c.k, !c.corpus, 0);
  std::vector<char> workspace(size_t(bytes) + 256, char(0xa5));
  char* aligned = workspace.data() + (256 - reinterpret_cast<uintptr_t>(workspace.data()) % 256) % 256;
  cuda::cosine_topk(queries, corpus, c.k, !c.corpus, nullptr, 0, values.data(), indices.data(), &status, aligned,
                    {0, nullptr});
  std::printf("%s: %lld waves, %lld products, %lld listed\n", context.c_str(), static_cast<long long>(waves),
              static_cast<long long>(products), static_cast<long long>(listed));
  expect(waves >= 2 && listed > 0, "a search of one wave", double(waves), 0, 0);
  expect(status.recomputed_rows == 0, "rows were redone", double(status.recomputed_rows), 0, 0);
}

void self() {  // an odd number of steps, several waves of each kind; lists of a warp and of many
  for (int shared : {227 << 10, 99 << 10}) run({3000, 0, 96, 15, DType::f32, shared});
  run({1300, 0, 384, 5, DType::f16, 163 << 10, 1});
}
void split() {  // rows of 16 columns are 48: one stage a tile
  for (int shared : {227 << 10, 99 << 10}) run({2300, 0, 16, 10, DType::f32, shared, 2});
}
void padding() {  // rows whose thresholds are below 0, the product of padding; tiles of more hits than the queue holds
  run({1540, 0, 70, 220, DType::f32, 227 << 10, 3, 97});
  run({1300, 0, 70, 220, DType::f32, 99 << 10, 3, 97});
}
void pairs() {
  for (int shared : {227 << 10, 99 << 10}) run({130, 3000, 96, 15, DType::f32, shared, 4});
  for (DType dtype : {DType::f16, DType::bf16}) run({130, 3000, 72, 15, dtype});
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, void (*)()> groups = {
      {"self", self}, {"split", split}, {"padding", padding}, {"pairs", pairs}};
  for (int a = 1; a < argc; ++a) {
    const auto group = groups.find(argv[a]);
    if (group == groups.end()) return std::printf("no group %s\n", argv[a]), 1;
    group->second();
  }
  if (failures) std::printf("%d failures\n", failures);
  return failures ? 2 : 0;
}
