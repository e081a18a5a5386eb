// Products of one row with many, and weighted sums of rows, in double.
#include "kernels.h"
#include "cpu/lanes.h"

namespace gloss::cpu::GLOSS_ISA {

void load_row(const RowSource* source, int64_t id, double* out) {
  const int64_t offset = id * source->stride, cols = source->cols;
  const auto keep = [&](int64_t c, Lanes v) { store_double(v, out + c); };
  switch (source->dtype) {
    case 0: {
      const double scale = source->scale[id];
      each_16<DoubleReader>(static_cast<const double*>(source->data) + offset, cols,
                            [&](int64_t c, Lanes v) { store_double(mul(v, scale), out + c); });
      break;
    }
    case 1: each_16<FloatReader>(static_cast<const float*>(source->data) + offset, cols, keep); break;
    case 2: each_16<HalfReader>(static_cast<const uint16_t*>(source->data) + offset, cols, keep); break;
    default: each_16<BfloatReader>(static_cast<const uint16_t*>(source->data) + offset, cols, keep);
  }
}

namespace {

// Queries that share the widening of a row; each keeps 16 sums in registers.
#if defined(__AVX512F__)
constexpr int kQueries = 4;
#elif defined(__AVX2__)
constexpr int kQueries = 2;
#else
constexpr int kQueries = 1;
#endif

template <class Reader, int Queries>
void dots_of(const double* query, int64_t query_stride, const RowSource* source, const int32_t* ids, int64_t count,
             double* out) {
  using Element = typename Reader::Element;
  const Element* data = static_cast<const Element*>(source->data);
  for (int64_t i = 0; i < count; ++i) {
    if (i + 1 < count) prefetch_row(data + ids[i + 1] * source->stride, source->cols);
    const double scale = sizeof(Element) == 8 ? source->scale[ids[i]] : 1.0;
    Lanes total[Queries];
    for (int q = 0; q < Queries; ++q) total[q] = zero();
    each_16<Reader>(data + ids[i] * source->stride, source->cols, [&](int64_t c, Lanes v) {
      if (sizeof(Element) == 8) v = mul(v, scale);
      for (int q = 0; q < Queries; ++q) total[q] = mac(load_double(query + q * query_stride + c), v, total[q]);
    });
    for (int q = 0; q < Queries; ++q) out[q * count + i] = sum(total[q]);
  }
}

template <class Reader>
void dots_with(const double* query, int64_t queries, int64_t query_stride, const RowSource* source,
               const int32_t* ids, int64_t count, double* out) {
  int64_t q = 0;
  for (; q + kQueries <= queries; q += kQueries)
    dots_of<Reader, kQueries>(query + q * query_stride, query_stride, source, ids, count, out + q * count);
  for (; q < queries; ++q)
    dots_of<Reader, 1>(query + q * query_stride, query_stride, source, ids, count, out + q * count);
}

template <class Reader>
void add_rows_of(const double* weight, const RowSource* source, const int32_t* ids, int64_t count, double* sum) {
  using Element = typename Reader::Element;
  const Element* data = static_cast<const Element*>(source->data);
  for (int64_t i = 0; i < count; ++i) {
    if (i + 1 < count) prefetch_row(data + ids[i + 1] * source->stride, source->cols);
    const double scale = sizeof(Element) == 8 ? source->scale[ids[i]] : 1.0;
    double factor[16];
    for (int l = 0; l < 16; ++l) factor[l] = weight[i];
    const Lanes w = load_double(factor);
    each_16<Reader>(data + ids[i] * source->stride, source->cols, [&](int64_t c, Lanes v) {
      store_double(mac(w, sizeof(Element) == 8 ? mul(v, scale) : v, load_double(sum + c)), sum + c);
    });
  }
}

}  // namespace

void dots(const double* query, int64_t queries, int64_t query_stride, const RowSource* source, const int32_t* ids,
          int64_t count, double* out) {
  switch (source->dtype) {
    case 0: return dots_with<DoubleReader>(query, queries, query_stride, source, ids, count, out);
    case 1: return dots_with<FloatReader>(query, queries, query_stride, source, ids, count, out);
    case 2: return dots_with<HalfReader>(query, queries, query_stride, source, ids, count, out);
    default: return dots_with<BfloatReader>(query, queries, query_stride, source, ids, count, out);
  }
}

void add_rows(const double* weight, const RowSource* source, const int32_t* ids, int64_t count, double* sum) {
  switch (source->dtype) {
    case 0: return add_rows_of<DoubleReader>(weight, source, ids, count, sum);
    case 1: return add_rows_of<FloatReader>(weight, source, ids, count, sum);
    case 2: return add_rows_of<HalfReader>(weight, source, ids, count, sum);
    default: return add_rows_of<BfloatReader>(weight, source, ids, count, sum);
  }
}

}  // namespace gloss::cpu::GLOSS_ISA
