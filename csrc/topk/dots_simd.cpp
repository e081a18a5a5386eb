// Products of one row with many, and weighted sums of rows, in double.
#include "kernels.h"
#include "lanes.h"

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

// Rows are taken in no order: fetch the next one while this one is worked on.
template <class Element>
inline void prefetch_row(const Element* x, int64_t cols) {
  const char* bytes = reinterpret_cast<const char*>(x);
  for (int64_t b = 0; b < cols * int64_t(sizeof(Element)); b += 64) __builtin_prefetch(bytes + b);
}

template <class Reader>
void dots_of(const double* query, const RowSource* source, const int32_t* ids, int64_t count, double* out) {
  using Element = typename Reader::Element;
  const Element* data = static_cast<const Element*>(source->data);
  for (int64_t i = 0; i < count; ++i) {
    if (i + 1 < count) prefetch_row(data + ids[i + 1] * source->stride, source->cols);
    Lanes total = zero();
    const double scale = sizeof(Element) == 8 ? source->scale[ids[i]] : 1.0;
    each_16<Reader>(data + ids[i] * source->stride, source->cols, [&](int64_t c, Lanes v) {
      total = mac(load_double(query + c), sizeof(Element) == 8 ? mul(v, scale) : v, total);
    });
    out[i] = sum(total);
  }
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

void dots(const double* query, const RowSource* source, const int32_t* ids, int64_t count, double* out) {
  switch (source->dtype) {
    case 0: return dots_of<DoubleReader>(query, source, ids, count, out);
    case 1: return dots_of<FloatReader>(query, source, ids, count, out);
    case 2: return dots_of<HalfReader>(query, source, ids, count, out);
    default: return dots_of<BfloatReader>(query, source, ids, count, out);
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
