// Every pair: the whole search for float64, for few rows and for large k.
#pragma once
#include "topk/rows.cuh"

namespace gloss::cuda {

// inverse_norms[i] = 1 / |row i| (0: zero row, NaN: not finite); *bad_row = the first row that is not finite, else as
// is.
template <class In>
void compute_norms(Rows<In> rows, double* inverse_norms, int64_t* bad_row, Queue queue);

// The k best of all corpus rows for every query; `scores` and `chosen` are the workspace of exact_carve.
template <class In, class T>
struct ExactSpace {
  T* scores;      // [chunk, corpus rows]
  void* chosen;   // [chunk, k] pairs of value and index
  int64_t chunk;  // queries at once
};
template <class In, class T>
ExactSpace<In, T> exact_carve(Workspace& memory, int64_t queries, int64_t corpus, int64_t k);
template <class In, class T>
void exact_search(Rows<In> queries, Rows<In> corpus, const double* query_norms, const double* corpus_norms, int64_t k,
                  bool exclude_self, T* values, int64_t* indices, ExactSpace<In, T> space, Queue queue);

}  // namespace gloss::cuda
