"""Operators of stage loss: the loss of a dense mini-batch in one, and the dense solve of larger batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks, _derivatives, _elimination
from .._backends.protocol import Batch, BatchLoss
from .._math import compute_dtype, reachable_rows

is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has none


def dense_loss(batch: Batch, backend: str) -> BatchLoss:
    needed = torch.is_grad_enabled() and any(map(_derivatives.wants_gradient, (batch.embeddings, batch.inverse_sigma)))
    wanted = needed or is_exporting()  # an exported program may meet other embeddings than it was exported with
    if _backends.is_torch(backend):
        return _backends.get(backend).dense_loss(batch, wanted)
    alpha = -1.0 if batch.alpha is None else batch.alpha
    return BatchLoss(
        *differentiable_loss(
            batch.embeddings, batch.inverse_sigma, batch.labels, batch.targets, batch.scored, batch.class_weight,
            batch.num_classes, alpha, batch.normalization, batch.target, batch.smoothing, wanted, backend,
        )
    )  # fmt: skip


@torch.library.custom_op("gloss_kernels::dense_loss", mutates_args=())
def dense_loss_op(
    embeddings: Tensor,
    inverse_sigma: Tensor,
    labels: Tensor,
    targets: Tensor,
    scored: Tensor,
    class_weight: Tensor | None,
    num_classes: int,
    alpha: float,
    normalization: str,
    target: str,
    smoothing: float,
    want_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """protocol.BatchLoss: with the gradients of embeddings and inverse_sigma, which the backward pass only scales."""
    n = _checks.matrix("embeddings", embeddings).shape[0]
    _checks.operands(
        embeddings, inverse_sigma=(inverse_sigma, (n,), torch.float64), labels=(labels, (n,), torch.int64),
        targets=(targets, (n,), torch.int64), scored=(scored, (n,), torch.bool),
    )  # fmt: skip
    if class_weight is not None:
        _checks.operands(embeddings, class_weight=(class_weight, (num_classes,), torch.float64))
        class_weight = class_weight.contiguous()
    batch = Batch(
        embeddings.detach(), inverse_sigma.detach(), labels, targets, scored, class_weight, num_classes,
        None if alpha < 0 else alpha, normalization, target, smoothing,
    )  # fmt: skip
    return _backends.kernels(backend).dense_loss(batch, want_gradient)


@dense_loss_op.register_fake
def _(
    embeddings: Tensor,
    inverse_sigma: Tensor,
    labels: Tensor,
    targets: Tensor,
    scored: Tensor,
    class_weight: Tensor | None,
    num_classes: int,
    alpha: float,
    normalization: str,
    target: str,
    smoothing: float,
    want_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss = embeddings.new_empty((), dtype=compute_dtype(embeddings))
    return (
        loss,
        loss.new_empty((labels.shape[0], num_classes)),
        torch.empty_like(labels, dtype=torch.bool),
        inverse_sigma.new_empty(()),
        loss.new_empty(embeddings.shape if want_gradient else (0,)),
        inverse_sigma.new_empty(inverse_sigma.shape if want_gradient else (0,)),
    )


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(*output[1:])
    return output[4:]


def _loss_backward(ctx: Any, kept: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grad, grad_inverse_sigma = kept
    return (
        (grad * grad_loss).to(ctx.dtype) if ctx.needs_input_grad[0] else None,
        grad_inverse_sigma * grad_loss if ctx.needs_input_grad[1] else None,
        *(None,) * 11,
    )


differentiable_loss = _derivatives.differentiable(dense_loss_op, "GLoss", setup=_loss_setup, backward=_loss_backward)


# Harmonic (alpha < 0), with e = M_UL 1:
#   (diag(M_UU 1 + e) - M_UU) F_U = M_UL Y_L      adjoint: the same system with G_U on the right gives Lam_U
#   dL/dM_ij = -(Lam_i - Lam_j) . (F_i - F_j) / 2
# Spreading: (I - alpha M) F = (1 - alpha) Y with M = D^-1/2 A D^-1/2 has that form for F = D^1/2 G,
#   (D - alpha D^1/2 M D^1/2) G = (1 - alpha) D^1/2 Y;      dL/dM_ij = alpha Lam_i . F_j
@torch.library.custom_op("gloss_kernels::dense_propagate", mutates_args=())
def dense_propagate_op(
    m: Tensor, fixed: Tensor, boundary: Tensor, alpha: float, root: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """F [n, C]; the factor of the solved block in the corner of [n, n]; reachable [n]; what a row's sum is off by [].

    In float64 whatever m is (_elimination.py). root: D^1/2 [n], which spreading needs; a scale, no argument of F.
    """
    reachable = reachable_rows(m, fixed)
    rows = (reachable if alpha >= 0 else reachable & ~fixed).nonzero().squeeze(1)
    factor = m.new_zeros(m.shape, dtype=torch.float64)
    labels = boundary.double()
    f = torch.full_like(labels, 0.0 if alpha >= 0 else 1 / boundary.shape[1])
    f[fixed] = labels[fixed]
    lacks = factor.new_zeros(())
    if len(rows):
        wide = m[rows].double()
        if alpha >= 0:
            scale = _scale(root, rows)
            weights, excess = alpha * (scale * wide[:, rows] * scale.T), (1 - alpha) * scale[:, 0] ** 2
            right = (1 - alpha) * scale * labels[rows]
        else:
            weights, right = wide[:, rows], wide @ labels
            excess = right.sum(dim=1)
        factored = _elimination.factor(weights, excess)
        solution = _elimination.solve(factored, right)
        if alpha >= 0:
            solution = scale * solution
        else:
            lacks = (1 - solution.sum(dim=1)).abs().amax()
        f[rows] = solution
        factor[: len(rows), : len(rows)] = factored
    return f, factor, reachable, lacks


def _scale(root: Tensor | None, rows: Tensor) -> Tensor:
    if root is None:
        raise ValueError("root must be D^1/2 where labels are spread, got None")
    return root[rows].double()[:, None]


@dense_propagate_op.register_fake
def _(
    m: Tensor, fixed: Tensor, boundary: Tensor, alpha: float, root: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factor = m.new_empty(m.shape, dtype=torch.float64)
    return factor.new_empty(boundary.shape), factor, fixed.new_empty(fixed.shape), factor.new_empty(())


@torch.library.custom_op("gloss_kernels::dense_propagate_backward", mutates_args=())
def dense_propagate_backward_op(
    grad_f: Tensor, m: Tensor, fixed: Tensor, f: Tensor, factor: Tensor, reachable: Tensor, root: Tensor | None,
    alpha: float,
) -> Tensor:  # fmt: skip
    rows = (reachable if alpha >= 0 else reachable & ~fixed).nonzero().squeeze(1)
    if not len(rows):
        return torch.zeros_like(m)
    factored, grad, lam = factor[: len(rows), : len(rows)], grad_f[rows].double(), torch.zeros_like(f)
    if alpha >= 0:
        scale = _scale(root, rows)
        lam[rows] = alpha * scale * _elimination.solve(factored, scale * grad)
        return (lam @ f.T).to(m.dtype)
    lam[rows] = _elimination.solve(factored, grad)
    return (_elimination.edge_gradient(lam, f) / 2).to(m.dtype)


@dense_propagate_backward_op.register_fake
def _(
    grad_f: Tensor, m: Tensor, fixed: Tensor, f: Tensor, factor: Tensor, reachable: Tensor, root: Tensor | None,
    alpha: float,
) -> Tensor:  # fmt: skip
    return m.new_empty(m.shape)


def _solve_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    m, fixed, _, ctx.alpha, root = inputs
    f, factor, reachable, lacks = output
    ctx.mark_non_differentiable(factor, reachable, lacks)
    return m, fixed, f, factor, reachable, root


def _solve_backward(ctx: Any, kept: Any, grad_f: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return dense_propagate_backward_op(grad_f, *kept, ctx.alpha), None, None, None, None


dense_propagate = _derivatives.differentiable(dense_propagate_op, "GLoss", setup=_solve_setup, backward=_solve_backward)
