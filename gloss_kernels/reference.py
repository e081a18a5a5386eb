"""G-Loss in short, dense, float64 torch: the truth that every backend is compared with.

The functions carry the names of the public ones and take tensors; nothing here is tuned, everything is
differentiable by plain autograd. Memory and time are O(n^2) and O(n^3). ``backend="reference"`` runs this file.

Sources: G-Loss (arXiv 2604.25853); harmonic label propagation (Zhu, Ghahramani, Lafferty 2003); label spreading
(Zhou et al. 2004).
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(x: Tensor) -> Tensor:
    """Rows of x divided by their length, in float64; a zero row stays zero (and its gradient is zero). [n, d]"""
    x = x.double()
    largest = x.detach().abs().amax(dim=1, keepdim=True)  # first to size 1, so that squares neither vanish nor overflow
    x = x / torch.where(largest > 0, largest, 1.0)
    squared = (x * x).sum(dim=1, keepdim=True)
    return torch.where(squared > 0, x / torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)


def cosine(queries: Tensor, corpus: Tensor | None = None) -> Tensor:
    """All cosines c_ij = u_i . u_j, [n, m]."""
    u = unit_rows(queries)
    return u @ (u if corpus is None else unit_rows(corpus)).T


def cosine_topk(queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
    """The k largest cosines a row, by (value descending, index ascending): values float64 and indices, [n, k]."""
    c = cosine(queries, corpus)
    if exclude_self:
        c = c.masked_fill(torch.eye(*c.shape, dtype=torch.bool, device=c.device), -torch.inf)
    values, indices = c.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def gaussian_weights(cosines: Tensor, sigma: Tensor | float) -> Tensor:
    """exp(-|u_i - u_j|^2 / (2 sigma^2)) = exp((c_ij - 1) / sigma^2) for unit rows (paper, eq. 1)."""
    return torch.exp((cosines.double() - 1) / torch.as_tensor(sigma, dtype=torch.float64, device=cosines.device) ** 2)


def symmetrize(weights: Tensor, how: str | None) -> Tensor:
    """A from directed weights W [n, n]: W + W^T, max, min, or W itself."""
    if how == "sum":
        return weights + weights.T
    if how == "union":
        return torch.maximum(weights, weights.T)
    if how == "mutual":
        return torch.minimum(weights, weights.T)
    return weights


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
    """The symmetric matrix M whose row-normalised form is the transition matrix.

    row: M = A, T = D^-1 A (paper, eq. 3). symmetric: S = D^-1/2 A D^-1/2. paper: what the published code computes,
    S normalised by columns, then by rows: with c = S 1, M_ij = S_ij / (c_i c_j).
    """
    if how == "row":
        return adjacency
    s = _divide(adjacency, adjacency.sum(dim=1), 0.5)
    return s if how == "symmetric" else _divide(s, s.sum(dim=1), 1.0)


def _divide(matrix: Tensor, by: Tensor, exponent: float) -> Tensor:
    """matrix_ij / (by_i by_j)^exponent; a node with by = 0 has only zeros, and keeps them."""
    inverse = torch.where(by > 0, torch.where(by > 0, by, 1.0) ** -exponent, 0.0)
    return inverse[:, None] * matrix * inverse[None, :]


def reachable_rows(adjacency: Tensor, labeled: Tensor) -> Tensor:
    """bool [n]: rows joined to a labelled row by a path of positive weights."""
    reached = labeled.clone()
    while True:
        grown = reached | ((adjacency > 0)[:, reached].any(dim=1))
        if bool((grown == reached).all()):
            return reached
        reached = grown


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

    Harmonic (alpha None): (D_UU (1 + eps) - M_UU) F_U = M_UL Y_L + eps D_U prior. Spreading: rows of
    (1 - alpha) (I - alpha S)^-1 Y scaled to sum 1. Unreachable rows are the prior (uniform unless given).
    """
    a = adjacency.double()
    labeled = labels >= 0
    y = torch.nn.functional.one_hot(labels.clamp(min=0), num_classes).double() * labeled[:, None]
    prior = a.new_full((num_classes,), 1 / num_classes) if prior is None else prior.double()
    reachable = reachable_rows(a.detach(), labeled)
    f = prior.expand(len(a), num_classes).clone()
    if alpha is not None:
        m = normalize(a, "symmetric")[reachable][:, reachable]
        identity = torch.eye(len(m), dtype=m.dtype, device=m.device)
        solution = (1 - alpha) * torch.linalg.solve(identity - alpha * m, y[reachable])
        f[reachable] = solution / solution.sum(dim=1, keepdim=True)
        return f, reachable
    m = normalize(a, normalization)
    d = m.sum(dim=1)
    hidden = reachable & ~labeled
    right = m[hidden][:, labeled] @ y[labeled] + prior_strength * d[hidden, None] * prior
    scale = (
        d[hidden, None] * (1 + prior_strength)
    ).rsqrt()  # a unit diagonal: weights may differ by many powers of ten
    system = torch.eye(len(scale), dtype=m.dtype, device=m.device) - scale * m[hidden][:, hidden] * scale.T
    f[hidden] = scale * torch.linalg.solve(system, scale * right)
    f[labeled] = y[labeled]
    return f, reachable


def loss_on_hidden(
    probabilities: Tensor,
    labels: Tensor,
    hidden: Tensor,
    target: str = "nll",
    class_weight: Tensor | None = None,
    smoothing: float = 0.01,
) -> Tensor:
    """Weighted mean over the hidden documents; a zero that keeps the graph where there is none.

    nll: -log((1 - s) p_y + s / C). paper: cross_entropy with the probabilities used as logits (the published code).
    """
    p = probabilities.double()
    y = labels.clamp(min=0)
    p_y = p.gather(1, y[:, None]).squeeze(1)
    if target == "nll":
        each = -torch.log((1 - smoothing) * p_y + smoothing / p.shape[1])
    else:
        each = torch.logsumexp(p, dim=1) - p_y
    weight = hidden.double() if class_weight is None else hidden * class_weight.double()[y]
    total = weight.sum()
    return (weight * each).sum() / torch.where(total > 0, total, 1.0)
