"""The dense mini-batch path: G-Loss on an n x n graph, where every document neighbours every other.

Up to Backend.dense_rows documents it is one operator that takes the gradient along in its forward pass. Above it is
plain torch except for the solve: a Cholesky factorisation of the hidden block with an implicit gradient (one more solve
with the same factor).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _ops, reference
from ._backends.protocol import Batch
from ._math import drop_vanishing, one_hot, unit_rows
from ._options import LossOptions, PropagateOptions
from ._product import product
from .propagate import Propagation


def batch_loss(
    embeddings: Tensor,
    labels: Tensor,
    targets: Tensor,
    scored: Tensor,
    sigma: float | Tensor,
    class_weight: Tensor | None,
    options: LossOptions,
    backend: str,
) -> tuple[Tensor, Propagation]:
    """The loss and the Propagation, by one operator; labels [n] with -1 on hidden documents."""
    n, how = embeddings.shape[0], options.propagate
    if isinstance(sigma, Tensor):
        inverse = sigma.to(embeddings.device, torch.float64).reciprocal().expand(n)
    else:
        inverse = torch.full((n,), 1 / sigma, dtype=torch.float64, device=embeddings.device)
    weight = None if class_weight is None else class_weight.to(embeddings.device, torch.float64)
    batch = Batch(
        embeddings, inverse, labels, targets, scored, weight, options.num_classes, how.alpha,
        how.applied_normalization, options.target, reference.SMOOTHING,
    )  # fmt: skip
    loss, f, reachable, row_sum_error, _, _ = _ops.loss.dense_loss(batch, backend)
    return loss, Propagation(f, torch.zeros_like(row_sum_error, dtype=torch.int64), row_sum_error, reachable)


def adjacency(embeddings: Tensor, sigma: float | Tensor) -> Tensor:
    """exp((c_ij - 1) / sigma^2) with a zero diagonal, [n, n]; sigma a number, 0-dim or [n] (then sigma_i sigma_j)."""
    u = unit_rows(embeddings)
    distance = (product(u, u.T) - 1).clamp(max=0)  # rounding may give duplicates a cosine above 1
    if isinstance(sigma, Tensor):
        sigma = sigma.to(u)
        weights = torch.exp(distance / (sigma**2 if sigma.ndim == 0 else sigma[:, None] * sigma[None, :]))
    else:
        weights = torch.exp(distance * (1 / sigma**2))
    return weights.masked_fill(torch.eye(u.shape[0], dtype=torch.bool, device=u.device), 0.0)


def propagate(adjacency: Tensor, labels: Tensor, num_classes: int, options: PropagateOptions) -> Propagation:
    """As propagate_labels, for a dense symmetric graph [n, n]."""
    labeled, alpha = (labels >= 0) & (labels < num_classes), options.alpha
    boundary = one_hot(labels, num_classes, adjacency.dtype)
    m = reference.normalize(drop_vanishing(adjacency), options.applied_normalization)
    f, _, reachable, row_sum_error = _ops.loss.dense_propagate(m, labeled, boundary, -1.0 if alpha is None else alpha)
    f = f.to(adjacency.dtype)
    if alpha is not None:
        total = f.sum(dim=1, keepdim=True)
        f = torch.where(total > 0, f / torch.where(total > 0, total, 1.0), 1 / num_classes)
    return Propagation(f, torch.zeros_like(row_sum_error, dtype=torch.int64), row_sum_error, reachable)
