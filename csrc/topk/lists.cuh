// The filtered search on the GPU: its device memory, and the kernels around the sweep. The algorithm is that of the CPU
// (topk/candidates.h has the bounds); here lists are raised between launches, not as they fill.
//
// Rows are taken in a scattered order ("positions"), so that a corpus sorted by class does not put a row's neighbours into
// one wave of tiles.
#pragma once
#include "topk/exact.cuh"
#include "topk/rows.cuh"

namespace gloss::cuda {

constexpr int kTile = 128;       // rows and columns of a tile of the sweep
constexpr int kDepth = 64;       // of its steps along d
constexpr int64_t kLargestK = 256;

// Rows normalised to half precision, in positions, padded with zero rows to a multiple of kTile.
struct Packed {
  __half* rows;      // [padded, depth]
  float* residual;   // [padded]: |unit row - packed row|, rounded up
  int* id;           // [padded]: which row stands there, -1 past the end
  int64_t count, padded, depth;
  int64_t stride;    // position p holds row p * stride % count
};

// A corpus of half precision that few queries look at: its rows are read where they are, once, and their norms are
// taken on the way. What is scattered is the order of the tiles.
struct Direct {
  const __half* rows;
  int64_t count, stride, cols;
  int64_t tiles, tile_stride;
  int64_t* bad_row;
};
Packed packed_carve(Workspace& memory, int64_t rows, int64_t cols, bool scattered);

// Of every query position: entries that may belong to its k best.
struct Lists {
  Key* entries;        // [padded, capacity]: order_key(approximate value, corpus position)
  int* count;          // [padded]; above capacity: entries were lost
  float* threshold;    // [padded]: what an approximate value must reach
  unsigned* largest_residual;  // [] of the corpus, as bits
  int* failed;         // [padded]: rows to be redone
  int* failed_count;   // []
  int capacity;
};
Lists lists_carve(Workspace& memory, int64_t padded, int64_t k, int64_t least_capacity);
// Near the golden ratio of `count`, without a common divisor: i * stride % count meets every i, neighbours far apart.
int64_t scattering_stride(int64_t count);

// One query row in `problem` of one call.
template <class In>
struct Search {
  Rows<In> queries, corpus;
  double *query_norms, *corpus_norms;  // inverse
  Packed packed_queries, packed_corpus;  // packed_corpus.id null: positions are rows; corpus_norms null likewise
  Lists lists;
  bool self, exclude_self;
  int64_t k;
  float accumulation;  // bound of the tensor cores' rounding
  float* values;
  int64_t* indices;
  TopkStatus* status;
  Queue queue;
};

// Packs rows and computes their norms; `largest_residual` gathers the maximum where not null.
template <class In>
void pack(Rows<In> rows, Packed packed, double* inverse_norms, unsigned* largest_residual, int64_t* bad_row, Queue queue);

// Opens the lists: a zero row and one that is not finite take part no more.
template <class In>
void open_lists(const Search<In>& s);
// Thresholds from earlier neighbours [queries, hint_k]; not used where there are fewer than k or more than kMostHints.
constexpr int64_t kMostHints = 1024;
template <class In>
void seed_lists(const Search<In>& s, const int64_t* hint, int64_t hint_k);
// Keeps of each list what can still belong to the k best and raises the thresholds.
template <class In>
void compact(const Search<In>& s);
// Scores the survivors in double and writes the k best; fails rows that lost entries.
template <class In>
void refine(const Search<In>& s);

// Offers the products of tiles to the lists. Self: the tile pairs (i, (i + delta) mod tiles) for begin <= delta < end,
// both sides; else all query tiles with the corpus tiles begin .. end - 1.
void sweep(const Packed& queries, const Packed& corpus, const Lists& lists, bool self, bool exclude_self, int64_t begin,
           int64_t end, Queue queue);
// All query tiles with tiles begin .. end - 1 of a corpus that is not packed, in scattered order.
void sweep_direct(const Packed& queries, const Direct& corpus, const Lists& lists, bool exclude_self, int64_t begin,
                  int64_t end, Queue queue);

}  // namespace gloss::cuda
