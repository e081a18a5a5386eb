// What a search must be given, on the CPU and on a GPU.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>

#include "gloss.h"

namespace gloss {

inline void check_pair(MatrixView queries, MatrixView corpus) {
  if (queries.cols != corpus.cols)
    throw std::invalid_argument("corpus must have " + std::to_string(queries.cols) + " columns as queries, got " +
                                std::to_string(corpus.cols));
  if (queries.dtype != corpus.dtype)
    throw std::invalid_argument("corpus must have the dtype of queries, got another");
}

inline void check_search(MatrixView queries, MatrixView corpus, int64_t k, bool exclude_self) {
  check_pair(queries, corpus);
  if (exclude_self && queries.rows > corpus.rows)
    throw std::invalid_argument("exclude_self must be false where there are more queries than corpus rows, got " +
                                std::to_string(queries.rows) + " and " + std::to_string(corpus.rows));
  const int64_t available = std::max<int64_t>(corpus.rows - (exclude_self ? 1 : 0), 0);
  if (k < 1 || k > available)
    throw std::invalid_argument("k must be 1 to " + std::to_string(available) + " (corpus of " +
                                std::to_string(corpus.rows) + " rows" + (exclude_self ? ", itself left out)" : ")") +
                                ", got " + std::to_string(k));
}

}  // namespace gloss
