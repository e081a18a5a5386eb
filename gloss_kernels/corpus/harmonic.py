"""The harmonic solution of a batch whose outer neighbours have labels: small, dense, float64, implicit gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._derivatives import refuse_transforms
from .._math import cholesky, reachable_rows


def harmonic(edges: Tensor, to_labels: Tensor) -> tuple[Tensor, Tensor]:
    """F = (D - A)^-1 B [b, C] and reachable bool [b].

    edges A [b, b] symmetric, >= 0, diagonal 0; to_labels B [b, C] >= 0: the weights of each row to labelled documents,
    summed by class; D = diag(A 1 + B 1). Equivalent torch::

        F = torch.linalg.solve(torch.diag(A.sum(1) + B.sum(1)) - A, B)

    The reference for a graph that has the labelled documents as nodes is reference.propagate_labels: they are folded
    into B. Rows that reach no label are uniform, with gradient zero.
    """
    refuse_transforms("CorpusGLoss", edges, to_labels, remedy="torch.autograd.grad has every order")
    f, reachable = _Harmonic.apply(edges, to_labels)  # type: ignore[no-untyped-call]
    return f, reachable


class _Harmonic(torch.autograd.Function):
    # With X = D - A, F = X^-1 B and Lam = X^-1 dL/dF (X is symmetric):
    #   dL/dB_ic = Lam_ic - t_i,  dL/dA_ij = Lam_i . F_j - t_i  (entries independent),  t_i = Lam_i . F_i
    # Solved with r = D^-1/2, for a unit diagonal: (I - r A r) (F / r) = r B.
    @staticmethod
    def forward(ctx: Any, edges: Tensor, to_labels: Tensor) -> tuple[Tensor, Tensor]:
        own = to_labels.sum(dim=1)
        reachable = reachable_rows(edges, own > 0)
        degree = edges.sum(dim=1) + own
        scale = torch.where(reachable, torch.where(reachable, degree, 1.0).rsqrt(), 0.0)[:, None]
        system = -(scale * edges * scale.T)
        system.diagonal().add_(1)
        lower = cholesky(system)
        f = (scale * torch.cholesky_solve(scale * to_labels, lower)).clamp(min=0)
        # Rows sum to 1. Where a tight group hangs on the labels by a weight beyond float64, the solution has the right
        # proportions only, and (the system is singular then) too small a gradient.
        total = f.sum(dim=1, keepdim=True)
        f = torch.where(total > 0, f / torch.where(total > 0, total, 1.0), 1 / to_labels.shape[1])
        ctx.save_for_backward(edges, to_labels, reachable, scale, lower, f)
        ctx.mark_non_differentiable(reachable)
        return f, reachable

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        edges, to_labels, reachable, scale, lower, f = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: a gradient that has one itself
            wanted = [x for x in (edges, to_labels) if x.requires_grad]
            found = iter(torch.autograd.grad(_solved(edges, to_labels, reachable), wanted, grad, create_graph=True))
            return tuple(next(found) if x.requires_grad else None for x in (edges, to_labels))
        lam = scale * torch.cholesky_solve(scale * grad, lower)
        t = (lam * f).sum(dim=1, keepdim=True)
        return lam @ f.T - t, lam - t


def _solved(edges: Tensor, to_labels: Tensor, reachable: Tensor) -> Tensor:
    """F by operations that autograd goes through, as often as it likes."""
    f = torch.full_like(to_labels, 1 / to_labels.shape[1])
    edges, to_labels = edges[reachable][:, reachable], to_labels[reachable]
    scale = (edges.sum(dim=1) + to_labels.sum(dim=1)).rsqrt()[:, None]
    system = torch.eye(len(scale), dtype=edges.dtype, device=edges.device) - scale * edges * scale.T
    return f.index_put((reachable,), scale * torch.linalg.solve(system, scale * to_labels))
