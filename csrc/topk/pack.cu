// Unit rows in half precision, in the layout of the sweep (lists.cuh). Bytes: each row is read once (and twice
// more from L1), and written once, or three times as long where it is split.
#include "topk/lists.cuh"

namespace gloss::cuda {
namespace {

constexpr int kWarps = 4;

// One warp a position.
template <class In, class Out>
__global__ void __launch_bounds__(32 * kWarps)
pack_kernel(Rows<In> rows, double* __restrict__ inverse_norms, Packed packed, Lists lists, bool open,
            unsigned* largest_residual, int64_t* bad_row) {
  const int64_t position = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (position >= packed.padded) return;
  const int64_t block = position / kBlock, at = packed.first(block) + position % kBlock;
  const bool real = at < packed.first(block + 1);
  const int64_t id = !real ? -1 : packed.scattered ? scatter(at, packed.count) : at;
  const In* x = rows.row(real ? id : 0);
  const double inverse = real ? inverse_norm(x, rows.cols, lane) : 0.0;
  const Scaling of_row = scaling(inverse);
  const int cols = inverse > 0 ? rows.cols : 0;
  const auto unit = [&](int c) { return c < cols ? float(to_double(x[c]) * of_row.power * of_row.rest) : 0.0f; };
  const auto high_of = [&](float u) { return from_float<Out>(u * kUnit); };

  double lost = 0;
  for (int c = lane; c < cols; c += 32) {
    const float u = unit(c);
    float rest = u - to_float(high_of(u)) / kUnit;
    if (packed.split) rest -= to_float(high_of(rest)) / kUnit;
    lost += double(rest) * double(rest);
  }
  lost = warp_sum(lost);

  const int row = int(position % kBlock), width = rows.cols;
  for (int c = lane; c < packed.steps * 4; c += 32) {
    struct alignas(16) Numbers {
      Out numbers[8];
    } as_row, as_column;
    for (int e = 0; e < 8; ++e) {
      const int column = c * 8 + e, part = packed.split ? column / width : 0;
      const float u = part < 3 ? unit(column - part * width) : 0.0f;
      const Out high = high_of(u);
      const Out low = packed.split ? high_of(u - to_float(high) / kUnit) : high;
      as_row.numbers[e] = part == 2 ? low : high;
      as_column.numbers[e] = part == 1 ? low : high;
    }
    // A row that is not finite meets nobody: its products are NaN, which reaches no threshold.
    if (inverse != inverse) as_row.numbers[0] = as_column.numbers[0] = from_float<Out>(NAN);
    const int64_t to = ((block * packed.steps + c / 4) * kBlock + row) * 4 + (c % 4 ^ (row / 2 & 3));
    reinterpret_cast<Numbers*>(packed.rows)[to] = as_row;
    if (packed.split) reinterpret_cast<Numbers*>(packed.columns)[to] = as_column;
  }
  if (lane != 0) return;
  const float residual = float(sqrt(lost)) * (1 + 1e-6f) + 1.2e-7f;  // the last: units are rounded to float
  packed.id[position] = int(id);
  packed.residual[position] = residual;
  if (real) inverse_norms[id] = inverse;
  if (inverse != inverse) atomicMin(reinterpret_cast<Key*>(bad_row), Key(id));  // "none" is -1, the largest key
  if (largest_residual && real) atomicMax(largest_residual, __float_as_uint(residual));  // positive: in order as bits
  if (!open) return;
  lists.threshold[position] = inverse > 0 ? -INFINITY : kClosed;
  lists.count[position] = 0;
}

}  // namespace

Packed packed_carve(Workspace& memory, int64_t rows, int64_t cols, bool split, bool scattered, bool with_rows) {
  Packed p{};
  p.count = rows;
  p.blocks = (rows + kBlock - 1) / kBlock;
  p.padded = p.blocks * kBlock;
  p.split = split;
  p.scattered = scattered;
  p.each = scattered && p.blocks ? p.count / p.blocks : kBlock;
  p.more = scattered && p.blocks ? p.count % p.blocks : 0;
  p.steps = int(((split ? 3 : 1) * cols + kStep - 1) / kStep);
  p.id = memory.take<int>(p.padded);
  if (!with_rows) return p;
  const int64_t chunks = p.padded * p.steps * 4;
  p.rows = memory.take<Chunk>(chunks);
  p.columns = split ? memory.take<Chunk>(chunks) : p.rows;
  p.residual = memory.take<float>(p.padded);
  return p;
}

template <class In>
void pack(Rows<In> rows, double* inverse_norms, Packed packed, bool as_bf16, const Lists* lists,
          unsigned* largest_residual, int64_t* bad_row, Queue queue) {
  const auto kernel = as_bf16 ? pack_kernel<In, __nv_bfloat16> : pack_kernel<In, __half>;
  launch(kernel, blocks_for(packed.padded, kWarps), 32 * kWarps, 0, queue.stream, rows, inverse_norms, packed,
         lists ? *lists : Lists{}, lists != nullptr, largest_residual, bad_row);
}

#define GLOSS_INSTANTIATE(In) \
  template void pack<In>(Rows<In>, double*, Packed, bool, const Lists*, unsigned*, int64_t*, Queue);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(__half)
GLOSS_INSTANTIATE(__nv_bfloat16)

}  // namespace gloss::cuda
