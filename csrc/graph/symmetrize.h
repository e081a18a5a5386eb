// How the directed weights of a pair of documents become one edge, for C++ and CUDA. A new way is a name in the table and
// a line in each of these functions (the compiler warns of one that lacks it), and the same in gloss_kernels/reference.py
// and gloss_kernels/_backends/triton/symmetrize.py.
#pragma once
#include <cmath>
#include <cstdint>

#include "options.h"

namespace gloss {

enum class Symmetrize : int32_t { none, sum, larger, smaller };
inline constexpr const char* kSymmetrizeNames[] = {"none", "sum", "union", "mutual"};

// Whether (i, j) is an entry of the graph where i has j as a neighbour (`forward`) or j has i (`reverse`).
GLOSS_HOST_DEVICE inline bool is_edge(Symmetrize how, bool forward, bool reverse) {
  switch (how) {
    case Symmetrize::none: return forward;
    case Symmetrize::sum:
    case Symmetrize::larger: return forward || reverse;
    case Symmetrize::smaller: return forward && reverse;
  }
  return false;
}

// The weight of entry (i, j) from those of i -> j and j -> i, 0 where there is none.
template <class T>
GLOSS_HOST_DEVICE inline T combine(Symmetrize how, T forward, T reverse) {
  switch (how) {
    case Symmetrize::none: return forward;
    case Symmetrize::sum: return forward + reverse;
    case Symmetrize::larger: return forward < reverse ? reverse : forward;
    case Symmetrize::smaller: return reverse < forward ? reverse : forward;
  }
  return T(NAN);
}

// The share of an entry's gradient that weight `own` receives, `other` being the one of the opposite direction. Ties of
// larger and smaller give half to each, as torch.maximum does.
template <class T>
GLOSS_HOST_DEVICE inline T share(Symmetrize how, T own, T other) {
  switch (how) {
    case Symmetrize::none:
    case Symmetrize::sum: return T(1);
    case Symmetrize::larger: return own == other ? T(0.5) : T(own > other);
    case Symmetrize::smaller: return own == other ? T(0.5) : T(own < other);
  }
  return T(NAN);
}

}  // namespace gloss
