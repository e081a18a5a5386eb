"""Operators of stage propagate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks, _convergence, _derivatives, _library
from .._backends.protocol import Edges, Solution, System
from .._math import finest_tol
from .._options import PropagateOptions
from .graph import given_edges


def given_system(
    crow: Tensor, col: Tensor, values: Tensor, fixed: Tensor, prior: Tensor, alpha: float, eps: float, max_iter: int
) -> System:
    """Of the right shapes and types; on the CPU, of rows and columns that are some: 1.3 % of the solve of 50,000
    documents and 20 classes. On a GPU it would be a dozen launches a solve: there propagate_labels alone looks."""
    edges = given_edges(crow, col, values)
    n, nnz = crow.numel() - 1, col.numel()
    _checks.operands(values, fixed=(fixed, (n,), torch.bool), prior=(prior, (prior.numel(),), values.dtype))
    if values.device.type == "cpu" and not _library.capturing(values):
        steps = crow.diff()
        if int(crow[0]) < 0 or int(crow[-1]) > nnz or bool((steps < 0).any()):
            raise ValueError(f"crow must rise within 0..{nnz}, got other numbers")
        if nnz:
            low, high = map(int, col.aminmax())
            if low < 0 or high >= max(n, 1):
                raise ValueError(f"col must be nodes in 0..{n - 1}, got {low if low < 0 else high}")
    return System(edges, fixed, prior, None if alpha < 0 else alpha, eps, max_iter)


def propagate(
    edges: Edges,
    fixed: Tensor,
    boundary: Tensor,
    has_initial: bool,
    prior: Tensor,
    options: PropagateOptions,
    backend: str,
) -> Solution:
    if _backends.is_torch(backend):
        system = System(edges, fixed, prior, options.alpha, options.prior_strength, options.max_iter)
        return _backends.get(backend).propagate(system, boundary, has_initial, options.tol)
    alpha = -1.0 if options.alpha is None else options.alpha
    return Solution(
        *differentiable_propagation(
            edges.crow, edges.col, edges.values, fixed, boundary, has_initial, prior, alpha, options.prior_strength,
            options.tol, options.max_iter, backend,
        )
    )  # fmt: skip


@torch.library.custom_op("gloss_kernels::propagate", mutates_args=())
def propagate_op(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    boundary: Tensor,
    has_initial: bool,
    prior: Tensor,
    alpha: float,
    prior_strength: float,
    tol: float,
    max_iter: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """F [n, C], iterations [], residual [C], reachable [n], the tol used []."""
    system = given_system(crow, col, values, fixed, prior, alpha, prior_strength, max_iter)
    _checks.operands(values, boundary=(boundary, (len(fixed), len(prior)), values.dtype))
    solution = _backends.kernels(backend).propagate(system, boundary, has_initial, tol)
    _convergence.check("propagate_labels", solution.residual, solution.used_tol)
    return solution


@propagate_op.register_fake
def _(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    boundary: Tensor,
    has_initial: bool,
    prior: Tensor,
    alpha: float,
    prior_strength: float,
    tol: float,
    max_iter: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    residual = boundary.new_empty(boundary.shape[1], dtype=torch.float64)
    return (
        boundary.new_empty(boundary.shape),
        crow.new_empty(()),
        residual,
        fixed.new_empty(fixed.shape, dtype=torch.bool),
        residual.new_empty(()),
    )


@torch.library.custom_op("gloss_kernels::propagate_backward", mutates_args=())
def propagate_backward_op(
    grad_result: Tensor,
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    reachable: Tensor,
    prior: Tensor,
    result: Tensor,
    used_tol: Tensor,
    alpha: float,
    prior_strength: float,
    max_iter: int,
    backend: str,
) -> Tensor:
    system = given_system(crow, col, values, fixed, prior, alpha, prior_strength, max_iter)
    shape = (len(fixed), len(prior))
    _checks.operands(
        values, reachable=(reachable, shape[:1], torch.bool), result=(result, shape, values.dtype),
        grad_result=(grad_result, shape, values.dtype), used_tol=(used_tol, (), torch.float64),
    )  # fmt: skip
    grad_values, residual = _backends.kernels(backend).propagate_backward(
        system, result, reachable, used_tol, grad_result
    )
    limit = 10 * used_tol.clamp(min=finest_tol(values))
    _convergence.check("the gradient of propagate_labels", residual, limit)
    return grad_values


@propagate_backward_op.register_fake
def _(
    grad_result: Tensor,
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    reachable: Tensor,
    prior: Tensor,
    result: Tensor,
    used_tol: Tensor,
    alpha: float,
    prior_strength: float,
    max_iter: int,
    backend: str,
) -> Tensor:
    return values.new_empty(values.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    crow, col, values, fixed, _boundary, _has_initial, prior, alpha, prior_strength, _tol, max_iter, backend = inputs
    result, iterations, residual, reachable, used_tol = output
    ctx.options = (alpha, prior_strength, max_iter, backend)
    ctx.mark_non_differentiable(iterations, residual, reachable, used_tol)
    return crow, col, values, fixed, reachable, prior, result, used_tol


def _backward(ctx: Any, kept: Any, grad_result: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grad_values = propagate_backward_op(grad_result, *kept, *ctx.options)
    return None, None, grad_values, *(None,) * 9


differentiable_propagation = _derivatives.differentiable(
    propagate_op, "propagate_labels", setup=_setup, backward=_backward
)
