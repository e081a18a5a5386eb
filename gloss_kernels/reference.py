"""G-Loss in short, dense torch: the truth that every backend is compared with, in float64.

The functions carry the names of the public ones and take tensors; nothing here is tuned, everything is differentiable
by plain autograd. Memory and time are O(n^2) and O(n^3). ``backend="reference"`` runs this file. The two tables, of
symmetrisations and of targets, are also where the names of these options come from, and what torch code elsewhere uses.

Sources: G-Loss (arXiv 2604.25853); harmonic label propagation (Zhu, Ghahramani, Lafferty 2003); label spreading
(Zhou et al. 2004).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._elimination import eliminated
from ._math import gaussian, power, shortest_with_gradient


def unit_rows(x: Tensor) -> Tensor:
    """Rows of x divided by their length, in float64; a zero row stays zero (and its gradient is zero). [n, d]"""
    shortest = shortest_with_gradient(x.dtype)
    x = x.double()
    largest = x.detach().abs().amax(dim=1, keepdim=True)  # first to size 1, so that squares neither vanish nor overflow
    x = torch.where(largest >= shortest, x, x.detach())
    x = x / torch.where(largest > 0, largest, 1.0)
    squared = (x * x).sum(dim=1, keepdim=True)
    return torch.where(squared > 0, x / torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)


def cosine(queries: Tensor, corpus: Tensor | None = None) -> Tensor:
    """All cosines c_ij = u_i . u_j, [n, m]."""
    u = unit_rows(queries)
    return u @ (u if corpus is None else unit_rows(corpus)).T


def cosine_topk(queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
    """The k largest cosines per row, by (value descending, index ascending): values float64 and indices, [n, k]."""
    c = cosine(queries, corpus)
    if exclude_self:
        c = c.masked_fill(torch.eye(*c.shape, dtype=torch.bool, device=c.device), -torch.inf)
    values, indices = c.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def gaussian_weights(cosines: Tensor, sigma: Tensor | float) -> Tensor:
    """exp(-|u_i - u_j|^2 / (2 sigma^2)) = exp((c_ij - 1) / sigma^2) for unit rows (paper, eq. 1)."""
    return gaussian((cosines.double() - 1) / torch.as_tensor(sigma, dtype=torch.float64, device=cosines.device) ** 2)


class Symmetrization(NamedTuple):
    """How the directed weights of a pair become one edge (C++ and CUDA: csrc/graph/symmetrize.h)."""

    is_edge: Callable[[Tensor, Tensor], Tensor]  # from whether i has j, and j has i, as a neighbour
    combine: Callable[[Tensor, Tensor], Tensor]  # the weight of (i, j) from those of i -> j and j -> i, 0 for none
    most_entries: int  # of the graph, as a multiple of n * k


SYMMETRIZE = {
    "none": Symmetrization(lambda forward, reverse: forward, lambda a, b: a, 1),
    "sum": Symmetrization(torch.logical_or, torch.add, 2),
    "union": Symmetrization(torch.logical_or, torch.maximum, 2),
    "mutual": Symmetrization(torch.logical_and, torch.minimum, 1),
}


def symmetrize(weights: Tensor, how: str | None) -> Tensor:
    """A from directed weights W [n, n]: W + W^T, max, min, or (None) W itself."""
    return SYMMETRIZE[how or "none"].combine(weights, weights.T)


def adjacency(embeddings: Tensor, n_neighbors: int | None, sigma: Tensor | float, how: str | None = "sum") -> Tensor:
    """Dense Gaussian graph [n, n] without self edges; every pair is joined where n_neighbors is None."""
    n = len(embeddings)
    c = cosine(embeddings)
    edge = ~torch.eye(n, dtype=torch.bool, device=c.device)
    if n_neighbors is not None and n_neighbors < n - 1:
        _, indices = cosine_topk(embeddings, None, n_neighbors, True)
        edge = torch.zeros_like(edge).scatter_(1, indices, True)
    return symmetrize(gaussian_weights(c, sigma) * edge, how)


def normalize(adjacency: Tensor, how: str) -> Tensor:
    """M_ij = A_ij s_i s_j, the symmetric matrix whose row-normalised form is the transition matrix. With d = A 1:

    row: s = 1, T = D^-1 A (paper, eq. 3). symmetric: s = d^-1/2. published: s = 1 / (A d^-1/2), what the published code
    computes as three normalisations, symmetric, by columns, and by rows.
    """
    if how == "row":
        return adjacency
    s = power(adjacency.sum(dim=1), -0.5)
    if how == "published":
        s = power((adjacency * s).sum(dim=1), -1.0)
    return s[:, None] * adjacency * s[None, :]


def reachable_rows(adjacency: Tensor, labeled: Tensor) -> Tensor:
    """bool [n]: rows joined to a labelled row by a path of positive weights."""
    reached = labeled.clone()
    while True:
        grown = reached | ((adjacency > 0)[:, reached].any(dim=1))
        if bool((grown == reached).all()):
            return reached
        reached = grown


def solve(
    m: Tensor, labeled: Tensor, y: Tensor, prior: Tensor, alpha: float | None, prior_strength: float
) -> tuple[Tensor, Tensor]:
    """F [n, C] and reachable [n] on a normalised graph M [n, n]; y [n, C] is one-hot on labelled rows and 0 elsewhere.

    Harmonic (alpha None): (D_UU (1 + eps) - M_UU) F_U = M_UL Y_L + eps D_U prior; rows without a label are the prior.
    Spreading: (1 - alpha) (I - alpha M)^-1 Y, which rows that reach no label leave 0.
    """
    reachable = reachable_rows(m.detach(), labeled)
    m = m.masked_fill(torch.eye(len(m), dtype=torch.bool, device=m.device), 0.0)
    if alpha is not None:
        identity = torch.eye(len(m), dtype=m.dtype, device=m.device)
        return (1 - alpha) * torch.linalg.solve(identity - alpha * m, y), reachable
    f = prior.expand(len(m), y.shape[1]).clone()
    hidden = reachable & ~labeled
    among, to_labels = m[hidden][:, hidden], m[hidden][:, labeled]
    right, excess = to_labels @ y[labeled], to_labels.sum(dim=1)
    if prior_strength:
        pull = prior_strength * (among.sum(dim=1) + excess)
        right, excess = right + pull[:, None] * prior, excess + pull
    f[hidden] = eliminated(among, excess, right)
    f[labeled] = y[labeled]
    return f, reachable


def spread(a: Tensor, labeled: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """(1 - alpha) (I - alpha M)^-1 Y of M = D^-1/2 A D^-1/2, by G = D^-1/2 F: (D - alpha A) G = (1 - alpha) D^1/2 Y."""
    reachable = reachable_rows(a.detach(), labeled)
    d = a.sum(dim=1)[reachable]
    alone = d == 0  # a labelled document
    root = torch.where(alone, 1.0, torch.where(alone, 1.0, d).sqrt())[:, None]
    excess = torch.where(alone, 1.0, (1 - alpha) * d)
    g = eliminated(alpha * a[reachable][:, reachable], excess, (1 - alpha) * root * y[reachable])
    return torch.zeros_like(y).index_put((reachable,), root * g), reachable


def propagate_labels(
    adjacency: Tensor,
    labels: Tensor,
    num_classes: int,
    alpha: float | None = None,
    normalization: str = "row",
    prior_strength: float = 0.0,
    prior: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Probabilities [n, C] and reachable [n] of a dense symmetric graph; labels int64 [n], -1 is unlabelled.

    The solution of :func:`solve` on the normalised graph; of spreading, rows are scaled to sum 1. Rows that reach no
    label are the prior (uniform unless given).
    """
    a = adjacency.double()
    labeled = labels >= 0
    y = torch.nn.functional.one_hot(labels.clamp(min=0), num_classes).double() * labeled[:, None]
    prior = a.new_full((num_classes,), 1 / num_classes) if prior is None else prior.double()
    if alpha is None:
        return solve(normalize(a, normalization), labeled, y, prior, None, prior_strength)
    f, reachable = spread(a, labeled, y, alpha)
    f = torch.where(reachable[:, None], f / torch.where(reachable[:, None], f.sum(dim=1, keepdim=True), 1.0), prior)
    return f, reachable


def _nll(p: Tensor, p_y: Tensor, smoothing: float) -> Tensor:
    return -torch.log((1 - smoothing) * p_y.clamp(min=0) + smoothing / p.shape[1])  # a solve to tol may give -1e-6


def _published(p: Tensor, p_y: Tensor, smoothing: float) -> Tensor:
    return torch.logsumexp(p, dim=1) - p_y


# The loss of each document [n] from p [n, C] and the p_y [n] of its class (C++ and CUDA: csrc/loss/target.h).
#   nll: -log((1 - s) p_y + s / C). published: cross_entropy with the probabilities used as logits (the published code).
TARGETS = {"nll": _nll, "published": _published}
SMOOTHING = 0.01  # s of "nll": keeps -log finite where no label of the true class arrives


def loss_on_hidden(
    probabilities: Tensor, labels: Tensor, hidden: Tensor, target: str, class_weight: Tensor | None = None
) -> Tensor:
    """Weighted mean over the hidden documents; a zero that keeps the graph where there is none."""
    p, y = probabilities, labels.clamp(0, probabilities.shape[1] - 1)
    each = TARGETS[target](p, p.gather(1, y[:, None]).squeeze(1), SMOOTHING)
    weight = hidden.to(p.dtype) if class_weight is None else hidden * class_weight.to(p)[y]
    total = weight.sum()
    return (weight * each).sum() / torch.where(total > 0, total, 1.0)
