// Normalisation and packing (layouts in kernels.h).
#include "kernels.h"
#include "cpu/lanes.h"

namespace gloss::cpu::GLOSS_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kPanel = 64;
#elif defined(__AVX2__)
constexpr int kPanel = 16;
#else
constexpr int kPanel = 8;
#endif

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Rounds 16 floats to bf16 (nearest, ties to even): words [8] of two neighbours each, and the rounded values.
inline void round_to_bf16(const float* u, uint32_t* words, float* rounded) {
  uint32_t bits[16];
  for (int l = 0; l < 16; ++l) {
    const uint32_t x = bits_of(u[l]);
    bits[l] = (x + 0x7fffu + ((x >> 16) & 1u)) & 0xffff0000u;
  }
  std::memcpy(rounded, bits, sizeof(bits));
  for (int l = 0; l < 8; ++l) words[l] = (bits[2 * l] >> 16) | bits[2 * l + 1];
}

// words [steps, and up to 16 more] <- one unit row. False if it contains NaN or Inf: then so does the sum of squares.
// Squares of float32 neither overflow nor vanish in double.
template <class Reader>
bool normalize_row(const RowSource* source, int32_t id, int32_t next, bool bf16, uint32_t* words,
                   double* inverse_norm, float* residual) {
  const auto* data = static_cast<const typename Reader::Element*>(source->data);
  const auto* x = data + id * source->stride;
  const int64_t cols = source->cols;
  prefetch_row(data + next * source->stride, cols);
  Lanes squares = zero();
  each_16<Reader>(x, cols, [&](int64_t, Lanes v) { squares = mac(v, v, squares); });
  const double total = sum(squares);
  if (!(total <= 1.7e308)) return false;
  const double inverse = total > 0 ? 1 / std::sqrt(total) : 0.0;

  Lanes lost = zero();
  each_16<Reader>(x, cols, [&](int64_t c, Lanes v) {
    const Lanes unit = mul(v, inverse);
    float u[16], rounded[16];
    store_float(unit, u);
    if (bf16) {
      round_to_bf16(u, words + c / 2, rounded);
    } else {
      std::memcpy(words + c, u, sizeof(u));
      std::memcpy(rounded, u, sizeof(u));
    }
    const Lanes difference = sub(unit, load_float(rounded));
    lost = mac(difference, difference, lost);
  });
  *inverse_norm = inverse;
  *residual = float(std::sqrt(sum(lost)) * (1 + 1e-6) + 1e-12);  // rounded up
  return true;
}

}  // namespace

int pack_group(const RowSource* source, const int32_t* ids, int count, bool bf16, uint32_t* group,
               double* inverse_norm, float* residual, uint32_t* scratch) {
  const int64_t cols = source->cols, steps = bf16 ? (cols + 1) / 2 : cols, room = cols + 16;
  int bad = -1;
  // 16 rows are staged, so that the interleaving stores whole cache lines.
  for (int first = 0; first < kGroup; first += 16) {
    for (int r = 0; r < 16; ++r) {
      uint32_t* words = scratch + r * room;
      const int slot = first + r;
      if (slot >= count || bad >= 0) {
        std::memset(words, 0, size_t(steps) * 4);
        continue;
      }
      const int32_t next = ids[slot + 1 < count ? slot + 1 : slot];
      double* norm = inverse_norm + slot;
      float* lost = residual + slot;
      bool finite;
      if (source->dtype == 1)
        finite = normalize_row<FloatReader>(source, ids[slot], next, bf16, words, norm, lost);
      else if (source->dtype == 2)
        finite = normalize_row<HalfReader>(source, ids[slot], next, bf16, words, norm, lost);
      else
        finite = normalize_row<BfloatReader>(source, ids[slot], next, bf16, words, norm, lost);
      if (!finite) bad = slot;
    }
    for (int r = 0; r < 16; r += kPanel < 16 ? kPanel : 16) {
      const int width = kPanel < 16 ? kPanel : 16, slot = first + r;
      uint32_t* out = group + int64_t(slot / kPanel) * steps * kPanel + slot % kPanel;
      const uint32_t* in = scratch + r * room;
      for (int64_t s = 0; s < steps; ++s)
        for (int l = 0; l < width; ++l) out[s * kPanel + l] = in[l * room + s];
    }
  }
  return bad;
}

void pack_tiles(const uint32_t* groups, int64_t first, int64_t count, int64_t steps, uint32_t* tiles) {
  for (int64_t tile = 0; tile * kTileRows < count; ++tile) {
    uint32_t* out = tiles + tile * steps * kTileRows;
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t row = first + tile * kTileRows + r;
      if (tile * kTileRows + r >= count) {
        for (int64_t s = 0; s < steps; ++s) out[s * kTileRows + r] = 0;
        continue;
      }
      const uint32_t* in = groups + row / kPanel * steps * kPanel + row % kPanel;
      for (int64_t s = 0; s < steps; ++s) out[s * kTileRows + r] = in[s * kPanel];
    }
  }
}

}  // namespace gloss::cpu::GLOSS_ISA
