"""Heuristics for sigma, the width of the Gaussian weights exp(-|u_i - u_j|^2 / (2 sigma^2)) on unit rows.

All take the embeddings without gradient and return tensors, so that they can run inside a compiled step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._math import unit_rows
from ._product import product

HEURISTICS = ("root", "mst", "self-tuning")
SMALLEST = 0.01  # duplicates have distance 0; a smaller sigma would turn every weight but theirs into 0
MAX_ROWS = 2048  # rows looked at, evenly spaced: the pairwise distances of more would not fit a laptop


def estimate_sigma(how: str, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
    """sigma by name: "root", "mst" (needs labels) or "self-tuning" (one for each document)."""
    _checks.choice("sigma", how, HEURISTICS)
    if how == "root":
        return sigma_root(embeddings)
    if how == "self-tuning":
        return sigma_self_tuning(embeddings)
    if labels is None:
        raise ValueError("labels must be given for sigma='mst', got None")
    return sigma_mst(embeddings, labels)


def sigma_root(embeddings: Tensor) -> Tensor:
    """sqrt(median distance / 3), 0-dim; distances |u_i - u_j| between unit rows, i != j (published G-Loss code)."""
    d = _distances(_sample(_checks.matrix("embeddings", embeddings)))
    upper = torch.triu_indices(len(d), len(d), offset=1, device=d.device)
    pairs = d[upper[0], upper[1]]
    if len(pairs) == 0:
        return d.new_ones(())
    return (pairs.median() / 3).sqrt().clamp(min=SMALLEST)


def sigma_mst(embeddings: Tensor, labels: Tensor) -> Tensor:
    """(smallest distance between two documents of different classes) / 3, 0-dim (published G-Loss code, "mst").

    That distance is the first edge of a minimum spanning tree that joins two classes; a third of it leaves the other
    class outside three standard deviations (Zhu, Ghahramani, Lafferty 2003). Documents with label -1 are not looked
    at. Where there are not two classes: :func:`sigma_root`.
    """
    _checks.matrix("embeddings", embeddings)
    _checks.integers("labels", labels, (len(embeddings),))
    y = _sample(labels)
    d = _distances(_sample(embeddings))
    between = (y[:, None] != y[None, :]) & (y[:, None] >= 0) & (y[None, :] >= 0)
    smallest = torch.where(between, d, torch.inf).amin() if len(d) else d.new_full((), torch.inf)
    return torch.where(smallest.isinf(), sigma_root(embeddings), (smallest / 3).clamp(min=SMALLEST))


def sigma_self_tuning(embeddings: Tensor, neighbor: int = 7) -> Tensor:
    """For each document the distance to its ``neighbor``-th nearest one, [n] (Zelnik-Manor and Perona 2004).

    With it W_ij = exp(-|u_i - u_j|^2 / (2 sigma_i sigma_j)): dense regions get narrow, sparse ones wide kernels.
    Mini-batches only (n^2 distances); for a large graph take ``(2 - 2 * topk.values[:, 6]).sqrt()``.
    """
    _checks.matrix("embeddings", embeddings)
    _checks.whole_number("neighbor", neighbor, 1)
    d = _distances(embeddings)
    n = len(d)
    if n < 2:
        return d.new_ones(n)
    return d.kthvalue(min(neighbor + 1, n), dim=1).values.clamp(min=SMALLEST)  # + 1: the first is itself


def _sample(x: Tensor) -> Tensor:
    return x[:: -(-len(x) // MAX_ROWS)] if len(x) > MAX_ROWS else x


def _distances(embeddings: Tensor) -> Tensor:
    u = unit_rows(embeddings.detach())
    return (2 - 2 * product(u, u.T)).clamp(min=0).sqrt().fill_diagonal_(0)
