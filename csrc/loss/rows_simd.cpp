// Inner loops of the dense path (kernels.h), compiled once for each instruction set.
#include "kernels.h"

#include "cpu/lanes.h"

namespace gloss::cpu::GLOSS_ISA {
namespace {

// exp of x <= 0 without a branch, so that the loop becomes vector instructions: x = k ln 2 + r, |r| <= ln 2 / 2, a Taylor
// polynomial of degree 12 (error under 2e-16), and 2^k by its bits.
inline double exp_negative(double x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, kept in the low bits
  const double bounded = x > kSmallestExponent ? x : kSmallestExponent;
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
  uint64_t bits;  // the low ones are k, of two's complement; those above leave by the shift
  std::memcpy(&bits, &shifted, 8);
  bits = (bits + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, 8);
  return x > kSmallestExponent ? p * power : 0.0;
}

void exp_row(int64_t count, const double* x, double* w) {
  for (int64_t j = 0; j < count; ++j) w[j] = exp_negative(x[j]);
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

// Rows of a step of eliminate(). Those below it wait, and take its kPanel contributions at once: less traffic.
constexpr int64_t kPanel = 16;

// a_i [first, end) += sum_k u_ki u_k [first, end) over the rows k of a panel u, for Rows rows i from a on.
template <int Rows>
inline void add_products(int64_t rows, int64_t stride, int64_t i, int64_t first, int64_t end, const double* u, double* a) {
  for (int64_t c = first; c < end; c += kRow) {
    Lanes sums[Rows];
    for (int r = 0; r < Rows; ++r) sums[r] = load_double(a + r * stride + c);
    for (int64_t k = 0; k < rows; ++k) {
      const double* row = u + k * stride;
      const Lanes values = load_double(row + c);
      for (int r = 0; r < Rows; ++r) sums[r] = mac(values, broadcast(row[i + r]), sums[r]);
    }
    for (int r = 0; r < Rows; ++r) store_double(sums[r], a + r * stride + c);
  }
}

void eliminate(int64_t n, int64_t stride, double* a) {
  for (int64_t top = 0; top < n; top += kPanel) {
    const int64_t bottom = top + kPanel < n ? top + kPanel : n;
    for (int64_t k = top; k < bottom; ++k) {
      double* row = a + k * stride;
      const int64_t aligned = (k + 1 + kRow - 1) / kRow * kRow;
      double pivot = sum_row(stride - aligned, row + aligned);
      for (int64_t j = k + 1; j < aligned; ++j) pivot += row[j];
      const double root = std::sqrt(pivot), inverse = 1 / root;
      for (int64_t j = k + 1; j < stride; ++j) row[j] *= inverse;
      row[k] = root;
      for (int64_t i = k + 1; i < bottom; ++i) axpy_row(stride - i - 1, row[i], row + i + 1, a + i * stride + i + 1);
    }
    // Left of the diagonal the products are added too, to what is never read.
    const double* panel = a + top * stride;
    int64_t i = bottom;
    for (; i + 4 <= n; i += 4) add_products<4>(bottom - top, stride, i, i / kRow * kRow, stride, panel, a + i * stride);
    for (; i < n; ++i) add_products<1>(bottom - top, stride, i, i / kRow * kRow, stride, panel, a + i * stride);
  }
}

void solve(int64_t n, int64_t stride, const double* r, int64_t width, double* x) {
  for (int64_t c = 0; c < width; c += kRow) {
    for (int64_t k = 0; k < n; ++k) {  // R^T y = x
      const double* row = r + k * stride;
      double* own = x + k * width + c;
      const Lanes y = mul(load_double(own), 1 / row[k]);
      store_double(y, own);
      for (int64_t j = k + 1; j < n; ++j) {
        double* other = x + j * width + c;
        store_double(mac(y, broadcast(row[j]), load_double(other)), other);
      }
    }
    for (int64_t k = n - 1; k >= 0; --k) {  // R x = y
      const double* row = r + k * stride;
      double* own = x + k * width + c;
      Lanes sum = load_double(own), second = zero();  // two chains of additions
      int64_t j = k + 1;
      for (; j + 2 <= n; j += 2) {
        sum = mac(load_double(x + j * width + c), broadcast(row[j]), sum);
        second = mac(load_double(x + (j + 1) * width + c), broadcast(row[j + 1]), second);
      }
      for (; j < n; ++j) sum = mac(load_double(x + j * width + c), broadcast(row[j]), sum);
      store_double(mul(add(sum, second), 1 / row[k]), own);
    }
  }
}

void edge_gradients(int64_t count, int64_t classes, int64_t stride, const double* f, const double* lam,
                    const double* fs, const double* lams, double* out) {
  for (int64_t first = 0; first < count; first += kRow) {
    double sums[kRow] = {};  // registers: every loop over kRow is unrolled into vectors
    for (int64_t c = 0; c < classes; ++c) {
      const double mine = f[c], own = lam[c];
      const double *__restrict__ others = fs + c * stride + first, *__restrict__ theirs = lams + c * stride + first;
      for (int64_t l = 0; l < kRow; ++l) {
        const double difference = mine - others[l], larger = mine > others[l] ? mine : others[l];
        const double product = (theirs[l] - own) * difference;
        sums[l] += std::fabs(difference) > kRounding * larger ? product : 0.0;
      }
    }
    for (int64_t l = 0; l < kRow; ++l) out[first + l] = sums[l];
  }
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
                                   eliminate,
                                   solve,
                                   edge_gradients,
                                   unit_row<FloatReader>,
                                   unit_row<DoubleReader>,
                                   project_row<FloatReader>,
                                   project_row<DoubleReader>};

}  // namespace gloss::cpu::GLOSS_ISA
