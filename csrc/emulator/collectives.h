// Barriers and the operations of a warp.
#pragma once
#include "fibers.h"

namespace emulator {

inline unsigned lane() { return block.current & 31u; }

inline uint64_t at_barrier(unsigned kind, uint64_t value) {
  self().argument = kind;
  self().value = value;
  wait(State::block);
  return self().out;
}

// Any set that holds the caller is a legal answer.
inline unsigned only_me() { return 1u << lane(); }

// Meets the other lanes of the mask at `collective`, which computes every lane's result.
inline uint64_t collective(Collective operation, unsigned mask, uint64_t value, unsigned argument = 0) {
  Fiber& me = self();
  if (!(mask >> lane() & 1)) stop("a lane is not in the mask of its own warp operation");
  me.collective = operation;
  me.mask = mask;
  me.value = value;
  me.argument = argument;
  wait(State::warp);
  return self().out;
}

template <class F>
void each_lane(unsigned lanes, F f) {
  for (unsigned left = lanes; left; left &= left - 1) f(unsigned(__builtin_ctz(left)));
}

inline void shuffle(Fiber* warp, unsigned lanes) {  // from a lane that takes no part: poison
  each_lane(lanes, [&](unsigned l) {
    const unsigned from = warp[l].argument;
    warp[l].out = from < 32 && (lanes >> from & 1) ? warp[from].value : ~uint64_t(0);
  });
}
inline void ballot(Fiber* warp, unsigned lanes) {
  uint64_t votes = 0;
  each_lane(lanes, [&](unsigned l) { votes |= uint64_t(warp[l].value != 0) << l; });
  each_lane(lanes, [&](unsigned l) { warp[l].out = votes; });
}
inline void match(Fiber* warp, unsigned lanes) {
  each_lane(lanes, [&](unsigned l) {
    warp[l].out = 0;
    each_lane(lanes, [&](unsigned m) { warp[l].out |= uint64_t(warp[m].value == warp[l].value) << m; });
  });
}
template <class T, class Combine>
void reduce(Fiber* warp, unsigned lanes, Combine combine) {
  T total{};
  bool first = true;
  each_lane(lanes, [&](unsigned l) {
    total = first ? T(warp[l].value) : combine(total, T(warp[l].value));
    first = false;
  });
  each_lane(lanes, [&](unsigned l) { warp[l].out = uint64_t(total); });
}
template <class T>
void reduce_add(Fiber* warp, unsigned lanes) {
  reduce<T>(warp, lanes, [](T a, T b) { return T(a + b); });
}
template <class T>
void reduce_min(Fiber* warp, unsigned lanes) {
  reduce<T>(warp, lanes, [](T a, T b) { return a < b ? a : b; });
}
template <class T>
void reduce_max(Fiber* warp, unsigned lanes) {
  reduce<T>(warp, lanes, [](T a, T b) { return a < b ? b : a; });
}
template <class T>
void reduce_or(Fiber* warp, unsigned lanes) {
  reduce<T>(warp, lanes, [](T a, T b) { return T(a | b); });
}

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "a warp exchanges at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulator

inline unsigned __activemask() { return emulator::only_me(); }
inline void __syncthreads() { emulator::at_barrier(0, 0); }
inline int __syncthreads_or(int value) { return int(emulator::at_barrier(1, value != 0)); }
inline int __syncthreads_and(int value) { return int(emulator::at_barrier(2, value != 0)); }
inline int __syncthreads_count(int value) { return int(emulator::at_barrier(3, value != 0)); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::collective(nullptr, mask, 0); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned first = emulator::lane() & ~unsigned(width - 1);
  return emulator::from_bits<T>(
      emulator::collective(emulator::shuffle, mask, emulator::to_bits(value), first | (unsigned(source) & unsigned(width - 1))));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const unsigned lane = emulator::lane(), end = (lane & ~unsigned(width - 1)) + unsigned(width);
  const unsigned source = lane ^ unsigned(lanes);
  return emulator::from_bits<T>(
      emulator::collective(emulator::shuffle, mask, emulator::to_bits(value), source < end ? source : lane));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = emulator::lane(), end = (lane & ~unsigned(width - 1)) + unsigned(width);
  return emulator::from_bits<T>(emulator::collective(emulator::shuffle, mask, emulator::to_bits(value),
                                                     lane + delta < end ? lane + delta : lane));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = emulator::lane(), first = lane & ~unsigned(width - 1);
  return emulator::from_bits<T>(emulator::collective(emulator::shuffle, mask, emulator::to_bits(value),
                                                     lane >= first + delta ? lane - delta : lane));
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  return unsigned(emulator::collective(emulator::ballot, mask, vote != 0));
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  return unsigned(emulator::collective(emulator::match, mask, emulator::to_bits(value)));
}
#define GLOSS_REDUCE(name, operation)                                                                       \
  inline int name(unsigned mask, int value) {                                                               \
    return int(emulator::collective(emulator::operation<int>, mask, uint64_t(int64_t(value))));             \
  }                                                                                                         \
  inline unsigned name(unsigned mask, unsigned value) {                                                     \
    return unsigned(emulator::collective(emulator::operation<unsigned>, mask, value));                      \
  }
GLOSS_REDUCE(__reduce_add_sync, reduce_add)
GLOSS_REDUCE(__reduce_min_sync, reduce_min)
GLOSS_REDUCE(__reduce_max_sync, reduce_max)
GLOSS_REDUCE(__reduce_or_sync, reduce_or)
#undef GLOSS_REDUCE
