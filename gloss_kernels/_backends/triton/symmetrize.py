"""How the directed weights of a pair become one edge (csrc/graph/symmetrize.h, reference.SYMMETRIZE)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def combine(forward, reverse, HOW: tl.constexpr):
    """The weight of (i, j) from those of i -> j and j -> i, 0 where there is none."""
    tl.static_assert((HOW == "none") | (HOW == "sum") | (HOW == "union") | (HOW == "mutual"))
    if HOW == "none":
        return forward
    elif HOW == "sum":
        return forward + reverse
    elif HOW == "union":
        return tl.maximum(forward, reverse)
    else:
        return tl.minimum(forward, reverse)


@triton.jit
def share(own, other, HOW: tl.constexpr):
    """Of an entry's gradient that the weight ``own`` receives; ties of union and mutual give half to each."""
    if (HOW == "none") | (HOW == "sum"):
        return own * 0 + 1
    elif HOW == "union":
        return tl.where(own == other, 0.5, tl.where(own > other, 1.0, 0.0)).to(own.dtype)
    else:
        return tl.where(own == other, 0.5, tl.where(own < other, 1.0, 0.0)).to(own.dtype)
