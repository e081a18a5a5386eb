"""The harmonic solution of a batch whose outer neighbours have labels: small, dense, float64, implicit gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._derivatives import refuse_transforms
from .._elimination import edge_gradient, eliminated, factor, solve
from .._math import reachable_rows


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
    #   dL/dB_ic = Lam_ic - Lam_i . F_i,  dL/dA_ij = -(Lam_i - Lam_j) . (F_i - F_j) / 2
    @staticmethod
    def forward(ctx: Any, edges: Tensor, to_labels: Tensor) -> tuple[Tensor, Tensor]:
        own = to_labels.sum(dim=1)
        reachable = reachable_rows(edges, own > 0)
        # Rows that reach no label are joined to no other: with an excess of 1 and nothing on the right they stay 0.
        factored = factor(edges, torch.where(reachable, own, 1.0))
        f = torch.where(reachable[:, None], solve(factored, to_labels), 1 / to_labels.shape[1])
        ctx.save_for_backward(edges, to_labels, reachable, factored, f)
        ctx.mark_non_differentiable(reachable)
        return f, reachable

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        edges, to_labels, reachable, factored, f = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: a gradient that has one itself
            wanted = [x for x in (edges, to_labels) if x.requires_grad]
            found = iter(torch.autograd.grad(_solved(edges, to_labels, reachable), wanted, grad, create_graph=True))
            return tuple(next(found) if x.requires_grad else None for x in (edges, to_labels))
        lam = solve(factored, grad * reachable[:, None])
        return edge_gradient(lam, f) / 2, lam - (lam * f).sum(dim=1, keepdim=True)


def _solved(edges: Tensor, to_labels: Tensor, reachable: Tensor) -> Tensor:
    """F by a function that has derivatives as often as one likes."""
    f = torch.full_like(to_labels, 1 / to_labels.shape[1])
    edges, to_labels = edges[reachable][:, reachable], to_labels[reachable]
    return f.index_put((reachable,), eliminated(edges, to_labels.sum(dim=1), to_labels))
