"""The CUDA backend: calls of the CUDA core with the pointers of torch tensors, on the current stream of their device.

The same functions as _cpu.py. Nothing waits for the device, so what only the device knows is not raised: a row with NaN
gets NaN for values, unless GLOSS_KERNELS_CHECK=1 asks to wait and look. With tensors on the CPU the emulated core runs,
where it was built (csrc/emulator).
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from . import _native
from ._product import product


class _Call:
    """What every call needs for tensors beside ``x``: the core, the queue, and workspace from torch's allocator."""

    def __init__(self, x: Tensor) -> None:
        self.device = x.device
        if x.device.type == "cpu":
            self.core, self.queue = _native.emulated, (0, 0)
            return
        capability = torch.cuda.get_device_capability(x.device)
        if capability < (8, 0):
            raise RuntimeError(
                f"backend='cuda': {torch.cuda.get_device_name(x.device)} has compute capability "
                f"{capability[0]}.{capability[1]}, wants 8.0 or newer; backend='reference' runs on it"
            )
        index = torch.cuda.current_device() if x.device.index is None else x.device.index
        self.core, self.queue = _native.core, (index, torch.cuda.current_stream(x.device).cuda_stream)

    def empty(self, shape: Any, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def workspace(self, size: int) -> Tensor:
        # The emulator's memory has no alignment of its own; the caching allocator aligns to 512 bytes.
        spare = 256 if self.device.type == "cpu" else 0
        space = self.empty(size + spare, torch.uint8)
        return space[-space.data_ptr() % 256 :] if spare else space


def cosine_topk(
    queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool, hint: Tensor | None
) -> tuple[Tensor, Tensor]:
    call = _Call(queries)
    queries = _native.matrix(queries)
    corpus = queries if corpus is None else _native.matrix(corpus)
    values = call.empty((len(queries), k), _native.compute_dtype(queries))
    indices = call.empty(values.shape, torch.int64)
    status = call.empty(4, torch.int64)
    hint = None if hint is None else hint.contiguous()
    columns = 0 if hint is None else hint.shape[1]
    problem = (_native.view(queries), _native.view(corpus), k, exclude_self)
    space = call.workspace(call.core.cuda_cosine_topk_workspace(*problem, columns))
    call.core.cuda_cosine_topk(
        *problem,
        0 if hint is None else hint.data_ptr(),
        columns,
        values.data_ptr(),
        indices.data_ptr(),
        status.data_ptr(),
        space.data_ptr(),
        call.queue,
    )
    if queries.device.type == "cpu" or os.environ.get("GLOSS_KERNELS_CHECK") == "1":
        *bad_rows, candidates, recomputed_rows = status.tolist()
        _native.local.statistics = {
            "candidates": candidates,
            "recomputed_rows": recomputed_rows,
            "workspace_bytes": len(space),
            "kernel": "cuda",
        }
        for name, row in zip(("queries", "corpus"), bad_rows, strict=True):
            if row >= 0:
                raise ValueError(f"{name}: row {row} holds NaN or Inf")
    return values, indices


def cosine_topk_backward(
    queries: Tensor, corpus: Tensor | None, indices: Tensor, grad_values: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    call = _Call(queries)
    queries = _native.matrix(queries)
    other = queries if corpus is None else _native.matrix(corpus)
    dtype = _native.compute_dtype(queries)
    indices, grad_values = indices.contiguous(), grad_values.to(dtype).contiguous()
    grad_queries = call.empty(queries.shape if need[0] else (0,), dtype)
    grad_corpus = call.empty(other.shape if need[1] and corpus is not None else (0,), dtype)
    problem = (_native.view(queries), _native.view(other), indices.shape[1])
    space = call.workspace(call.core.cuda_cosine_topk_backward_workspace(*problem, dtype == torch.float64))
    call.core.cuda_cosine_topk_backward(
        *problem,
        indices.data_ptr(),
        dtype == torch.float64,
        grad_values.data_ptr(),
        grad_queries.data_ptr() if need[0] else 0,
        (grad_queries if corpus is None else grad_corpus).data_ptr() if (need[1] or corpus is None) else 0,
        space.data_ptr(),
        call.queue,
    )
    return grad_queries, grad_corpus


def knn_structure(indices: Tensor, symmetrize: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _Call(indices)
    n, k = indices.shape
    indices, mode = indices.contiguous(), _native.SYMMETRIZE[symmetrize]
    crow = call.empty(n + 1, torch.int64)
    capacity = _native.structure_capacity(n, k, symmetrize)
    col, forward, reverse = (call.empty(capacity, torch.int64) for _ in range(3))
    space = call.workspace(call.core.cuda_knn_structure_workspace(n, k, mode))
    call.core.cuda_knn_structure(
        indices.data_ptr(),
        n,
        k,
        mode,
        crow.data_ptr(),
        col.data_ptr(),
        forward.data_ptr(),
        reverse.data_ptr(),
        space.data_ptr(),
        call.queue,
    )
    return crow, col, forward, reverse


def combine_edges(weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str | None) -> Tensor:
    call = _Call(weights)
    weights = weights.contiguous()
    values = call.empty(len(forward), weights.dtype)
    call.core.cuda_combine_edges(
        len(forward),
        forward.data_ptr(),
        reverse.data_ptr(),
        _native.SYMMETRIZE[symmetrize],
        _native.is_double(weights),
        weights.data_ptr(),
        values.data_ptr(),
        call.queue,
    )
    return values


def combine_edges_backward(
    grad_values: Tensor, weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str | None
) -> Tensor:
    call = _Call(weights)
    weights, grad_values = weights.contiguous(), grad_values.contiguous()
    grad_weights = torch.empty_like(weights)
    call.core.cuda_combine_edges_backward(
        len(forward),
        weights.numel(),
        forward.data_ptr(),
        reverse.data_ptr(),
        _native.SYMMETRIZE[symmetrize],
        _native.is_double(weights),
        weights.data_ptr(),
        grad_values.data_ptr(),
        grad_weights.data_ptr(),
        call.queue,
    )
    return grad_weights


def normalize_edges(crow: Tensor, col: Tensor, values: Tensor, normalization: str) -> Tensor:
    call = _Call(values)
    values, how = values.contiguous(), _native.NORMALIZE[normalization]
    size = (len(crow) - 1, len(values))
    normalized = torch.empty_like(values)
    space = call.workspace(call.core.cuda_normalize_edges_workspace(*size, how, _native.is_double(values)))
    call.core.cuda_normalize_edges(
        crow.data_ptr(),
        col.data_ptr(),
        *size,
        _native.is_double(values),
        values.data_ptr(),
        how,
        normalized.data_ptr(),
        space.data_ptr(),
        call.queue,
    )
    return normalized


def normalize_edges_backward(
    grad_normalized: Tensor, crow: Tensor, col: Tensor, values: Tensor, normalization: str
) -> Tensor:
    call = _Call(values)
    values, grad_normalized, how = values.contiguous(), grad_normalized.contiguous(), _native.NORMALIZE[normalization]
    size = (len(crow) - 1, len(values))
    grad_values = torch.empty_like(values)
    space = call.workspace(call.core.cuda_normalize_edges_backward_workspace(*size, how, _native.is_double(values)))
    call.core.cuda_normalize_edges_backward(
        crow.data_ptr(),
        col.data_ptr(),
        *size,
        _native.is_double(values),
        values.data_ptr(),
        how,
        grad_normalized.data_ptr(),
        grad_values.data_ptr(),
        space.data_ptr(),
        call.queue,
    )
    return grad_values


def propagate(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    boundary: Tensor,
    has_initial: bool,
    prior: Tensor,
    alpha: float | None,
    prior_strength: float,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = _Call(values)
    values, fixed, boundary, prior = (t.contiguous() for t in (values, fixed, boundary, prior))
    result = torch.empty_like(boundary)
    residual = call.empty(boundary.shape[1], torch.float64)
    reachable = call.empty(len(fixed), torch.bool)
    used_tol = call.empty((), torch.float64)
    iterations = call.empty((), torch.int64)
    is_double = _native.is_double(values)
    size = (len(fixed), len(values), boundary.shape[1])
    space = call.workspace(call.core.cuda_propagate_workspace(*size, is_double))
    call.core.cuda_propagate(
        crow.data_ptr(),
        col.data_ptr(),
        *size,
        is_double,
        values.data_ptr(),
        fixed.data_ptr(),
        boundary.data_ptr(),
        has_initial,
        prior.data_ptr(),
        (math.nan if alpha is None else alpha, prior_strength, tol, max_iter, 1),
        result.data_ptr(),
        residual.data_ptr(),
        reachable.data_ptr(),
        used_tol.data_ptr(),
        iterations.data_ptr(),
        space.data_ptr(),
        call.queue,
    )
    return result, iterations, residual, reachable, used_tol


def propagate_backward(
    grad_result: Tensor,
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    reachable: Tensor,
    prior: Tensor,
    result: Tensor,
    used_tol: Tensor,
    alpha: float | None,
    prior_strength: float,
    max_iter: int,
) -> tuple[Tensor, Tensor]:
    call = _Call(values)
    values, fixed, prior, result, grad_result = (t.contiguous() for t in (values, fixed, prior, result, grad_result))
    grad_values = torch.empty_like(values)
    residual = call.empty(result.shape[1], torch.float64)
    iterations = call.empty((), torch.int64)
    is_double = _native.is_double(values)
    size = (len(fixed), len(values), result.shape[1])
    space = call.workspace(call.core.cuda_propagate_backward_workspace(*size, is_double))
    call.core.cuda_propagate_backward(
        crow.data_ptr(),
        col.data_ptr(),
        *size,
        is_double,
        values.data_ptr(),
        fixed.data_ptr(),
        reachable.data_ptr(),
        prior.data_ptr(),
        result.data_ptr(),
        grad_result.data_ptr(),
        (math.nan if alpha is None else alpha, prior_strength, 0.0, max_iter, 1),
        used_tol.data_ptr(),
        grad_values.data_ptr(),
        residual.data_ptr(),
        iterations.data_ptr(),
        space.data_ptr(),
        call.queue,
    )
    return grad_values, residual


def dense_loss(
    embeddings: Tensor,
    inverse_sigma: Tensor,
    labels: Tensor,
    targets: Tensor,
    scored: Tensor,
    class_weight: Tensor | None,
    num_classes: int,
    alpha: float | None,
    normalization: str,
    target: str,
    smoothing: float,
    want_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = _Call(embeddings)
    (n, d), dtype = embeddings.shape, _native.compute_dtype(embeddings)
    x, inverse_sigma, labels, targets, scored = (
        t.contiguous() for t in (embeddings.to(dtype), inverse_sigma, labels, targets, scored)
    )
    is_double = dtype == torch.float64
    unit, inverse_norms = torch.empty_like(x), call.empty(n, torch.float64)
    call.core.cuda_dense_unit_rows(n, d, is_double, x.data_ptr(), unit.data_ptr(), inverse_norms.data_ptr(), call.queue)
    cosines = product(unit, unit.T)

    loss, result = call.empty((), dtype), call.empty((n, num_classes), dtype)
    reachable, lacks = call.empty(n, torch.bool), call.empty((), torch.float64)
    grad_sigma = call.empty(n if want_gradient else 0, torch.float64)
    grad_cosines = torch.empty_like(cosines) if want_gradient else None
    space = call.workspace(call.core.cuda_dense_loss_workspace(n, num_classes))
    call.core.cuda_dense_loss(
        (
            n,
            num_classes,
            is_double,
            cosines.data_ptr(),
            inverse_sigma.data_ptr(),
            labels.data_ptr(),
            targets.data_ptr(),
            scored.data_ptr(),
            0 if class_weight is None else class_weight.data_ptr(),
        ),
        (math.nan if alpha is None else alpha, _native.NORMALIZE[normalization], target == "paper", smoothing, 1),
        (
            loss.data_ptr(),
            result.data_ptr(),
            reachable.data_ptr(),
            lacks.data_ptr(),
            0 if grad_cosines is None else grad_cosines.data_ptr(),
            grad_sigma.data_ptr(),
        ),
        space.data_ptr(),
        call.queue,
    )
    if grad_cosines is None:
        return loss, result, reachable, lacks, x.new_empty(0), grad_sigma
    grad_unit, grad = product(grad_cosines, unit), torch.empty_like(x)
    call.core.cuda_dense_unit_rows_backward(
        n,
        d,
        is_double,
        unit.data_ptr(),
        inverse_norms.data_ptr(),
        grad_unit.data_ptr(),
        grad.data_ptr(),
        call.queue,
    )
    return loss, result, reachable, lacks, grad, grad_sigma
