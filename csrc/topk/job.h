// What one search is about, as its stages hand it to each other.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "cpu/parallel.h"

namespace gloss::cpu {

// A matrix and what its normalisation left behind.
struct Operand {
  const char* name;  // "queries" or "corpus", for messages
  RowSource source;
  int64_t rows;
  double* inverse_norm;  // [rows] 1 / |x|, 0 for a zero row
};

// Queries are numbered by position: ids[position] is the row. Results go to row slot(position) of the outputs.
struct Job {
  Operand queries, corpus;
  bool self;           // queries and corpus are one matrix, and every row is a query
  const int32_t* ids;  // [count]
  int64_t count;
  bool slot_is_position;  // else the slot is the row
  int64_t k;
  bool exclude_self;
  float* values;     // [slots, k]
  int64_t* indices;  // [slots, k]
  int threads;
  int64_t slot(int64_t position) const { return slot_is_position ? position : ids[position]; }
};

// Larger value first, then smaller index: one unsigned number in ascending order.
inline uint64_t order_key(float value, int32_t index) {
  value += 0.0f;  // -0 and 0 are one value
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t(~ascending) << 32 | uint32_t(index);
}
inline float key_value(uint64_t key) {
  const uint32_t ascending = ~uint32_t(key >> 32);
  const uint32_t bits = ascending & 0x80000000u ? ascending & 0x7fffffffu : ~ascending;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline int32_t key_index(uint64_t key) { return int32_t(uint32_t(key)); }

[[noreturn]] void throw_bad_row(const Operand& operand);  // finds the first row with NaN or Inf

}  // namespace gloss::cpu
