"""Small mathematics in plain torch that several stages share."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_EXPONENT = -690.0  # of a weight: exp(-690) = 2e-300 (csrc/loss/kernels.h)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of results: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def finest_tol(values: Tensor) -> float:
    """float32 cannot hold a solution to much less than 1e-6; asking for more only costs iterations."""
    return 1e-14 if values.dtype == torch.float64 else 2e-6


def unit_rows(x: Tensor) -> Tensor:
    """x / |x| per row in float32 (float64 for float64); a zero row stays zero, with gradient zero. [n, d]"""
    x = x if x.dtype == torch.float64 else x.float()
    largest = x.detach().abs().amax(dim=1, keepdim=True)  # first to size 1, so that squares neither vanish nor overflow
    x = torch.where(largest >= shortest_with_gradient(x.dtype), x, x.detach())
    x = x / torch.where(largest > 0, largest, 1.0)
    squared = (x * x).sum(dim=1, keepdim=True)
    return torch.where(squared > 0, x / torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)


def shortest_with_gradient(dtype: torch.dtype) -> float:
    """Of rows of this dtype: the gradient grows as 1 / |x|, it must not overflow (csrc/options.h)."""
    return 1e-280 if dtype == torch.float64 else 1e-32


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** -1/2 or x ** -1, and 0 with gradient 0 where x is 0: a node without weight.

    By roots: the derivative -x^-3/2 / 2 by itself overflows below 1e-205, its product with the gradient need not.
    """
    root = 1 / torch.where(x > 0, x, 1.0).sqrt()
    return torch.where(x > 0, root if exponent == -0.5 else root * root, 0.0)


def gaussian(exponent: Tensor) -> Tensor:
    """The weight exp(x) of an edge, x <= 0 float64, and 0, no edge, from x = -690 on: the inverse of a weight, and of a
    sum of products with one, is to be a float64."""
    return torch.where(exponent > SMALLEST_EXPONENT, exponent.exp(), 0.0)


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """[n, C]; a row of zeros for what is no class. (torch's one_hot makes int64 first: eight times the traffic.)"""
    zeros = torch.zeros(labels.shape[0], num_classes, dtype=dtype, device=labels.device)
    known = (labels >= 0) & (labels < num_classes)
    return zeros.scatter_(1, torch.where(known, labels, 0)[:, None], known.to(dtype)[:, None])


def drop_vanishing(weights: Tensor) -> Tensor:
    """Weights under 1e-32 (float64: 1e-280) become 0, no edge: dL/dweight grows as 1 / degree, it must not overflow."""
    return torch.where(weights >= (1e-280 if weights.dtype == torch.float64 else 1e-32), weights, 0.0)


def reachable_rows(m: Tensor, fixed: Tensor) -> Tensor:
    """bool [n]: the rows of a graph [n, n] that a path of positive weights joins to a fixed one."""
    joined = (m > 0).double()
    reached = fixed | (joined @ fixed.double() > 0)
    while not bool(reached.all()):
        grown = reached | (joined @ reached.double() > 0)
        if bool((grown == reached).all()):
            break
        reached = grown
    return reached
