// cosine_topk and its gradient in CUDA, on the emulator, against float64 loops: "topk_check GROUP" runs one group of cases.
// Outputs and workspace are poisoned, the bytes behind the workspace guarded, and every search runs with several orders
// of blocks, warps and lanes, which must give the same bits.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cuda/common.cuh"

using namespace gloss;

namespace {

std::string context;
int failures = 0;

void expect(bool good, const char* what, double got = 0, int64_t at = -1) {
  if (good) return;
  if (++failures <= 20) std::printf("wrong: %s: %s (%.9g, row %lld)\n", context.c_str(), what, got, static_cast<long long>(at));
}

struct Block {  // aligned memory with a guard behind it
  explicit Block(size_t bytes) : bytes(bytes), data(static_cast<char*>(std::aligned_alloc(256, (bytes + 511) / 256 * 256))) {
    std::memset(data, 0xa5, (bytes + 511) / 256 * 256);
  }
  ~Block() { std::free(data); }
  Block(const Block&) = delete;
  bool intact() const {
    for (size_t i = bytes; i < (bytes + 511) / 256 * 256; ++i)
      if (static_cast<unsigned char>(data[i]) != 0xa5) return false;
    return true;
  }
  size_t bytes;
  char* data;
};

const char* name_of(DType dtype) {
  const char* names[] = {"f64", "f32", "f16", "bf16"};
  return names[int(dtype)];
}

// Rows of numbers in `dtype`, and the same numbers in double.
struct Matrix {
  DType dtype;
  int64_t rows, cols, stride;
  std::vector<char> bytes;
  std::vector<double> exact;  // [rows, cols]

  Matrix(const std::vector<double>& x, int64_t rows, int64_t cols, DType dtype, int64_t spare = 0)
      : dtype(dtype), rows(rows), cols(cols), stride(cols + spare), bytes(size_t(rows * stride * 8 + 64), char(0xff)), exact(x) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = 0; c < cols; ++c) {
        const double v = x[size_t(i * cols + c)];
        double& kept = exact[size_t(i * cols + c)];
        const size_t at = size_t(i * stride + c);
        if (dtype == DType::f64) reinterpret_cast<double*>(bytes.data())[at] = kept = v;
        if (dtype == DType::f32) kept = reinterpret_cast<float*>(bytes.data())[at] = float(v);
        if (dtype == DType::f16) kept = float(reinterpret_cast<__half*>(bytes.data())[at] = __half(float(v)));
        if (dtype == DType::bf16)
          kept = float(reinterpret_cast<__nv_bfloat16*>(bytes.data())[at] = __nv_bfloat16(float(v)));
      }
  }
  MatrixView view() const { return {bytes.data(), dtype, rows, cols, stride}; }

  std::vector<double> unit() const {
    std::vector<double> u = exact;
    for (int64_t i = 0; i < rows; ++i) {
      double largest = 0, squares = 0;
      for (int64_t c = 0; c < cols; ++c) largest = std::max(largest, std::fabs(exact[size_t(i * cols + c)]));
      for (int64_t c = 0; c < cols; ++c) {
        const double v = largest > 0 ? exact[size_t(i * cols + c)] / largest : 0;
        squares += v * v;
        u[size_t(i * cols + c)] = v;
      }
      for (int64_t c = 0; c < cols; ++c) u[size_t(i * cols + c)] /= squares > 0 ? std::sqrt(squares) : 1;
    }
    return u;
  }
  double norm(int64_t i) const {
    double squares = 0;
    for (int64_t c = 0; c < cols; ++c) squares += exact[size_t(i * cols + c)] * exact[size_t(i * cols + c)];
    return std::sqrt(squares);
  }
};

// Clustered rows with a common offset: cosines lie between 0.2 and 1, as those of text embeddings.
std::vector<double> documents(int64_t rows, int64_t cols, unsigned seed, bool sorted = false) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> centers(size_t(5 * cols)), x(size_t(rows * cols));
  for (double& v : centers) v = normal(random);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t cluster = sorted ? i * 5 / rows : i % 5;
    for (int64_t c = 0; c < cols; ++c)
      x[size_t(i * cols + c)] = (centers[size_t(cluster * cols + c)] + normal(random) + 0.7) / std::sqrt(double(cols));
  }
  return x;
}

struct Result {
  std::vector<double> values;  // whatever the dtype
  std::vector<int64_t> indices;
  cuda::TopkStatus status;
  bool operator==(const Result& other) const {
    return (values.empty() || std::memcmp(values.data(), other.values.data(), values.size() * 8) == 0) && indices == other.indices &&
           status.bad_query_row == other.status.bad_query_row && status.bad_corpus_row == other.status.bad_corpus_row &&
           status.candidates == other.status.candidates && status.recomputed_rows == other.status.recomputed_rows;
  }
};

Result search(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self, unsigned seed,
              const std::vector<int64_t>& hint = {}) {
  emulator::seed() = seed;
  const int64_t hint_k = queries.rows ? int64_t(hint.size()) / queries.rows : 0;
  const bool wide = queries.dtype == DType::f64;
  Block workspace(size_t(cuda::cosine_topk_workspace(queries, corpus, k, exclude_self, hint_k)));
  Block values(size_t(queries.rows * k) * (wide ? 8 : 4)), indices(size_t(queries.rows * k) * 8), status(sizeof(cuda::TopkStatus));
  cuda::cosine_topk(queries, corpus, k, exclude_self, hint_k ? hint.data() : nullptr, hint_k, values.data,
                    reinterpret_cast<int64_t*>(indices.data), reinterpret_cast<cuda::TopkStatus*>(status.data),
                    workspace.data, {0, nullptr});
  expect(workspace.intact() && values.intact() && indices.intact() && status.intact(), "a write past the end of a buffer");
  Result result;
  for (int64_t e = 0; e < queries.rows * k; ++e) {
    result.values.push_back(wide ? reinterpret_cast<double*>(values.data)[e] : reinterpret_cast<float*>(values.data)[e]);
    result.indices.push_back(reinterpret_cast<int64_t*>(indices.data)[e]);
  }
  std::memcpy(&result.status, status.data, sizeof result.status);
  return result;
}

// Every selected true cosine is at least every other one minus 2e-6; values right, sorted, no repeats.
void check_result(const Result& result, const Matrix& queries, const Matrix& corpus, int64_t k, bool exclude_self) {
  const std::vector<double> u = queries.unit(), v = corpus.unit();
  const int64_t n = corpus.rows, d = queries.cols;
  const double tiny = queries.dtype == DType::f64 ? 1e-12 : 3e-7;
  std::vector<double> cosine(static_cast<size_t>(n));
  for (int64_t i = 0; i < queries.rows; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < d; ++c) sum += u[size_t(i * d + c)] * v[size_t(j * d + c)];
      cosine[size_t(j)] = sum;
    }
    const int64_t* chosen = result.indices.data() + i * k;
    const double* values = result.values.data() + i * k;
    std::set<int64_t> seen;
    double worst = 2;
    bool valid = true;
    for (int64_t r = 0; r < k && valid; ++r) {
      valid = chosen[r] >= 0 && chosen[r] < n && !(exclude_self && chosen[r] == i) && seen.insert(chosen[r]).second;
      expect(valid, "index out of range, excluded or repeated", double(chosen[r]), i);
      if (!valid) break;
      expect(std::fabs(values[r] - cosine[size_t(chosen[r])]) <= tiny, "value",
             values[r] - cosine[size_t(chosen[r])], i);
      expect(r == 0 || values[r] < values[r - 1] || (values[r] == values[r - 1] && chosen[r] > chosen[r - 1]),
             "order", values[r], i);
      worst = std::min(worst, cosine[size_t(chosen[r])]);
    }
    if (!valid) continue;
    for (int64_t j = 0; j < n; ++j)
      if (!seen.count(j) && !(exclude_self && j == i))
        expect(worst >= cosine[size_t(j)] - 2e-6, "a better row was left out", cosine[size_t(j)] - worst, i);
  }
}

Result check(const Matrix& queries, const Matrix* corpus, int64_t k, bool exclude_self, std::vector<unsigned> seeds = {0, 1, 77}) {
  const Matrix& other = corpus ? *corpus : queries;
  context = std::string(corpus ? "pair " : "self ") + name_of(queries.dtype) + " " + std::to_string(queries.rows) + " x " +
            std::to_string(other.rows) + " x " + std::to_string(queries.cols) + " k=" + std::to_string(k) +
            (exclude_self ? " without self" : "");
  const Result first = search(queries.view(), other.view(), k, exclude_self, seeds[0]);
  check_result(first, queries, other, k, exclude_self);
  for (size_t s = 1; s < seeds.size(); ++s)
    expect(search(queries.view(), other.view(), k, exclude_self, seeds[s]) == first, "another schedule, other bits", seeds[s]);
  return first;
}

constexpr DType kTypes[] = {DType::f64, DType::f32, DType::f16, DType::bf16};

// ------------------------------------------------------------------------------------------- groups
void small() {
  for (DType dtype : kTypes)
    for (int64_t n : {1, 2, 3, 5, 64, 129}) {
      const int64_t d = n == 3 ? 1 : n == 64 ? 100 : n == 129 ? 33 : 7;
      const Matrix x(documents(n, d, unsigned(n)), n, d, dtype, d == 7 ? 3 : 0);
      const Matrix other(documents(n + 6, d, 9), n + 6, d, dtype);
      for (int64_t k : {int64_t(1), int64_t(3), n - 1})
        if (k >= 1 && k < n) check(x, nullptr, k, true, {0, 5});
      check(x, nullptr, n, false, {0});
      check(x, &other, std::min<int64_t>(n + 5, 3), false, {0, 5});
      check(x, &other, n + 5, true, {0});
    }
}

void self() {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const Matrix x(documents(600, 70, 3), 600, 70, dtype);
    check(x, nullptr, 15, true, dtype == DType::f32 ? std::vector<unsigned>{0, 5, 77} : std::vector<unsigned>{0});
  }
  const Matrix even(documents(1025, 30, 3), 1025, 30, DType::f32);  // five blocks, split rows
  check(even, nullptr, 3, false, {0, 5});
  const Matrix wide(documents(900, 384, 4, true), 900, 384, DType::f32, 1);
  check(wide, nullptr, 15, true, {0});
  const Matrix doubles(documents(300, 40, 4), 300, 40, DType::f64);
  check(doubles, nullptr, 15, true, {0, 5});
}

void waves() {  // several waves of the sweep; corpora sorted by cluster
  for (int64_t n : {1536, 2600}) {  // an even number of blocks, an odd one
    const Matrix x(documents(n, 12, 5, true), n, 12, DType::f32);
    const Result result = check(x, nullptr, n == 1536 ? 10 : 250, true,
                                n == 1536 ? std::vector<unsigned>{0, 5} : std::vector<unsigned>{5});
    expect(result.status.recomputed_rows == 0, "rows were redone", double(result.status.recomputed_rows));
  }
  const Matrix low(documents(1500, 3, 6), 1500, 3, DType::f32);
  check(low, nullptr, 15, true, {0});
}

void large() {  // by hand: the smallest lists, and as many waves as they make
  for (int64_t k : {15, 32}) {
    const Matrix x(documents(9000, 10, 5, true), 9000, 10, DType::f32);
    const Result result = check(x, nullptr, k, true, {5});
    std::printf("%s: %lld candidates, %lld rows redone\n", context.c_str(), static_cast<long long>(result.status.candidates),
                static_cast<long long>(result.status.recomputed_rows));
  }
}

void many() {  // k up to what the lists hold, and past it
  const Matrix x(documents(1100, 24, 7), 1100, 24, DType::f32);
  for (int64_t k : {256, 300}) check(x, nullptr, k, true, {0});
}

void pairs() {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const Matrix q(documents(200, 70, 8), 200, 70, dtype), c(documents(2100, 70, 9, true), 2100, 70, dtype);
    check(q, &c, 15, false, {0, 5});
    if (dtype == DType::f32) check(q, &c, 200, true, {0});
  }
  for (DType dtype : {DType::f16, DType::bf16}) {  // a corpus that is swept as it is
    std::vector<double> x = documents(2300, 72, 9, true);
    for (int64_t i : {0, 5, 2299}) std::fill_n(&x[size_t(i * 72)], 72, 0.0);
    for (int64_t c = 0; c < 72; ++c) x[size_t(40 * 72 + c)] *= 100;
    const int64_t few = dtype == DType::f16 ? 270 : 120;
    const Matrix q(documents(few, 72, 8), few, 72, dtype);
    check(q, std::vector<Matrix>(1, Matrix(x, 2300, 72, dtype, 8)).data(), 15, true, {0, 5});
    if (dtype == DType::f16) continue;
    for (int64_t c = 0; c < 72; ++c) x[size_t(41 * 72 + c)] *= 1e18;
    check(q, std::vector<Matrix>(1, Matrix(x, 2300, 72, dtype)).data(), 3, false, {0});
    x[50 * 72] = std::numeric_limits<double>::infinity();
    const Matrix bad(x, 2300, 72, dtype);
    expect(search(q.view(), bad.view(), 3, false, 0).status.bad_corpus_row == 50, "bad_corpus_row");
  }
  const Matrix few(documents(5, 72, 8), 5, 72, DType::f16), c(documents(3000, 72, 9, true), 3000, 72, DType::f16);
  check(few, &c, 20, false, {0, 5});
  const Matrix q(documents(1100, 20, 8), 1100, 20, DType::f32), e(documents(90, 20, 9), 90, 20, DType::f32);
  check(q, &e, 30, false, {0});
}

void ties() {
  const int64_t n = 610, d = 30;
  std::vector<double> x = documents(n, d, 10);
  for (int64_t i = 0; i < 40; ++i) std::copy_n(&x[size_t(3 * d)], d, &x[size_t((100 + i) * d)]);   // 41 copies
  for (int64_t i = 0; i < 300; ++i) std::copy_n(&x[size_t(5 * d)], d, &x[size_t((200 + i) * d)]);  // 301 copies
  for (int64_t i : {int64_t(0), int64_t(7), n - 1}) std::fill_n(&x[size_t(i * d)], d, 0.0);
  for (int64_t c = 0; c < d; ++c) x[size_t(20 * d + c)] = -x[size_t(21 * d + c)];
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Result result = check(Matrix(x, n, d, dtype), nullptr, 10, true, {0, 5});
    for (int64_t r = 0; r < 10; ++r) {  // a zero row has cosine 0 with everything: the first indices
      expect(result.values[size_t(7 * 10 + r)] == 0 && result.indices[size_t(7 * 10 + r)] == (r < 7 ? r : r + 1), "zero row");
      expect(result.indices[size_t(450 * 10 + r)] == (r ? 199 + r : 5), "copies: the smallest indices win",
             double(result.indices[size_t(450 * 10 + r)]));
    }
  }
  // More near ties than a list holds: all of these rows are redone, and then a few of them as queries.
  std::mt19937 random(3);
  const int64_t many = 2400, tied = 2300, width = 6;
  std::vector<double> near = documents(many, width, 12);
  for (int64_t i = 0; i < tied; ++i)
    for (int64_t c = 0; c < width; ++c) near[size_t(i * width + c)] = i < 1200 ? 0.5 : 1 + 1e-6 * double(random()) / 4e9;
  const Matrix crowd(near, many, width, DType::f32), asking(near, 120, width, DType::f32);
  expect(check(crowd, nullptr, 10, true, {5}).status.recomputed_rows >= tied, "nothing was redone");
  expect(check(asking, &crowd, 4, true, {0, 5}).status.recomputed_rows >= 120, "nothing was redone");
  const Matrix line(documents(700, 1, 11), 700, 1, DType::f32);
  check(line, nullptr, 5, true, {0});
}

// Bit for bit: float64 cosines, rounded to float, the larger first, of equal ones the smaller index.
void check_order(const Result& result, const Matrix& queries, const Matrix& corpus, int64_t k, bool exclude_self) {
  const std::vector<double> u = queries.unit(), v = corpus.unit();
  const int64_t d = queries.cols;
  std::vector<std::pair<float, int64_t>> order;  // negated, so that ascending is best first
  for (int64_t i = 0; i < queries.rows; ++i) {
    order.clear();
    for (int64_t j = 0; j < corpus.rows; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < d; ++c) sum += u[size_t(i * d + c)] * v[size_t(j * d + c)];
      if (!exclude_self || j != i) order.emplace_back(-float(sum), j);
    }
    std::partial_sort(order.begin(), order.begin() + k, order.end());
    for (int64_t r = 0; r < k; ++r) {
      expect(result.indices[size_t(i * k + r)] == order[size_t(r)].second, "another order than float64's",
             double(result.indices[size_t(i * k + r)]), i);
      expect(result.values[size_t(i * k + r)] == -order[size_t(r)].first, "another value than float64's",
             result.values[size_t(i * k + r)], i);
    }
  }
}

// More near ties than lists hold, in every regime of the pass over the whole corpus.
void near_ties() {
  std::mt19937 random(21);
  std::normal_distribution<double> normal;
  // `tight` clusters of rows that differ by `eps`, taking turns, and 100 ordinary rows behind them
  const auto clusters = [&](int64_t n, int64_t d, int64_t tight, double eps) {
    std::vector<double> x = documents(n, d, 22);
    for (int64_t i = tight; i < n - 100; ++i)
      for (int64_t c = 0; c < d; ++c) x[size_t(i * d + c)] = x[size_t(i % tight * d + c)] * (1 + eps * normal(random));
    return x;
  };
  const auto exact = [&](const Matrix& q, const Matrix* corpus, int64_t k, bool exclude_self, int64_t redone,
                         std::vector<unsigned> seeds) {
    const Result result = check(q, corpus, k, exclude_self, seeds);
    check_order(result, q, corpus ? *corpus : q, k, exclude_self);
    expect(result.status.recomputed_rows >= redone, "too few rows were redone", double(result.status.recomputed_rows));
  };
  // From all cosines 1 in float to all of them distinct: a part of the rows as queries.
  for (double eps : {1e-7, 1e-6, 1e-4}) {
    const std::vector<double> x = clusters(4700, 7, 2, eps);
    const Matrix corpus(x, 4700, 7, DType::f32), q(x, 130, 7, DType::f32);
    exact(q, &corpus, 10, true, 130, {0, 5});
  }
  for (DType dtype : {DType::f16, DType::bf16}) {
    std::vector<double> x = clusters(2600, 70, 1, dtype == DType::f16 ? 1e-3 : 4e-3);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= i / 70 % 3 ? 1 : 64;  // of other lengths
    const Matrix corpus(x, 2600, 70, dtype), q(x, 120, 70, dtype);
    exact(q, &corpus, 6, false, 120, {5});
  }
  // More leaders than the blocks take at a time; k at its limit, and more parts of the corpus than a list has room for.
  exact(Matrix(clusters(2400, 6, 1, 1e-6), 2400, 6, DType::f32), nullptr, 10, true, 2200, {5});
  const std::vector<double> wide = clusters(5200, 5, 1, 1e-6);
  const Matrix longer(wide, 5200, 5, DType::f32), few(wide, 70, 5, DType::f32);
  exact(few, &longer, 256, true, 70, {5});
  // Queries far from one tight cluster, opposite to it, at right angles to it (all cosines 0), and of its own.
  const int64_t d = 72, m = 2600;
  for (DType dtype : {DType::f32, DType::f16}) {  // 16 bits: swept as it is, of norms in float
    std::vector<double> q = documents(120, d, 23), x = clusters(m, d, 1, dtype == DType::f32 ? 1e-6 : 1e-3);
    std::fill(x.end() - 100 * d, x.end(), 0.0);
    for (int64_t i = 0; i < m; ++i) x[size_t(i * d)] = 0;
    for (int64_t i = 0; i < 30; ++i)
      for (int64_t c = 0; c < d; ++c) {
        const double own = x[size_t(i * d + c)];
        q[size_t(i * d + c)] = i < 10 ? -own : i < 20 ? double(c == 0) : own;
      }
    for (size_t i = 0; i < x.size(); ++i) x[i] *= dtype == DType::f32 && i / 72 % 2 ? 1e-30 : 1;
    const Matrix corpus(x, m, d, dtype);
    exact(Matrix(q, 120, d, dtype), &corpus, 12, true, 100, {5});
  }
  // The lost lists still hold the best, in their order: the last of them is the bound to start with.
  std::vector<double> base(70), near(size_t(2400 * 70)), asked;
  double length = 0;
  for (double& b : base) length += std::pow(b = normal(random), 2);
  for (int64_t i = 0; i < 2400; ++i) {
    double* row = &near[size_t(i * 70)];
    double along = 0, squares = 0;
    for (int64_t c = 0; c < 70; ++c) along += (row[c] = normal(random)) * base[size_t(c)];
    for (int64_t c = 0; c < 70; ++c) squares += std::pow(row[c] -= along / length * base[size_t(c)], 2);
    const double lost = i % 240 == 7 ? 2e-6 * double(i) / 240 : 3e-4 + 1e-4 * double(i) / 2400;
    for (int64_t c = 0; c < 70; ++c) row[c] = base[size_t(c)] + row[c] * std::sqrt(2 * lost * length / squares);
  }
  for (int64_t i = 0; i < 120; ++i)
    for (double b : base) asked.push_back(b + 1e-6 * normal(random));
  const Matrix banded(near, 2400, 70, DType::f32);
  exact(Matrix(asked, 120, 70, DType::f32), &banded, 10, false, 120, {5});
  // Cosines within 1e-13 of the middle between 1 and the float below it: float64 alone knows which way they round.
  std::vector<double> x(size_t(2600 * 6));
  for (int64_t i = 0; i < 2600; ++i) {
    const double middle = std::ldexp(1.0, -12);
    x[size_t(i * 6)] = 1;
    x[size_t(i * 6 + 1)] = i < 51 ? middle + double(25 - i) * std::ldexp(1.0, -35) : middle * (0.5 + double(i) / 2600);
  }
  std::vector<double> ask(size_t(120 * 6));
  for (int64_t i = 0; i < 120; ++i) ask[size_t(i * 6)] = 1, ask[size_t(i * 6 + 2)] = 1e-9 * double(i);
  const Matrix corpus(x, 2600, 6, DType::f32);
  exact(Matrix(ask, 120, 6, DType::f32), &corpus, 60, false, 120, {5});
}

void extremes() {
  for (double scale : {1e-30, 1e30, 1e-44}) {
    const int64_t n = 530;
    std::vector<double> x = documents(n, 12, 12);
    for (size_t i = 0; i < x.size(); ++i)
      if (i / 12 % 2 == 0) x[i] *= scale;
    if (scale < 1e-40)  // subnormal rows, whose cosines are coarse but exact
      for (size_t i = 0; i < x.size(); ++i)
        if (i / 12 % 2 == 0) x[i] = std::round(x[i] * 1e45) * 1.4e-45;
    check(Matrix(x, n, 12, DType::f32), nullptr, 7, true, {0});
    check(Matrix(x, 60, 12, DType::f64), nullptr, 7, true, {0});
  }
}

void not_finite() {
  for (int64_t n : {60, 600})
    for (DType dtype : kTypes) {
      if (n > 100 && (dtype == DType::f64 || dtype == DType::bf16)) continue;
      const int64_t d = 20, k = 8;
      std::vector<double> x = documents(n, d, 13);
      x[17 * d + 3] = std::numeric_limits<double>::quiet_NaN();
      x[30 * d] = -std::numeric_limits<double>::infinity();
      const Matrix m(x, n, d, dtype), good(documents(n, d, 14), n, d, dtype);
      context = std::string("not finite ") + name_of(dtype) + " " + std::to_string(n);
      const Result self = search(m.view(), m.view(), k, true, 0), pair = search(good.view(), m.view(), k, false, 0);
      expect(self == search(m.view(), m.view(), k, true, 5), "another schedule, other bits");
      expect(self.status.bad_query_row == 17, "bad_query_row", double(self.status.bad_query_row));
      expect(pair.status.bad_query_row == -1 && pair.status.bad_corpus_row == 17, "bad_corpus_row",
             double(pair.status.bad_corpus_row));
      for (const Result* result : {&self, &pair})
        for (int64_t i = 0; i < n; ++i) {
          std::set<int64_t> seen;
          const bool bad = result == &self && (i == 17 || i == 30);
          for (int64_t r = 0; r < k; ++r) {
            const int64_t j = result->indices[size_t(i * k + r)];
            expect(j >= 0 && j < n && seen.insert(j).second, "index", double(j), i);
            expect(std::isnan(result->values[size_t(i * k + r)]) == bad, "NaN", result->values[size_t(i * k + r)], i);
            expect(bad || (j != 17 && j != 30), "a neighbour that is not finite", double(j), i);
          }
        }
    }
}

void hints() {
  const int64_t n = 600, k = 8;
  const Matrix x(documents(n, 30, 15), n, 30, DType::f32);
  context = "hints";
  const Result plain = search(x.view(), x.view(), k, true, 0);
  std::mt19937 random(4);
  std::vector<int64_t> noise(size_t(n * 20)), same(size_t(n * 12), 3), none(size_t(n * 9), -1);
  for (int64_t& j : noise) j = int64_t(random() % unsigned(n + 40)) - 20;
  for (const auto& hint : {plain.indices, noise, same, none}) {
    const Result hinted = search(x.view(), x.view(), k, true, 5, hint);
    expect(hinted.indices == plain.indices && hinted.values == plain.values, "a hint changed the result");
  }
}

void arguments() {
  const Matrix x(documents(9, 4, 1), 9, 4, DType::f32), y(documents(9, 5, 1), 9, 5, DType::f32);
  const auto refuses = [](const Matrix& a, const Matrix& b, int64_t k, bool exclude, const char* name) {
    context = name;
    try {
      cuda::cosine_topk_workspace(a.view(), b.view(), k, exclude, 0);
    } catch (const std::invalid_argument& error) {
      return expect(std::strncmp(error.what(), name, std::strlen(name)) == 0, error.what());
    }
    expect(false, "was accepted");
  };
  refuses(x, x, 9, true, "k must be 1 to 8 (corpus of 9 rows, itself left out), got 9");
  refuses(x, x, 0, true, "k must be 1 to 8 (corpus of 9 rows, itself left out), got 0");
  refuses(x, x, 10, false, "k must be 1 to 9 (corpus of 9 rows), got 10");
  refuses(x, y, 2, false, "corpus must have");
  const Matrix empty({}, 0, 4, DType::f32);
  search(empty.view(), x.view(), 3, false, 0);
}

// The formula of gloss.h in float64.
template <class T>
void check_backward(const Matrix& q, const Matrix* corpus, int64_t k, bool want_queries, bool want_corpus, bool hub) {
  const Matrix& c = corpus ? *corpus : q;
  context = std::string("backward ") + (corpus ? "pair " : "self ") + name_of(q.dtype) + " " + std::to_string(q.rows) +
            " x " + std::to_string(c.rows) + " x " + std::to_string(q.cols) + " k=" + std::to_string(k);
  std::mt19937 random(6);
  const int64_t d = q.cols;
  std::vector<int64_t> indices(size_t(q.rows * k));
  std::vector<T> grad(indices.size());
  for (int64_t i = 0; i < q.rows; ++i) {
    std::set<int64_t> seen;
    for (int64_t r = 0; r < k; ++r) {
      int64_t j = hub && r == 0 ? 1 : int64_t(random() % unsigned(c.rows));
      while (!seen.insert(j).second) j = (j + 1) % c.rows;
      indices[size_t(i * k + r)] = j;
      grad[size_t(i * k + r)] = T(double(random()) / 4294967295.0 * 2 - 1);
    }
  }
  const std::vector<double> u = q.unit(), v = c.unit();
  std::vector<double> to_q(size_t(q.rows * d)), to_c(size_t(c.rows * d));
  for (int64_t i = 0; i < q.rows; ++i)
    for (int64_t r = 0; r < k; ++r) {
      const int64_t j = indices[size_t(i * k + r)];
      const double g = double(grad[size_t(i * k + r)]);
      for (int64_t e = 0; e < d; ++e) {
        to_q[size_t(i * d + e)] += g * v[size_t(j * d + e)];
        (corpus ? to_c : to_q)[size_t(j * d + e)] += g * u[size_t(i * d + e)];
      }
    }
  const auto project = [&](std::vector<double>& sum, const Matrix& m, const std::vector<double>& unit) {
    for (int64_t i = 0; i < m.rows; ++i) {
      double along = 0;
      const double norm = m.norm(i);
      for (int64_t e = 0; e < d; ++e) along += sum[size_t(i * d + e)] * unit[size_t(i * d + e)];
      for (int64_t e = 0; e < d; ++e)
        sum[size_t(i * d + e)] = norm > 0 ? (sum[size_t(i * d + e)] - along * unit[size_t(i * d + e)]) / norm : 0;
    }
  };
  project(to_q, q, u);
  if (corpus) project(to_c, c, v);

  std::vector<std::vector<char>> runs;
  for (unsigned seed : {0u, 5u, 77u}) {
    emulator::seed() = seed;
    Block workspace(size_t(cuda::cosine_topk_backward_workspace<T>(q.view(), c.view(), k)));
    Block out_q(to_q.size() * sizeof(T)), out_c(to_c.size() * sizeof(T));
    T* grad_queries = want_queries ? reinterpret_cast<T*>(out_q.data) : nullptr;
    T* grad_corpus = !corpus ? grad_queries : want_corpus ? reinterpret_cast<T*>(out_c.data) : nullptr;
    cuda::cosine_topk_backward<T>(q.view(), c.view(), k, indices.data(), grad.data(), grad_queries, grad_corpus,
                                  workspace.data, {0, nullptr});
    expect(workspace.intact() && out_q.intact() && out_c.intact(), "a write past the end of a buffer");
    const auto compare = [&](const T* got, const std::vector<double>& want) {
      double largest = 20, error = 0;  // sums of up to 46 unit rows, over norms down to 0.1, before they cancel
      for (size_t e = 0; e < want.size(); ++e) {
        largest = std::max(largest, 10 * std::fabs(want[e]));
        const double off = std::fabs(double(got[e]) - want[e]);
        error = off >= 0 ? std::max(error, off) : 1e9;
      }
      expect(error <= largest * (sizeof(T) == 8 ? 1e-13 : 3e-7), "gradient", error);
    };
    if (want_queries) compare(reinterpret_cast<T*>(out_q.data), to_q);
    if (corpus && want_corpus) compare(reinterpret_cast<T*>(out_c.data), to_c);
    runs.emplace_back(out_q.data, out_q.data + out_q.bytes);
    runs.back().insert(runs.back().end(), out_c.data, out_c.data + out_c.bytes);
    expect(runs.back() == runs[0], "another schedule, other bits", seed);
  }
}

void backward() {
  for (DType dtype : kTypes) {
    const auto both = [&](const Matrix& q, const Matrix* c, int64_t k, bool a, bool b, bool hub) {
      if (dtype == DType::f64) check_backward<double>(q, c, k, a, b, hub);
      else check_backward<float>(q, c, k, a, b, hub);
    };
    for (int64_t d : {1, 7, 300}) {
      std::vector<double> x = documents(120, d, 16);
      std::fill_n(&x[size_t(3 * d)], d, 0.0);
      const Matrix q(x, 120, d, dtype, d == 7 ? 2 : 0), c(documents(47, d, 17), 47, d, dtype);
      both(q, nullptr, 5, true, true, false);
      both(q, &c, 5, true, true, false);
      both(q, &c, 46, true, false, false);
      both(q, &c, 1, false, true, false);
    }
    const Matrix one(documents(1, 5, 1), 1, 5, dtype);
    both(one, nullptr, 1, true, true, false);
    const Matrix tall(documents(900, 20, 18), 900, 20, dtype);  // everybody's neighbour: a list longer than a warp sorts
    both(tall, nullptr, 3, true, true, true);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, void (*)()> groups = {
      {"small", small}, {"self", self}, {"waves", waves}, {"large", large}, {"many", many},         {"pairs", pairs},       {"ties", ties}, {"near_ties", near_ties},
      {"extremes", extremes}, {"not_finite", not_finite}, {"hints", hints}, {"arguments", arguments}, {"backward", backward}};
  for (int a = 1; a < argc; ++a) {
    const auto group = groups.find(argv[a]);
    if (group == groups.end()) return std::printf("no group %s\n", argv[a]), 1;
    group->second();
  }
  if (failures) std::printf("%d failures\n", failures);
  return failures ? 2 : 0;
}
