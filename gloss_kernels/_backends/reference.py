"""backend="reference": the formulas of gloss_kernels/reference.py, float64 on dense matrices, torch operations all."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _checks, reference
from .._math import compute_dtype, gaussian
from .protocol import Batch, BatchLoss, Combination, Edges, Search, Solution, Structure, System

dense_rows = math.inf  # of dense_loss


def cosine_topk(search: Search) -> tuple[Tensor, Tensor]:
    queries = _checks.finite_rows("queries", search.queries)
    corpus = None if search.corpus is None else _checks.finite_rows("corpus", search.corpus)
    values, indices = reference.cosine_topk(queries, corpus, search.k, search.exclude_self)
    return values.to(compute_dtype(search.queries)), indices.contiguous()


def knn_structure(indices: Tensor, symmetrize: str, capacity: int) -> Structure:
    n, k = indices.shape
    places = torch.arange(n * k, dtype=torch.int64, device=indices.device).view(n, k)
    inside = bool(((indices >= 0) & (indices < n)).all())
    forward = torch.full((n, n), -1, device=indices.device, dtype=torch.int64)
    if inside:
        forward.scatter_(1, indices, places)
    if not inside or int((forward >= 0).sum()) != n * k or bool((forward.diagonal() >= 0).any()):
        raise ValueError(f"indices must be other rows in 0..{n - 1}, without repeats per row")
    edge = reference.SYMMETRIZE[symmetrize].is_edge(forward >= 0, forward.T >= 0)
    row, col = edge.nonzero(as_tuple=True)
    crow = pad(edge.sum(dim=1).cumsum(0), (1, 0))
    padding = (0, capacity - len(col))
    return Structure(crow, pad(col, padding), *(pad(x[row, col], padding, value=-1) for x in (forward, forward.T)))


def combine_edges(combination: Combination) -> Tensor:
    flat = combination.weights.flatten()
    sides = (torch.where(at >= 0, flat[at.clamp(min=0)], 0.0) for at in (combination.forward, combination.reverse))
    return reference.SYMMETRIZE[combination.symmetrize].combine(*sides)


def normalize_edges(edges: Edges, normalization: str) -> Tensor:
    row, col = _places(edges)
    values = reference.normalize(_undirected(edges), normalization)[row, col].to(edges.values.dtype)
    return pad(values, (0, len(edges.values) - len(row)))


def propagate(system: System, boundary: Tensor, has_initial: bool, tol: float) -> Solution:
    y, prior = boundary.double() * system.fixed[:, None], system.prior.double()
    f, reachable = reference.solve(
        _undirected(system.edges), system.fixed, y, prior, system.alpha, system.prior_strength
    )
    zero = torch.zeros((), dtype=torch.float64, device=f.device)
    return Solution(f.to(boundary.dtype), zero.long(), zero.expand(f.shape[1]), reachable, zero + tol)


def dense_loss(batch: Batch, want_gradient: bool) -> BatchLoss:
    embeddings = _checks.finite_rows("embeddings", batch.embeddings)
    exponent = (reference.cosine(embeddings) - 1) * batch.inverse_sigma[:, None] * batch.inverse_sigma[None, :]
    itself = torch.eye(len(exponent), dtype=torch.bool, device=exponent.device)
    a = gaussian(exponent.masked_fill(itself, -torch.inf))
    f, reachable = reference.propagate_labels(a, batch.labels, batch.num_classes, batch.alpha, batch.normalization)
    loss = reference.loss_on_hidden(f, batch.targets, batch.scored, batch.target, batch.class_weight)
    dtype, zero = compute_dtype(batch.embeddings), f.new_zeros(())
    none = f.new_empty(0)  # autograd has the gradients
    return BatchLoss(loss.to(dtype), f.to(dtype), reachable, zero, none, none)


def _undirected(edges: Edges) -> Tensor:
    """[n, n] float64. Both entries of an undirected weight get half of its gradient, as from the kernels."""
    n = len(edges.crow) - 1
    row, col = _places(edges)
    dense = torch.zeros(n, n, dtype=torch.float64, device=edges.values.device)
    dense = dense.index_put((row, col), edges.values[: len(row)].double())
    return (dense + dense.T) / 2


def _places(edges: Edges) -> tuple[Tensor, Tensor]:
    """Row and column of every entry; padding past crow[n] is left out."""
    rows = torch.arange(len(edges.crow) - 1, dtype=torch.int64, device=edges.crow.device)
    row = rows.repeat_interleave(edges.crow.diff())
    return row, edges.col[: len(row)]
