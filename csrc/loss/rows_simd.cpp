// Inner loops of the dense path (kernels.h), compiled once for each instruction set.
#include "kernels.h"

#include "cpu/lanes.h"

namespace gloss::cpu::GLOSS_ISA {
namespace {

// exp of x <= 0 without a branch, so that the loop becomes vector instructions: x = k ln 2 + r, |r| <= ln 2 / 2, a Taylor
// polynomial of degree 12 (error under 2e-16), and 2^k by its bits. Below -708 the result is 0.
inline double exp_negative(double x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, kept in the low bits
  const double bounded = x > -708.0 ? x : -708.0;
  const double shifted = bounded * 1.4426950408889634 + kMagic, k = shifted - kMagic;
  const double r = (bounded - k * 0.6931471805598903) - k * 5.497923018708371e-14;
  double p = 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  int64_t bits;
  std::memcpy(&bits, &shifted, 8);
  bits = (bits + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, 8);
  return x > -708.0 ? p * power : 0.0;
}

void exp_row(int64_t count, const double* x, double smallest, double* w) {
  for (int64_t j = 0; j < count; ++j) {
    const double value = exp_negative(x[j]);
    w[j] = value >= smallest ? value : 0.0;
  }
}

inline double dot_row(int64_t count, const double* a, const double* b) {
  Lanes total = zero();
  for (int64_t j = 0; j < count; j += kRow) total = mac(load_double(a + j), load_double(b + j), total);
  return sum(total);
}

double sum_row(int64_t count, const double* a) {
  Lanes total = zero(), one = zero();
  const double ones[kRow] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  one = load_double(ones);
  for (int64_t j = 0; j < count; j += kRow) total = mac(load_double(a + j), one, total);
  return sum(total);
}

void axpy_row(int64_t count, double a, const double* x, double* y) {
  for (int64_t j = 0; j < count; ++j) y[j] += a * x[j];
}

// Row by row: L_ij = (A_ij - L_i . L_j) / L_jj over the columns before j. n^3 / 3 operations as dots of rows.
bool cholesky(int64_t n, int64_t stride, double* a) {
  for (int64_t i = 0; i < n; ++i) {
    double* row = a + i * stride;
    for (int64_t j = 0; j < i; ++j) {
      const double* other = a + j * stride;
      const int64_t whole = j / kRow * kRow;
      double value = row[j] - dot_row(whole, row, other);
      for (int64_t c = whole; c < j; ++c) value -= row[c] * other[c];
      row[j] = value / other[j];
    }
    const int64_t whole = i / kRow * kRow;
    double pivot = row[i] - dot_row(whole, row, row);
    for (int64_t c = whole; c < i; ++c) pivot -= row[c] * row[c];
    if (!(pivot > 0)) return false;
    row[i] = std::sqrt(pivot);
  }
  return true;
}

inline void store(Lanes x, double* out) { store_double(x, out); }
inline void store(Lanes x, float* out) { store_float(x, out); }

// load(c): 16 elements of the result from column c on.
template <class T, class Load>
inline void write_row(int64_t cols, const Load& load, T* out) {
  int64_t c = 0;
  for (; c + kRow <= cols; c += kRow) store(load(c), out + c);
  if (c == cols) return;
  T tail[kRow];
  store(load(c), tail);
  for (int64_t l = 0; c + l < cols; ++l) out[c + l] = tail[l];
}

template <class Reader>
inline Lanes load_up_to(const typename Reader::Element* x, int64_t c, int64_t cols) {
  return c + kRow <= cols ? Reader::load(x + c) : load_tail<Reader>(x + c, cols - c);
}

template <class Reader>
double unit_row(int64_t cols, const typename Reader::Element* x, typename Reader::Element* unit) {
  double largest = 1;
  if constexpr (sizeof(*x) == 8) {  // squares of doubles may overflow or vanish
    largest = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const double size = x[c] < 0 ? -x[c] : x[c];
      if (!(size <= largest)) largest = size;
    }
    if (!(largest > 1e-307)) largest = 1;  // a row so short is a zero row below; NaN is found there
  }
  const double inverse = 1 / largest;
  Lanes squares = zero();
  each_16<Reader>(x, cols, [&](int64_t, Lanes v) {
    v = mul(v, inverse);
    squares = mac(v, v, squares);
  });
  const double norm = largest * std::sqrt(sum(squares));
  if (!(norm < 1.79e308)) return -1;
  const double scale = norm > 1e-307 ? 1 / norm : 0;
  write_row(cols, [&](int64_t c) { return mul(load_up_to<Reader>(x, c, cols), scale); }, unit);
  return scale;
}

template <class Reader>
void project_row(int64_t cols, const typename Reader::Element* unit, const typename Reader::Element* grad_unit,
                 double inverse_norm, typename Reader::Element* grad) {
  Lanes products = zero();
  for (int64_t c = 0; c < cols; c += kRow)
    products = mac(load_up_to<Reader>(unit, c, cols), load_up_to<Reader>(grad_unit, c, cols), products);
  const double along = sum(products);
  write_row(cols, [&](int64_t c) {
    const Lanes u = load_up_to<Reader>(unit, c, cols), g = load_up_to<Reader>(grad_unit, c, cols);
    return mul(sub(g, mul(u, along)), inverse_norm);
  }, grad);
}

}  // namespace

extern const DenseKernels dense = {exp_row,
                                   dot_row,
                                   sum_row,
                                   axpy_row,
                                   cholesky,
                                   unit_row<FloatReader>,
                                   unit_row<DoubleReader>,
                                   project_row<FloatReader>,
                                   project_row<DoubleReader>};

}  // namespace gloss::cpu::GLOSS_ISA
