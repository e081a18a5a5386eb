"""Operators of stage graph. Shapes depend on n and k only: a structure's entries past crow[n] are padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks, _derivatives, _library, reference
from .._backends.protocol import Combination, Edges, Structure


def capacity(indices: Tensor, symmetrize: str) -> int:
    """Room for every entry that the graph of ``indices`` [n, k] can have."""
    return indices.shape[0] * indices.shape[1] * reference.SYMMETRIZE[symmetrize].most_entries


def given_edges(crow: Tensor, col: Tensor, values: Tensor) -> Edges:
    """Of the right shapes and types; what crow and col hold, the kernels check where they read it."""
    _library.is_double(values)  # raises
    nnz = values.numel()
    if crow.numel() == 0:
        raise ValueError("crow must have n + 1 numbers, got none")
    _checks.operands(
        values, values=(values, (nnz,), values.dtype), crow=(crow, (crow.numel(),), torch.int64),
        col=(col, (nnz,), torch.int64),
    )  # fmt: skip
    return Edges(crow.contiguous(), col.contiguous(), values)


def given_combination(weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str) -> Combination:
    _library.is_double(weights)  # raises
    _checks.choice("symmetrize", symmetrize, tuple(reference.SYMMETRIZE))
    nnz = forward.numel()
    _checks.operands(weights, forward=(forward, (nnz,), torch.int64), reverse=(reverse, (nnz,), torch.int64))
    return Combination(weights, forward.contiguous(), reverse.contiguous(), symmetrize)


def knn_structure(indices: Tensor, symmetrize: str, backend: str) -> Structure:
    if _backends.is_torch(backend):
        return _backends.get(backend).knn_structure(indices, symmetrize, capacity(indices, symmetrize))
    return Structure(*knn_structure_op(indices, symmetrize, backend))


@torch.library.custom_op("gloss_kernels::knn_structure", mutates_args=())
def knn_structure_op(indices: Tensor, symmetrize: str, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if indices.ndim != 2 or indices.dtype != torch.int64:
        raise ValueError(f"indices must be torch.int64 [n, k], got {indices.dtype} {tuple(indices.shape)}")
    return _backends.kernels(backend).knn_structure(indices, symmetrize, capacity(indices, symmetrize))


@knn_structure_op.register_fake
def _(indices: Tensor, symmetrize: str, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    col, forward, reverse = (indices.new_empty(capacity(indices, symmetrize)) for _ in range(3))
    return indices.new_empty(indices.shape[0] + 1), col, forward, reverse


def combine_edges(weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str, backend: str) -> Tensor:
    if _backends.is_torch(backend):
        return _backends.get(backend).combine_edges(Combination(weights, forward, reverse, symmetrize))
    values: Tensor = differentiable_edges(weights, forward, reverse, symmetrize, backend)
    return values


@torch.library.custom_op("gloss_kernels::combine_edges", mutates_args=())
def combine_edges_op(weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str, backend: str) -> Tensor:
    return _backends.kernels(backend).combine_edges(given_combination(weights, forward, reverse, symmetrize))


@combine_edges_op.register_fake
def _(weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str, backend: str) -> Tensor:
    return weights.new_empty(forward.shape)


@torch.library.custom_op("gloss_kernels::combine_edges_backward", mutates_args=())
def combine_edges_backward_op(
    grad_values: Tensor, weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str, backend: str
) -> Tensor:
    combination = given_combination(weights, forward, reverse, symmetrize)
    _checks.operands(weights, grad_values=(grad_values, (forward.numel(),), weights.dtype))
    return _backends.kernels(backend).combine_edges_backward(combination, grad_values)


@combine_edges_backward_op.register_fake
def _(grad_values: Tensor, weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str, backend: str) -> Tensor:
    return weights.new_empty(weights.shape)


def _combine_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
    weights, forward, reverse, ctx.symmetrize, ctx.backend = inputs
    return weights, forward, reverse


def _combine_backward(ctx: Any, kept: Any, grad_values: Tensor) -> tuple[Tensor | None, ...]:
    return combine_edges_backward_op(grad_values, *kept, ctx.symmetrize, ctx.backend), *(None,) * 4


differentiable_edges = _derivatives.differentiable(
    combine_edges_op, "similarity_graph", setup=_combine_setup, backward=_combine_backward
)


def normalize_edges(crow: Tensor, col: Tensor, values: Tensor, normalization: str, backend: str) -> Tensor:
    if _backends.is_torch(backend):
        return _backends.get(backend).normalize_edges(Edges(crow, col, values), normalization)
    normalized: Tensor = differentiable_normalization(crow, col, values, normalization, backend)
    return normalized


@torch.library.custom_op("gloss_kernels::normalize_edges", mutates_args=())
def normalize_edges_op(crow: Tensor, col: Tensor, values: Tensor, normalization: str, backend: str) -> Tensor:
    return _backends.kernels(backend).normalize_edges(given_edges(crow, col, values), normalization)


@normalize_edges_op.register_fake
def _(crow: Tensor, col: Tensor, values: Tensor, normalization: str, backend: str) -> Tensor:
    return values.new_empty(values.shape)


@torch.library.custom_op("gloss_kernels::normalize_edges_backward", mutates_args=())
def normalize_edges_backward_op(
    grad_normalized: Tensor, crow: Tensor, col: Tensor, values: Tensor, normalization: str, backend: str
) -> Tensor:
    edges = given_edges(crow, col, values)
    _checks.operands(values, grad_normalized=(grad_normalized, (values.numel(),), values.dtype))
    return _backends.kernels(backend).normalize_edges_backward(edges, normalization, grad_normalized)


@normalize_edges_backward_op.register_fake
def _(grad_normalized: Tensor, crow: Tensor, col: Tensor, values: Tensor, normalization: str, backend: str) -> Tensor:
    return values.new_empty(values.shape)


def _normalize_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
    ctx.normalization, ctx.backend = inputs[3:]
    return inputs[:3]


def _normalize_backward(ctx: Any, kept: Any, grad_normalized: Tensor) -> tuple[Tensor | None, ...]:
    grad_values = normalize_edges_backward_op(grad_normalized, *kept, ctx.normalization, ctx.backend)
    return None, None, grad_values, None, None


differentiable_normalization = _derivatives.differentiable(
    normalize_edges_op, "propagate_labels", setup=_normalize_setup, backward=_normalize_backward
)
