"""Heuristics for sigma, the width of the Gaussian weights exp(-|u_i - u_j|^2 / (2 sigma^2)) on unit rows.

All take the embeddings without gradient and return tensors, so that they can run inside a compiled step. ``GLoss``
takes them by name: "root", "mst", "self-tuning".
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
    """sqrt(median distance / 3); distances |u_i - u_j| between unit rows, i != j.

    Args:
        embeddings: [n, d], of which at most 2048 rows are looked at.

    Shapes: [n, d] -> [].

    Raises:
        TypeError, ValueError: embeddings that are no matrix of a floating dtype.

    Source: the published G-Loss code.

    Example:
        >>> import torch
        >>> from gloss_kernels.sigma import sigma_root
        >>> round(float(sigma_root(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))), 3)  # sqrt(sqrt(2) / 3)
        0.687
    """
    d = _distances(_sample(_checks.matrix("embeddings", embeddings)))
    n = d.shape[0]
    if n < 2:
        return d.new_ones(())
    # All but the diagonal: every pair twice, which leaves the median. (triu_indices would fix n in an export.)
    pairs = d.flatten()[1:].view(n - 1, n + 1)[:, :-1]
    return (pairs.median() / 3).sqrt().clamp(min=SMALLEST)


def sigma_mst(embeddings: Tensor, labels: Tensor) -> Tensor:
    """(smallest distance between two documents of different classes) / 3.

    That distance is the first edge of a minimum spanning tree that joins two classes; a third of it leaves the other
    class outside three standard deviations. Where there are not two classes: :func:`sigma_root`.

    Args:
        embeddings: [n, d], of which at most 2048 rows are looked at.
        labels: int64 [n]; documents with label -1 are not looked at.

    Shapes: [n, d], [n] -> [].

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Zhu, Ghahramani, Lafferty 2003; the published G-Loss code, "mst".

    Example:
        >>> import torch
        >>> from gloss_kernels.sigma import sigma_mst
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(sigma_mst(x, torch.tensor([0, 1]))), 3)  # sqrt(2) / 3
        0.471
    """
    _checks.matrix("embeddings", embeddings)
    _checks.integers("labels", labels, (embeddings.shape[0],))
    y = _sample(labels)
    d = _distances(_sample(embeddings))
    between = (y[:, None] != y[None, :]) & (y[:, None] >= 0) & (y[None, :] >= 0)
    smallest = torch.where(between, d, torch.inf).amin() if d.shape[0] > 0 else d.new_full((), torch.inf)
    return torch.where(smallest.isinf(), sigma_root(embeddings), (smallest / 3).clamp(min=SMALLEST))


def sigma_self_tuning(embeddings: Tensor, neighbor: int = 7) -> Tensor:
    """For each document the distance to its ``neighbor``-th nearest one.

    With it W_ij = exp(-|u_i - u_j|^2 / (2 sigma_i sigma_j)): dense regions get narrow, sparse ones wide kernels.
    Mini-batches only (n^2 distances); for a large graph take ``(2 - 2 * topk.values[:, 6]).sqrt()``.

    Args:
        embeddings: [n, d].
        neighbor: at least 1; the last one where there are fewer.

    Shapes: [n, d] -> [n].

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Zelnik-Manor and Perona 2004.

    Example:
        >>> import torch
        >>> from gloss_kernels.sigma import sigma_self_tuning
        >>> sigma_self_tuning(torch.randn(20, 4)).shape
        torch.Size([20])
    """
    _checks.matrix("embeddings", embeddings)
    _checks.whole_number("neighbor", neighbor, 1)
    d = _distances(embeddings)
    n = d.shape[0]
    if n < 2:
        return d.new_ones(n)
    return d.kthvalue(min(neighbor + 1, n), dim=1).values.clamp(min=SMALLEST)  # + 1: the first is itself


def _sample(x: Tensor) -> Tensor:
    return x[:: -(-x.shape[0] // MAX_ROWS)] if x.shape[0] > MAX_ROWS else x


def _distances(embeddings: Tensor) -> Tensor:
    x = embeddings.detach()
    if x.device.type == "cpu":  # on a GPU nobody waits: sigma is NaN
        x = _checks.finite_rows("embeddings", x)
    u = unit_rows(x)
    itself = torch.eye(u.shape[0], dtype=torch.bool, device=u.device)  # fill_diagonal_ would fix the size in an export
    return (2 - 2 * product(u, u.T)).clamp(min=0).sqrt().masked_fill(itself, 0.0)
