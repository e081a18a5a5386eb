"""The dense mini-batch path: G-Loss on an n x n graph, where every document neighbours every other.

Up to Backend.dense_rows documents it is one operator that takes the gradient along in its forward pass. Above it is
plain torch except for the solve: an elimination of the hidden block (_elimination.py) with an implicit gradient (one
more solve with the same factor). Weights are float64 whatever the embeddings are: small sigma take them below float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _ops, reference
from ._backends.protocol import Batch
from ._math import gaussian, one_hot, unit_rows
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
    """exp((c_ij - 1) / sigma^2) with a zero diagonal, float64 [n, n]; sigma a number, 0-dim or one a row."""
    u = unit_rows(embeddings)
    distance = (product(u, u.T).double() - 1).clamp(max=0)  # rounding may give duplicates a cosine above 1
    if isinstance(sigma, Tensor):
        sigma = sigma.to(distance)
        exponent = distance / (sigma**2 if sigma.ndim == 0 else sigma[:, None] * sigma[None, :])
    else:
        exponent = distance * (1 / sigma**2)
    return gaussian(exponent).masked_fill(torch.eye(u.shape[0], dtype=torch.bool, device=u.device), 0.0)


def propagate(
    adjacency: Tensor, labels: Tensor, num_classes: int, options: PropagateOptions, dtype: torch.dtype
) -> Propagation:
    """As propagate_labels, for a dense symmetric graph [n, n] in float64; probabilities of dtype."""
    labeled, alpha = (labels >= 0) & (labels < num_classes), options.alpha
    boundary = one_hot(labels, num_classes, adjacency.dtype)
    m = reference.normalize(adjacency, options.applied_normalization)
    if alpha is None:
        f, _, reachable, row_sum_error = _ops.loss.dense_propagate(m, labeled, boundary, -1.0, None)
    else:
        degree = adjacency.detach().sum(dim=1)
        root = torch.where(degree > 0, degree, 1 / (1 - alpha)).sqrt()  # a labelled document by itself: F = Y
        f, _, reachable, row_sum_error = _ops.loss.dense_propagate(m, labeled, boundary, alpha, root)
        total = f.sum(dim=1, keepdim=True)
        f = torch.where(total > 0, f / torch.where(total > 0, total, 1.0), 1 / num_classes)
    f = f.to(dtype)
    return Propagation(f, torch.zeros_like(row_sum_error, dtype=torch.int64), row_sum_error, reachable)
