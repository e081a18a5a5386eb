"""Operators of stage loss: the loss of a dense mini-batch in one, and the dense solve of larger batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks, _derivatives
from .._backends.protocol import Batch, BatchLoss
from .._math import cholesky, compute_dtype, reachable_rows

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


# Harmonic (alpha < 0), with r = d^-1/2 to give the system a unit diagonal:
#   (I - r M_UU r) (F_U / r) = r M_UL Y_L         adjoint: the same system with r G_U on the right gives Lam_U / r
#   dL/dM_ij = Lam_i . (F_j - F_i)
# Spreading: (I - alpha M) F = (1 - alpha) Y;     dL/dM_ij = alpha Lam_i . F_j
@torch.library.custom_op("gloss_kernels::dense_propagate", mutates_args=())
def dense_propagate_op(
    m: Tensor, fixed: Tensor, boundary: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """F [n, C]; the Cholesky factor of the solved block in the corner of [n, n]; reachable [n]; what a row lacked [].

    In float64 whatever m is: tight clusters that hang together by small weights make a block that float32 takes for
    singular, or, worse, does not.
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
            system = -alpha * wide[:, rows]
            right = (1 - alpha) * labels[rows]
        else:
            scale = wide.sum(dim=1).rsqrt()[:, None]
            system = -(scale * wide[:, rows] * scale.T)
            right = scale * (wide @ labels)
        system.diagonal().add_(1)
        lower = cholesky(system)
        solution = torch.cholesky_solve(right, lower)
        if alpha < 0:
            solution = (scale * solution).clamp(min=0)
            lack = 1 - solution.sum(dim=1, keepdim=True)
            lacks = lack.abs().amax()
            # Exact rows sum to 1. What one lacks, where documents hang on the labelled ones by a weight beyond float64,
            # goes to the classes in the proportion they have among the labelled.
            solution = solution + lack.clamp(min=0) * labels[fixed].mean(dim=0)
        f[rows] = solution
        factor[: len(rows), : len(rows)] = lower
    return f, factor, reachable, lacks


@dense_propagate_op.register_fake
def _(m: Tensor, fixed: Tensor, boundary: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factor = m.new_empty(m.shape, dtype=torch.float64)
    return factor.new_empty(boundary.shape), factor, fixed.new_empty(fixed.shape), factor.new_empty(())


@torch.library.custom_op("gloss_kernels::dense_propagate_backward", mutates_args=())
def dense_propagate_backward_op(
    grad_f: Tensor, m: Tensor, fixed: Tensor, f: Tensor, factor: Tensor, reachable: Tensor, alpha: float
) -> Tensor:
    rows = (reachable if alpha >= 0 else reachable & ~fixed).nonzero().squeeze(1)
    grad_m = torch.zeros_like(m)
    if len(rows):
        lower, grad = factor[: len(rows), : len(rows)], grad_f[rows]
        if alpha >= 0:
            grad_rows = alpha * (torch.cholesky_solve(grad, lower) @ f.T)
        else:
            scale = m[rows].double().sum(dim=1).rsqrt()[:, None]
            lam = scale * torch.cholesky_solve(scale * grad, lower)
            grad_rows = lam @ f.T - (lam * f[rows]).sum(dim=1, keepdim=True)
        grad_m[rows] = grad_rows.to(m.dtype)
    return grad_m


@dense_propagate_backward_op.register_fake
def _(grad_f: Tensor, m: Tensor, fixed: Tensor, f: Tensor, factor: Tensor, reachable: Tensor, alpha: float) -> Tensor:
    return m.new_empty(m.shape)


def _solve_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    m, fixed, _, ctx.alpha = inputs
    f, factor, reachable, lacks = output
    ctx.mark_non_differentiable(factor, reachable, lacks)
    return m, fixed, f, factor, reachable


def _solve_backward(ctx: Any, kept: Any, grad_f: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return dense_propagate_backward_op(grad_f, *kept, ctx.alpha), None, None, None


dense_propagate = _derivatives.differentiable(dense_propagate_op, "GLoss", setup=_solve_setup, backward=_solve_backward)
