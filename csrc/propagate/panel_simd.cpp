// Inner loops of propagate (kernels.h), compiled once for each instruction set. A row of a panel is a few values of the
// compiler's vector type (GCC's and Clang's extension), as long as the registers: as plain loops, gcc 12 keeps the sums
// in memory, 4 ns an edge instead of 0.6.
#include "kernels.h"

#include <limits>

namespace gloss::cpu::GLOSS_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif
#define GLOSS_INLINE inline __attribute__((always_inline))

// N numbers of type T in registers.
template <class T, int N>
struct Row {
  static constexpr int kLanes = kRegister / int(sizeof(T)) < N ? kRegister / int(sizeof(T)) : N;
  static constexpr int kParts = N / kLanes;
  typedef T Part __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T Stored __attribute__((vector_size(kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));
  Part part[kParts];

  template <class F>
  static GLOSS_INLINE Row make(const F& f) {
    Row row;
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) row.part[i] = f(i);
    return row;
  }
  static GLOSS_INLINE Row zero() {
    return make([](int) { return Part{}; });
  }
  static GLOSS_INLINE Row load(const T* x) {
    return make([=](int i) { return Part(*reinterpret_cast<const Stored*>(x + i * kLanes)); });
  }
  GLOSS_INLINE void store(T* x) const {
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) *reinterpret_cast<Stored*>(x + i * kLanes) = part[i];
  }
  // this + w x
  GLOSS_INLINE Row plus(T w, const Row& x) const {
    return make([&](int i) { return part[i] + w * x.part[i]; });
  }
  GLOSS_INLINE Row operator+(const Row& x) const {
    return make([&](int i) { return part[i] + x.part[i]; });
  }
  GLOSS_INLINE Row operator-(const Row& x) const {
    return make([&](int i) { return part[i] - x.part[i]; });
  }
  GLOSS_INLINE Row operator*(const Row& x) const {
    return make([&](int i) { return part[i] * x.part[i]; });
  }
};

template <int N>
GLOSS_INLINE Row<double, N> wide(const Row<double, N>& x) {
  return x;
}
template <int N>
GLOSS_INLINE Row<double, N> wide(const Row<float, N>& x) {
  double numbers[N];
  float narrow[N];
  x.store(narrow);
#pragma GCC unroll 16
  for (int l = 0; l < N; ++l) numbers[l] = narrow[l];
  return Row<double, N>::load(numbers);
}

// (B p)[i]. Two running sums, of even and odd edges: the additions of one do not wait for the other's.
template <int N, class T>
GLOSS_INLINE Row<T, N> neighbors(const System<T>& system, int64_t i, const T* p) {
  using R = Row<T, N>;
  R even = R::zero(), odd = R::zero();
  const int64_t end = system.crow[i + 1];
  int64_t e = system.crow[i];
  for (; e + 1 < end; e += 2) {
    even = even.plus(system.value[e], R::load(p + int64_t(system.col[e]) * N));
    odd = odd.plus(system.value[e + 1], R::load(p + int64_t(system.col[e + 1]) * N));
  }
  if (e < end) even = even.plus(system.value[e], R::load(p + int64_t(system.col[e]) * N));
  return even + odd;
}

template <int N, class T>
void multiply_rows(const System<T>& system, const T* p, T* q, int64_t begin, int64_t end, double* dots) {
  Row<double, N> dot = Row<double, N>::zero();
  for (int64_t i = begin; i < end; ++i) {
    const Row<T, N> pi = Row<T, N>::load(p + i * N), qi = pi - neighbors<N>(system, i, p);
    qi.store(q + i * N);
    dot = dot + wide(pi) * wide(qi);
  }
  dot.store(dots);
}

template <int N, class T>
void residual_rows(const System<T>& system, const T* b, const T* x, T* out, int64_t begin, int64_t end, double* dots) {
  double dot[N] = {};
  for (int64_t i = begin; i < end; ++i) {
    Row<double, N> value = wide(Row<T, N>::load(b + i * N)) - wide(Row<T, N>::load(x + i * N));
    for (int64_t e = system.crow[i]; e < system.crow[i + 1]; ++e)
      value = value.plus(system.value[e], wide(Row<T, N>::load(x + int64_t(system.col[e]) * N)));
    double numbers[N];
    value.store(numbers);
    for (int l = 0; l < N; ++l) {
      out[i * N + l] = T(numbers[l]);
      dot[l] += numbers[l] * numbers[l];
    }
  }
  for (int l = 0; l < N; ++l) dots[l] = dot[l];
}

template <int N, class T>
void advance_rows(const T* step, const T* p, const T* q, T* e, T* r, int64_t begin, int64_t end, double* dots) {
  using R = Row<T, N>;
  const R a = R::load(step);
  Row<double, N> dot = Row<double, N>::zero();
  for (int64_t i = begin; i < end; ++i) {
    (R::load(e + i * N) + a * R::load(p + i * N)).store(e + i * N);
    const R ri = R::load(r + i * N) - a * R::load(q + i * N);
    ri.store(r + i * N);
    dot = dot + wide(ri) * wide(ri);
  }
  dot.store(dots);
}

template <int N, class T>
void turn_rows(const T* beta, const T* r, T* p, int64_t begin, int64_t end) {
  using R = Row<T, N>;
  const R b = R::load(beta);
  for (int64_t i = begin; i < end; ++i) (R::load(r + i * N) + b * R::load(p + i * N)).store(p + i * N);
}

// sum_j W_ij (x_i - x_j) + e_i x_i. A difference of numbers that are nearly the same is exact, and the same, but for its
// sign, from both ends of an edge: in the sum over a group of rows what flows inside it vanishes.
template <int N, class T>
GLOSS_INLINE Row<T, N> flow(const Weights<T>& a, int64_t i, const T* x) {
  using R = Row<T, N>;
  const R xi = R::load(x + i * N);
  R even = R::zero().plus(a.excess[i], xi), odd = R::zero();
  const int64_t end = a.crow[i + 1];
  int64_t e = a.crow[i];
  for (; e + 1 < end; e += 2) {
    even = even.plus(a.weight[e], xi - R::load(x + int64_t(a.col[e]) * N));
    odd = odd.plus(a.weight[e + 1], xi - R::load(x + int64_t(a.col[e + 1]) * N));
  }
  if (e < end) even = even.plus(a.weight[e], xi - R::load(x + int64_t(a.col[e]) * N));
  return even + odd;
}

template <int N, class T>
void apply_rows(const Weights<T>& a, const T* x, T* y, int64_t begin, int64_t end, double* dots) {
  Row<double, N> dot = Row<double, N>::zero();
  for (int64_t i = begin; i < end; ++i) {
    const Row<T, N> yi = flow<N>(a, i, x);
    yi.store(y + i * N);
    dot = dot + wide(Row<T, N>::load(x + i * N)) * wide(yi);
  }
  dot.store(dots);
}

template <int N, class T>
void remainder_rows(const Weights<T>& a, const T* b, const T* x, T* r, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) (Row<T, N>::load(b + i * N) - flow<N>(a, i, x)).store(r + i * N);
}

template <int N, class T>
void descend_rows(const Weights<T>& a, const T* step, const T* p, const T* q, T* x, T* r, T* z, int64_t begin,
                  int64_t end) {
  using R = Row<T, N>;
  const R by = R::load(step);
  for (int64_t i = begin; i < end; ++i) {
    (R::load(x + i * N) + by * R::load(p + i * N)).store(x + i * N);
    const R ri = R::load(r + i * N) - by * R::load(q + i * N), zi = R::zero().plus(a.damped[i], ri);
    ri.store(r + i * N);
    zi.store(z + i * N);
  }
}

template <int N, class T>
void damp_rows(const Weights<T>& a, const T* r, T* z, int64_t begin, int64_t end) {
  using R = Row<T, N>;
  for (int64_t i = begin; i < end; ++i) R::zero().plus(a.damped[i], R::load(r + i * N)).store(z + i * N);
}

template <int N, class T>
void restrict_rows(const Weights<T>& a, const int32_t* first, const T* r, const T* z, T* coarse, int64_t begin,
                   int64_t end) {
  using R = Row<T, N>;
  for (int64_t g = begin; g < end; ++g) {
    R sum = R::zero();
    for (int64_t i = first[g]; i < first[g + 1]; ++i) sum = sum + (R::load(r + i * N) - flow<N>(a, i, z));
    sum.store(coarse + g * N);
  }
}

template <int N, class T>
void prolong_rows(const int32_t* first, const T* coarse, T* z, int64_t begin, int64_t end) {
  using R = Row<T, N>;
  for (int64_t g = begin; g < end; ++g) {
    const R x = R::load(coarse + g * N);
    for (int64_t i = first[g]; i < first[g + 1]; ++i) (R::load(z + i * N) + x).store(z + i * N);
  }
}

// Sums of r z and the largest |z| of the rows that it was given.
template <int N, class T>
struct Measure {
  Row<double, N> dot = Row<double, N>::zero();
  T most[N] = {};

  GLOSS_INLINE void take(const Row<T, N>& r, const Row<T, N>& z) {
    dot = dot + wide(r) * wide(z);
    T numbers[N];
    z.store(numbers);
    for (int c = 0; c < N; ++c) {
      const T size = numbers[c] < 0 ? -numbers[c] : numbers[c];
      most[c] = most[c] < size ? size : most[c];
    }
  }
  GLOSS_INLINE void store(double* dots, double* largest) const {
    dot.store(dots);
    for (int c = 0; c < N; ++c) largest[c] = double(most[c]);
  }
};

template <int N, class T>
void measure_rows(const T* r, const T* z, int64_t begin, int64_t end, double* dots, double* largest) {
  Measure<N, T> measure;
  for (int64_t i = begin; i < end; ++i) measure.take(Row<T, N>::load(r + i * N), Row<T, N>::load(z + i * N));
  measure.store(dots, largest);
}

template <int N, class T>
void smooth_rows(const Weights<T>& a, const T* r, const T* z, T* out, int64_t begin, int64_t end, double* dots,
                 double* largest) {
  using R = Row<T, N>;
  Measure<N, T> measure;
  for (int64_t i = begin; i < end; ++i) {
    const R ri = R::load(r + i * N), zi = R::load(z + i * N).plus(a.damped[i], ri - flow<N>(a, i, z));
    zi.store(out + i * N);
    measure.take(ri, zi);
  }
  measure.store(dots, largest);
}

// Picks the copy for the panel's width: 4, 8 or 16.
#define GLOSS_BY_WIDTH(call)      \
  switch (width) {                \
    case 4: return call(4);       \
    case 8: return call(8);       \
    default: return call(kPanel); \
  }

template <class T>
void multiply(const System<T>& system, int64_t width, const T* p, T* q, int64_t begin, int64_t end, double* dots) {
#define GLOSS_CALL(n) multiply_rows<n>(system, p, q, begin, end, dots)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void residual(const System<T>& system, int64_t width, const T* b, const T* x, T* out, int64_t begin, int64_t end,
              double* dots) {
#define GLOSS_CALL(n) residual_rows<n>(system, b, x, out, begin, end, dots)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void advance(int64_t width, const T* step, const T* p, const T* q, T* e, T* r, int64_t begin, int64_t end,
             double* dots) {
#define GLOSS_CALL(n) advance_rows<n>(step, p, q, e, r, begin, end, dots)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void turn(int64_t width, const T* beta, const T* r, T* p, int64_t begin, int64_t end) {
#define GLOSS_CALL(n) turn_rows<n>(beta, r, p, begin, end)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void apply(const Weights<T>& a, int64_t width, const T* x, T* y, int64_t begin, int64_t end, double* dots) {
#define GLOSS_CALL(n) apply_rows<n>(a, x, y, begin, end, dots)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void remainder(const Weights<T>& a, int64_t width, const T* b, const T* x, T* r, int64_t begin, int64_t end) {
#define GLOSS_CALL(n) remainder_rows<n>(a, b, x, r, begin, end)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void descend(const Weights<T>& a, int64_t width, const T* step, const T* p, const T* q, T* x, T* r, T* z,
             int64_t begin, int64_t end) {
#define GLOSS_CALL(n) descend_rows<n>(a, step, p, q, x, r, z, begin, end)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void damp(const Weights<T>& a, int64_t width, const T* r, T* z, int64_t begin, int64_t end) {
#define GLOSS_CALL(n) damp_rows<n>(a, r, z, begin, end)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void restrict(const Weights<T>& a, const int32_t* first, int64_t width, const T* r, const T* z, T* coarse,
              int64_t begin, int64_t end) {
#define GLOSS_CALL(n) restrict_rows<n>(a, first, r, z, coarse, begin, end)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void prolong(const int32_t* first, int64_t width, const T* coarse, T* z, int64_t begin, int64_t end) {
#define GLOSS_CALL(n) prolong_rows<n>(first, coarse, z, begin, end)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void measure(int64_t width, const T* r, const T* z, int64_t begin, int64_t end, double* dots, double* largest) {
#define GLOSS_CALL(n) measure_rows<n>(r, z, begin, end, dots, largest)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

template <class T>
void smooth(const Weights<T>& a, int64_t width, const T* r, const T* z, T* out, int64_t begin, int64_t end,
            double* dots, double* largest) {
#define GLOSS_CALL(n) smooth_rows<n>(a, r, z, out, begin, end, dots, largest)
  GLOSS_BY_WIDTH(GLOSS_CALL)
#undef GLOSS_CALL
}

// Sums in 16 lanes of T, added up in double: lanes(c) is 16 products from c on, one(c) a single one.
template <class T, class Lanes, class One>
GLOSS_INLINE double lanes_sum(int64_t count, const Lanes& lanes, const One& one) {
  Row<T, 16> sums = Row<T, 16>::zero();
  int64_t c = 0;
  for (; c + 16 <= count; c += 16) sums = sums + lanes(c);
  double sum = 0;
  for (; c < count; ++c) sum += double(one(c));
  T numbers[16];
  sums.store(numbers);
  for (T number : numbers) sum += double(number);
  return sum;
}

template <class T>
double dot(int64_t count, const T* a, const T* f) {
  using R = Row<T, 16>;
  return lanes_sum<T>(count, [=](int64_t c) { return R::load(a + c) * R::load(f + c); },
                      [=](int64_t c) { return a[c] * f[c]; });
}

template <class T>
GLOSS_INLINE T difference(T x, T y, T units) {
  const T d = x - y, size = x < 0 ? -x : x, other = y < 0 ? -y : y, least = units * (size < other ? other : size);
  return d > least || d < -least ? d : T(0);
}

template <class T, class F>
double dot_differences(int64_t count, const T* a, const T* b, const F* f, const F* g) {
  constexpr int kLanes = 8;  // sums that do not wait for each other
  const T few_a = T(64) * std::numeric_limits<T>::epsilon();
  const F few_f = F(4) * std::numeric_limits<F>::epsilon();
  double sums[kLanes] = {};
  const auto term = [=](int64_t c) {
    return double(difference(a[c], b[c], few_a)) * double(difference(f[c], g[c], few_f));
  };
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes)
    for (int l = 0; l < kLanes; ++l) sums[l] += term(c + l);
  double sum = 0;
  for (; c < count; ++c) sum += term(c);
  for (const double part : sums) sum += part;
  return sum;
}

}  // namespace

template <class T>
constexpr PanelKernels<T> kKernels = {
    multiply<T>, residual<T>, advance<T>, turn<T>,    apply<T>, remainder<T>,
    descend<T>,  damp<T>,     restrict<T>, prolong<T>, measure<T>, smooth<T>,
    dot<T>,      dot_differences<T, float>, dot_differences<T, double>};
extern const PanelKernels<float> panel_f32 = kKernels<float>;
extern const PanelKernels<double> panel_f64 = kKernels<double>;

}  // namespace gloss::cpu::GLOSS_ISA
