// The filtered search on the GPU: its device memory, and the kernels around the sweep. The algorithm is that of the CPU
// (topk/candidates.h has the bounds); here lists are raised between launches, not as they fill.
//
// Positions. A scattered matrix is taken in a pseudo-random order, so that a corpus sorted by class does not put a
// row's neighbours into one wave of tiles, and what a wave adds to a list follows the law of random samples. Its rows
// are spread evenly over the blocks: every row then meets nearly as many others in every wave.
#pragma once
#include "topk/exact.cuh"
#include "topk/rows.cuh"

namespace gloss::cuda {

constexpr int kBlock = 256;       // positions of a block: the columns of a tile of the sweep
constexpr int kTileRows = 128;    // its rows
constexpr int kStep = 32;         // columns of d in a step of the sweep
constexpr int64_t kLargestK = 256;
constexpr float kUnit = 4096;     // packed numbers are unit rows times this, away from the subnormal numbers of half

struct alignas(16) Chunk {
  __half numbers[8];
};

// Rows normalised to half precision: [block][step][kBlock][4] chunks, so that the part of a step is contiguous. Chunk
// c of row r stands at c ^ (r / 2 % 4): in shared memory two rows share 128 bytes, and ldmatrix meets all banks once.
// Short rows are split in two, u = high + low with an error of 2^-22: as the rows of a tile (high, high, low), as its
// columns (high, low, high), so that one product has all but low . low.
struct Packed {
  Chunk* rows;      // as rows of a tile
  Chunk* columns;   // as columns; the same memory if not split
  int* id;          // [padded]: which row stands there, -1 for none
  float* residual;  // [padded]: |unit row - packed row|, rounded up
  int64_t count, blocks, padded;
  int steps;
  bool split, scattered;
  int64_t each, more;  // rows of a block; and how many of the first blocks have one more
  __host__ __device__ int64_t first(int64_t block) const {  // rows before the block
    const int64_t at = block * each + (block < more ? block : more);
    return at < count ? at : count;
  }
};
// `with_rows`: else only the order, for a corpus that is swept as it is.
Packed packed_carve(Workspace& memory, int64_t rows, int64_t cols, bool split, bool scattered, bool with_rows);

// A permutation of 0 .. count - 1 without a table: four Feistel rounds on the next even number of bits, repeated until
// the result is in range (fewer than four times on average).
__device__ inline int64_t scatter(int64_t position, int64_t count) {
  int half = 1;
  while (int64_t(1) << (2 * half) < count) ++half;
  const unsigned mask = (1u << half) - 1;
  auto left = unsigned(position >> half), right = unsigned(position) & mask;
  do {
    for (unsigned round = 1; round <= 4; ++round) {
      unsigned mixed = (right + round) * 0x9e3779b1u;
      mixed = (mixed ^ mixed >> 15) * 0x85ebca77u;
      const unsigned next = left ^ ((mixed ^ mixed >> 13) & mask);
      left = right;
      right = next;
    }
  } while (int64_t(left) << half >= count || (int64_t(left) << half | right) >= count);
  return int64_t(left) << half | right;
}

// A corpus of 16-bit rows that few queries sweep as it is, and what the sweep finds out about it. rows is null
// otherwise.
struct RawCorpus {
  const Chunk* rows;
  DType dtype;
  int64_t stride;  // in chunks
  int cols;        // a multiple of 8
  int* id;         // [padded], as in Packed
  double* norms;   // inverse
  int64_t* bad_row;
  int* odd;        // [padded queries]: rows whose norm leaves the range of floats
};

constexpr Key kNobody = ~Key(0);

// Of every query position: entries that may belong to its k best.
struct Lists {
  Key* entries;      // [padded, capacity]: order_key(approximate value, corpus position), or kNobody
  int* count;        // [padded]; above capacity: entries were lost
  float* threshold;  // [padded]: what an approximate value must reach; kClosed: nothing is to be added
  unsigned* largest_residual;  // [] of the corpus, as bits
  int capacity;      // a multiple of kBlock
};
constexpr float kClosed = INFINITY;

// Rows that lost entries, for redo(). Identical ones are searched once: they find each other by a hash table.
struct Failed {
  int* count;      // []
  int* positions;  // [padded]
  int* place;      // [padded]: of a position in `positions`
  int* slot;       // [padded]: of a position in the table
  int* leader;     // [padded]: the position whose result serves this one
  int* leaders_count;  // []
  int* leaders;    // [padded]: positions that are searched; `place` of such a position is the one here
  Key* bounds;     // [padded]: of a leader by its place; the keys wanted are at or before it
  Key* hashes;     // [slots]
  int* smallest;   // [slots]: position with this hash
  Key* partial;    // keys of parts of the corpus, where a list has no room for them
  int64_t slots;
};

template <class In>
struct Search {
  Rows<In> queries, corpus;
  double *query_norms, *corpus_norms;  // inverse
  Packed packed_queries, packed_corpus;
  RawCorpus raw;
  Lists lists;
  Failed failed;
  bool self, exclude_self;
  int64_t k;
  float accumulation;  // bound of the tensor cores' rounding, and of what a split leaves out
  float* values;
  int64_t* indices;
  TopkStatus* status;
  Queue queue;
};

// A list holds at least 3 k entries, and more where rows are few: then fewer waves do.
Lists lists_carve(Workspace& memory, int64_t padded, int64_t k);
Failed failed_carve(Workspace& memory, int64_t padded, int64_t corpus, int64_t k);

// Packs rows and computes their norms (as compute_norms does). Of queries opens the lists; `largest_residual` gathers
// the maximum where not null.
template <class In>
void pack(Rows<In> rows, double* inverse_norms, Packed packed, bool as_bf16, const Lists* lists,
          unsigned* largest_residual, int64_t* bad_row, Queue queue);
// Thresholds from earlier neighbours (gloss.h: hint), before the first wave.
template <class In>
void seed_lists(const Search<In>& s, const int64_t* hint, int64_t hint_k);
// Keeps of each list what can still belong to the k best and raises the thresholds. `count`: entries of all lists, or
// 0.
template <class In>
void compact(const Search<In>& s, int count);
// Scores the survivors and writes the k best; fails rows that lost entries.
template <class In>
void refine(const Search<In>& s);
// The failed rows against all others.
template <class In>
void redo(const Search<In>& s);

// Which tiles a launch of the sweep works on: row tiles x column blocks. Self: column block i + delta for the blocks i,
// begin <= delta < end, an entry offered to both sides; else the column blocks begin .. end - 1.
// Dense: there are no thresholds yet; every product is stored, those with block `begin` + s at s * kBlock.
struct Wave {
  bool self, dense, exclude_self;
  int64_t row_blocks;  // self: the first blocks only (half way round, each pair would come up twice)
  int64_t begin, end;
};
void sweep(const Packed& queries, const Packed& corpus, const RawCorpus& raw, const Lists& lists, Wave wave,
           Queue queue);

// |cosine - product of the packed rows| for a query with this residual.
__device__ inline float guard(float residual, const Lists& lists, float accumulation) {
  return (residual + (1 + residual) * __uint_as_float(*lists.largest_residual) + accumulation) * (1 + 1e-5f);
}

// The cosine of a query with corpus row j. The norms of a raw corpus are not there yet, or sums in float.
template <class In>
__device__ inline double cosine_with(const Search<In>& s, const In* x, Scaling of_x, int64_t j, int lane) {
  const In* y = s.corpus.row(j);
  const bool raw = sizeof(In) == 2 && s.raw.rows;  // others are packed
  const double norm = raw ? inverse_norm(y, s.corpus.cols, lane) : s.corpus_norms[j];
  return warp_cosine(x, of_x, y, scaling(norm), s.corpus.cols, lane);
}

}  // namespace gloss::cuda
