"""The CPU backend: calls of the C++ core with the pointers of torch tensors.

Every function takes tensors of the right dtype and shape (the stages check) and runs on ``torch.get_num_threads()``
threads. _cuda.py has the same functions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _native


def cosine_topk(
    queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool, hint: Tensor | None
) -> tuple[Tensor, Tensor]:
    queries = _native.matrix(queries)
    corpus = queries if corpus is None else _native.matrix(corpus)
    values = torch.empty(len(queries), k, dtype=_native.compute_dtype(queries))
    indices = torch.empty(len(queries), k, dtype=torch.int64)
    hint = None if hint is None else hint.contiguous()
    _native.local.statistics = _native.core.cosine_topk(
        _native.view(queries),
        _native.view(corpus),
        k,
        exclude_self,
        0 if hint is None else hint.data_ptr(),
        0 if hint is None else hint.shape[1],
        values.data_ptr(),
        indices.data_ptr(),
        torch.get_num_threads(),
        getattr(_native.local, "report", None),
    )
    return values, indices


def cosine_topk_backward(
    queries: Tensor, corpus: Tensor | None, indices: Tensor, grad_values: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients in the compute dtype; an empty tensor where one is not needed. With corpus None the first has both."""
    queries = _native.matrix(queries)
    other = queries if corpus is None else _native.matrix(corpus)
    dtype = _native.compute_dtype(queries)
    indices, grad_values = indices.contiguous(), grad_values.to(dtype).contiguous()
    grad_queries = torch.empty(queries.shape if need[0] else (0,), dtype=dtype)
    grad_corpus = torch.empty(other.shape if need[1] and corpus is not None else (0,), dtype=dtype)
    _native.core.cosine_topk_backward(
        _native.view(queries),
        _native.view(other),
        indices.shape[1],
        indices.data_ptr(),
        dtype == torch.float64,
        grad_values.data_ptr(),
        grad_queries.data_ptr() if need[0] else 0,
        (grad_queries if corpus is None else grad_corpus).data_ptr() if (need[1] or corpus is None) else 0,
        torch.get_num_threads(),
    )
    return grad_queries, grad_corpus


def knn_structure(indices: Tensor, symmetrize: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """crow [n + 1] and col, forward, reverse [capacity] of the symmetrised graph (csrc/gloss.h)."""
    n, k = indices.shape
    capacity = _native.structure_capacity(n, k, symmetrize)
    crow = torch.empty(n + 1, dtype=torch.int64)
    col, forward, reverse = (torch.empty(capacity, dtype=torch.int64) for _ in range(3))
    indices = indices.contiguous()
    _native.core.knn_structure(
        indices.data_ptr(),
        n,
        k,
        _native.SYMMETRIZE[symmetrize],
        crow.data_ptr(),
        col.data_ptr(),
        forward.data_ptr(),
        reverse.data_ptr(),
        torch.get_num_threads(),
    )
    return crow, col, forward, reverse


def combine_edges(weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str | None) -> Tensor:
    weights = weights.contiguous()
    values = torch.empty(len(forward), dtype=weights.dtype)
    _native.core.combine_edges(
        len(forward),
        forward.data_ptr(),
        reverse.data_ptr(),
        _native.SYMMETRIZE[symmetrize],
        _native.is_double(weights),
        weights.data_ptr(),
        values.data_ptr(),
        torch.get_num_threads(),
    )
    return values


def combine_edges_backward(
    grad_values: Tensor, weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str | None
) -> Tensor:
    weights, grad_values = weights.contiguous(), grad_values.contiguous()
    grad_weights = torch.empty_like(weights)
    _native.core.combine_edges_backward(
        len(forward),
        weights.numel(),
        forward.data_ptr(),
        reverse.data_ptr(),
        _native.SYMMETRIZE[symmetrize],
        _native.is_double(weights),
        weights.data_ptr(),
        grad_values.data_ptr(),
        grad_weights.data_ptr(),
        torch.get_num_threads(),
    )
    return grad_weights


def normalize_edges(crow: Tensor, col: Tensor, values: Tensor, normalization: str) -> Tensor:
    values = values.contiguous()
    normalized = torch.zeros_like(values)
    _native.core.normalize_edges(
        crow.data_ptr(),
        col.data_ptr(),
        len(crow) - 1,
        _native.is_double(values),
        values.data_ptr(),
        _native.NORMALIZE[normalization],
        normalized.data_ptr(),
        torch.get_num_threads(),
    )
    return normalized


def normalize_edges_backward(
    grad_normalized: Tensor, crow: Tensor, col: Tensor, values: Tensor, normalization: str
) -> Tensor:
    values, grad_normalized = values.contiguous(), grad_normalized.contiguous()
    grad_values = torch.zeros_like(values)
    _native.core.normalize_edges_backward(
        crow.data_ptr(),
        col.data_ptr(),
        len(crow) - 1,
        _native.is_double(values),
        values.data_ptr(),
        _native.NORMALIZE[normalization],
        grad_normalized.data_ptr(),
        grad_values.data_ptr(),
        torch.get_num_threads(),
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
    """F [n, C], iterations [], residual [C], reachable [n], the tol used [] (csrc/gloss.h)."""
    values, fixed, boundary, prior = (t.contiguous() for t in (values, fixed, boundary, prior))
    result = torch.empty_like(boundary)
    residual = torch.empty(boundary.shape[1], dtype=torch.float64)
    reachable = torch.empty(len(fixed), dtype=torch.bool)
    used_tol = torch.empty((), dtype=torch.float64)
    iterations = _native.core.propagate(
        crow.data_ptr(),
        col.data_ptr(),
        len(fixed),
        _native.is_double(values),
        values.data_ptr(),
        boundary.shape[1],
        fixed.data_ptr(),
        boundary.data_ptr(),
        has_initial,
        prior.data_ptr(),
        (math.nan if alpha is None else alpha, prior_strength, tol, max_iter, torch.get_num_threads()),
        result.data_ptr(),
        residual.data_ptr(),
        reachable.data_ptr(),
        used_tol.data_ptr(),
    )
    return result, torch.tensor(iterations), residual, reachable, used_tol


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
    """dL/dvalues [nnz] and residual [C] of the adjoint solve, which stops at the tol of the forward one."""
    values, fixed, prior, result, grad_result = (t.contiguous() for t in (values, fixed, prior, result, grad_result))
    grad_values = torch.zeros_like(values)
    residual = torch.empty(result.shape[1], dtype=torch.float64)
    tol = max(float(used_tol), _native.finest_tol(values))
    _native.core.propagate_backward(
        crow.data_ptr(),
        col.data_ptr(),
        len(fixed),
        _native.is_double(values),
        values.data_ptr(),
        result.shape[1],
        fixed.data_ptr(),
        reachable.data_ptr(),
        prior.data_ptr(),
        result.data_ptr(),
        grad_result.data_ptr(),
        (math.nan if alpha is None else alpha, prior_strength, tol, max_iter, torch.get_num_threads()),
        grad_values.data_ptr(),
        residual.data_ptr(),
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
    (n, d), dtype, threads = embeddings.shape, _native.compute_dtype(embeddings), torch.get_num_threads()
    x, inverse_sigma, labels, targets, scored = (
        t.contiguous() for t in (embeddings.to(dtype), inverse_sigma, labels, targets, scored)
    )
    is_double = dtype == torch.float64
    unit = torch.empty_like(x)
    inverse_norms = torch.empty(n, dtype=torch.float64)
    _native.core.dense_unit_rows(n, d, is_double, x.data_ptr(), unit.data_ptr(), inverse_norms.data_ptr(), threads)
    cosines = _product(unit, unit, transposed=True)

    loss, result = x.new_empty(()), x.new_empty(n, num_classes)
    reachable, lacks = torch.empty(n, dtype=torch.bool), torch.empty((), dtype=torch.float64)
    grad_sigma = torch.empty(n if want_gradient else 0, dtype=torch.float64)
    grad_cosines = torch.empty_like(cosines) if want_gradient else None
    _native.core.dense_loss(
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
        (
            math.nan if alpha is None else alpha,
            _native.NORMALIZE[normalization],
            target == "paper",
            smoothing,
            threads,
        ),
        (
            loss.data_ptr(),
            result.data_ptr(),
            reachable.data_ptr(),
            lacks.data_ptr(),
            0 if grad_cosines is None else grad_cosines.data_ptr(),
            grad_sigma.data_ptr(),
        ),
    )
    if grad_cosines is None:
        return loss, result, reachable, lacks, x.new_empty(0), grad_sigma
    grad_unit = _product(grad_cosines, unit, transposed=False)
    grad = torch.empty_like(x)
    _native.core.dense_unit_rows_backward(
        n,
        d,
        is_double,
        unit.data_ptr(),
        inverse_norms.data_ptr(),
        grad_unit.data_ptr(),
        grad.data_ptr(),
        threads,
    )
    return loss, result, reachable, lacks, grad, grad_sigma


def _product(a: Tensor, b: Tensor, *, transposed: bool) -> Tensor:
    """a @ b, or a @ b.T, of contiguous matrices: _product.product by a kernel in float32, four times as fast."""
    if a.dtype == torch.float64:
        return a @ (b.T if transposed else b)
    n, k, m = *a.shape, b.shape[0 if transposed else 1]
    c = a.new_empty(n, m)
    threads = torch.get_num_threads()
    _native.core.dense_product(n, k, m, a.data_ptr(), b.data_ptr(), transposed, c.data_ptr(), threads)
    return c
