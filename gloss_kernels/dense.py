"""The dense mini-batch path: G-Loss on an n x n graph, for n up to a few thousand.

Used where every document neighbours every other. Up to NATIVE_ROWS documents all of it is one operator of the native
core, which takes the gradient along in its forward pass. Above, and on devices without such a kernel, it is plain torch
except for the solve: a Cholesky factorisation of the hidden block with an implicit gradient (one more solve with the
same factor).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _dispatch, _native, _validate
from ._product import product
from .propagate import Propagation, drop_vanishing, one_hot

NATIVE_ROWS = 512  # above, torch's blocked Cholesky is the faster one


def unit_rows(x: Tensor) -> Tensor:
    """x / |x| by rows in float32 (float64 for float64); a zero row stays zero, with gradient zero. [n, d]"""
    x = x if x.dtype == torch.float64 else x.float()
    largest = x.detach().abs().amax(dim=1, keepdim=True)  # first to size 1, so that squares neither vanish nor overflow
    x = x / torch.where(largest > 0, largest, 1.0)
    squared = (x * x).sum(dim=1, keepdim=True)
    return torch.where(squared > 0, x / torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)


def adjacency(embeddings: Tensor, sigma: float | Tensor) -> Tensor:
    """exp((c_ij - 1) / sigma^2) with a zero diagonal, [n, n]; sigma a number, 0-dim or [n] (then sigma_i sigma_j)."""
    u = unit_rows(embeddings)
    distance = (product(u, u.T) - 1).clamp(max=0)  # rounding may give duplicates a cosine above 1
    if isinstance(sigma, Tensor):
        sigma = sigma.to(u)
        weights = torch.exp(distance / (sigma**2 if sigma.ndim == 0 else sigma[:, None] * sigma[None, :]))
    else:
        weights = torch.exp(distance * (1 / sigma**2))
    return weights.masked_fill(torch.eye(len(u), dtype=torch.bool, device=u.device), 0.0)


def normalize(adjacency: Tensor, how: str) -> Tensor:
    """M_ij = A_ij s_i s_j: "row" s = 1, "symmetric" s = d^-1/2, "paper" s = 1 / (A d^-1/2), with d = A 1."""
    if how == "row":
        return adjacency
    s = _power(adjacency.sum(dim=1), -0.5)
    if how == "paper":
        s = _power((adjacency * s).sum(dim=1), -1.0)
    return s[:, None] * adjacency * s[None, :]


def _power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent, and 0 with gradient 0 where x is 0."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0) ** exponent, 0.0)


def propagate(
    adjacency: Tensor, labels: Tensor, num_classes: int, alpha: float | None, normalization: str
) -> Propagation:
    """As propagate_labels, for a dense symmetric graph [n, n]."""
    labeled = (labels >= 0) & (labels < num_classes)
    boundary = one_hot(labels, num_classes, adjacency.dtype)
    m = normalize(drop_vanishing(adjacency), normalization if alpha is None else "symmetric")
    f, _, reachable, lacks = dense_propagate_op(m, labeled, boundary, -1.0 if alpha is None else alpha)
    f = f.to(adjacency.dtype)
    if alpha is not None:
        total = f.sum(dim=1, keepdim=True)
        f = torch.where(total > 0, f / torch.where(total > 0, total, 1.0), 1 / num_classes)
    return Propagation(f, torch.zeros_like(lacks, dtype=torch.int64), lacks, reachable)


def batch_loss(
    embeddings: Tensor,
    labels: Tensor,
    targets: Tensor,
    scored: Tensor,
    num_classes: int,
    sigma: float | Tensor,
    alpha: float | None,
    normalization: str,
    target: str,
    class_weight: Tensor | None,
    smoothing: float,
    backend: str,
) -> tuple[Tensor, Propagation]:
    """The loss and the Propagation, by one native operator; labels [n] with -1 on hidden documents."""
    n, device = len(embeddings), embeddings.device
    if isinstance(sigma, Tensor):
        inverse = sigma.to(device, torch.float64).reciprocal().expand(n)
    else:
        inverse = torch.full((n,), 1 / sigma, dtype=torch.float64, device=device)
    weight = None if class_weight is None else class_weight.detach().to(device, torch.float64)
    wanted = torch.is_grad_enabled() and (embeddings.requires_grad or inverse.requires_grad)
    loss, f, reachable, lacks, _, _ = dense_loss_op(
        embeddings, inverse, labels, targets, scored, weight, num_classes, -1.0 if alpha is None else alpha,
        normalization if alpha is None else "symmetric", target, smoothing, wanted, backend,
    )  # fmt: skip
    return loss, Propagation(f, torch.zeros_like(lacks, dtype=torch.int64), lacks, reachable)


# ------------------------------------------------------------------------------------------- operators
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
    """loss, F, reachable, lacks, and the gradients of embeddings and inverse_sigma for the backward pass to scale."""
    for name, x, kind in (
        ("inverse_sigma", inverse_sigma, torch.float64), ("labels", labels, torch.int64),
        ("targets", targets, torch.int64), ("scored", scored, torch.bool),
    ):  # fmt: skip
        _validate.tensor(name, x, (embeddings.shape[0],), kind)  # the kernels know addresses only
    if class_weight is not None:
        class_weight = _validate.tensor("class_weight", class_weight, (num_classes,), torch.float64).contiguous()
    return _dispatch.kernels(backend).dense_loss(
        embeddings.detach(), inverse_sigma.detach(), labels, targets, scored, class_weight, num_classes,
        None if alpha < 0 else alpha, normalization, target, smoothing, want_gradient,
    )  # fmt: skip


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
    loss = embeddings.new_empty((), dtype=_native.compute_dtype(embeddings))
    return (
        loss,
        loss.new_empty((labels.shape[0], num_classes)),
        torch.empty_like(labels, dtype=torch.bool),
        inverse_sigma.new_empty(()),
        loss.new_empty(embeddings.shape if want_gradient else (0,)),
        inverse_sigma.new_empty(inverse_sigma.shape if want_gradient else (0,)),
    )


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*output[4:])
    ctx.mark_non_differentiable(*output[1:])


def _loss_backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grad, grad_inverse_sigma = ctx.saved_tensors
    return (
        (grad * grad_loss).to(ctx.dtype) if ctx.needs_input_grad[0] else None,
        grad_inverse_sigma * grad_loss if ctx.needs_input_grad[1] else None,
        *(None,) * 11,
    )


dense_loss_op.register_autograd(_loss_backward, setup_context=_loss_setup)


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
    reachable = _reachable(m, fixed)
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
        lower = _cholesky(system)
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


def _reachable(m: Tensor, fixed: Tensor) -> Tensor:
    joined = (m > 0).double()
    reached = fixed | (joined @ fixed.double() > 0)
    while not bool(reached.all()):
        grown = reached | (joined @ reached.double() > 0)
        if bool((grown == reached).all()):
            break
        reached = grown
    return reached


def _cholesky(system: Tensor) -> Tensor:
    """Of a positive definite float64 matrix with unit diagonal; 1e-14 and more on it where rounding makes that fail."""
    lower: Tensor
    for jitter in (0.0, 1e-14, 1e-12, 1e-10):
        lower, info = torch.linalg.cholesky_ex(system + jitter * torch.eye(len(system), dtype=system.dtype).to(system))
        if int(info) == 0:
            return lower
    raise RuntimeError("dense label propagation: the system is not positive definite; raise sigma")


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


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    m, fixed, _, ctx.alpha = inputs
    f, factor, reachable, lacks = output
    ctx.save_for_backward(m, fixed, f, factor, reachable)
    ctx.mark_non_differentiable(factor, reachable, lacks)


def _backward(ctx: Any, grad_f: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return dense_propagate_backward_op(grad_f, *ctx.saved_tensors, ctx.alpha), None, None, None


dense_propagate_op.register_autograd(_backward, setup_context=_setup)
