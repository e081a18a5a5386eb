"""The only place that touches pointers: torch tensors in, calls of the native core, torch tensors out.

Every function takes contiguous-in-a-row tensors of the right dtype and shape (the stages check) and runs on
``torch.get_num_threads()`` threads.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

core: Any
missing = ""
try:
    core = importlib.import_module("gloss_kernels._C")
except ImportError as error:  # a source tree that was not built: say so at the call, not at import
    core = None
    missing = (
        f"the native core is not built ({error}); run `pip install -e .` in the source tree, "
        "or start Python in another folder if the package is installed"
    )

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
_SYMMETRIZE = {None: 0, "sum": 1, "union": 2, "mutual": 3}
_NORMALIZE = {"row": 0, "symmetric": 1, "paper": 2}
_callback = threading.local()


@contextlib.contextmanager
def progress(report: Callable[[float], object]) -> Iterator[None]:
    """Within the block, ``cosine_topk`` calls ``report(share_done)`` now and then, share in 0..1, on this thread.

    An exception raised by ``report`` cancels the search and reaches the caller; Ctrl-C cancels it in any case.
    """
    before = getattr(_callback, "report", None)
    _callback.report = report
    try:
        yield
    finally:
        _callback.report = before


def matrix(x: Tensor) -> Tensor:
    """x itself where its rows are contiguous (any row stride), else a copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _view(x: Tensor) -> Any:
    return core.Matrix(x.data_ptr(), _DTYPES[x.dtype], x.shape[0], x.shape[1], x.stride(0))


def _is_double(x: Tensor) -> bool:
    """The core has float32 and float64 forms; anything else would be read with the wrong size."""
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"got {x.dtype}, wants float32 or float64")
    return x.dtype == torch.float64


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def cosine_topk(
    queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool, hint: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    queries = matrix(queries)
    corpus = queries if corpus is None else matrix(corpus)
    values = torch.empty(len(queries), k, dtype=compute_dtype(queries))
    indices = torch.empty(len(queries), k, dtype=torch.int64)
    hint = None if hint is None else hint.contiguous()
    stats = core.cosine_topk(
        _view(queries),
        _view(corpus),
        k,
        exclude_self,
        0 if hint is None else hint.data_ptr(),
        0 if hint is None else hint.shape[1],
        values.data_ptr(),
        indices.data_ptr(),
        torch.get_num_threads(),
        getattr(_callback, "report", None),
    )
    return values, indices, stats


def cosine_topk_backward(
    queries: Tensor, corpus: Tensor | None, indices: Tensor, grad_values: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients in the compute dtype; an empty tensor where one is not needed. With corpus None the first has both."""
    queries = matrix(queries)
    other = queries if corpus is None else matrix(corpus)
    dtype = compute_dtype(queries)
    indices, grad_values = indices.contiguous(), grad_values.to(dtype).contiguous()
    grad_queries = torch.empty(queries.shape if need[0] else (0,), dtype=dtype)
    grad_corpus = torch.empty(other.shape if need[1] and corpus is not None else (0,), dtype=dtype)
    core.cosine_topk_backward(
        _view(queries),
        _view(other),
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
    capacity = structure_capacity(n, k, symmetrize)
    crow = torch.empty(n + 1, dtype=torch.int64)
    col, forward, reverse = (torch.empty(capacity, dtype=torch.int64) for _ in range(3))
    indices = indices.contiguous()
    core.knn_structure(
        indices.data_ptr(),
        n,
        k,
        _SYMMETRIZE[symmetrize],
        crow.data_ptr(),
        col.data_ptr(),
        forward.data_ptr(),
        reverse.data_ptr(),
        torch.get_num_threads(),
    )
    return crow, col, forward, reverse


def structure_capacity(n: int, k: int, symmetrize: str | None) -> int:
    return n * k if symmetrize in (None, "mutual") else 2 * n * k


def combine_edges(weights: Tensor, forward: Tensor, reverse: Tensor, symmetrize: str | None) -> Tensor:
    weights = weights.contiguous()
    values = torch.empty(len(forward), dtype=weights.dtype)
    core.combine_edges(
        len(forward),
        forward.data_ptr(),
        reverse.data_ptr(),
        _SYMMETRIZE[symmetrize],
        _is_double(weights),
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
    core.combine_edges_backward(
        len(forward),
        weights.numel(),
        forward.data_ptr(),
        reverse.data_ptr(),
        _SYMMETRIZE[symmetrize],
        _is_double(weights),
        weights.data_ptr(),
        grad_values.data_ptr(),
        grad_weights.data_ptr(),
        torch.get_num_threads(),
    )
    return grad_weights


def normalize_edges(crow: Tensor, col: Tensor, values: Tensor, normalization: str) -> Tensor:
    values = values.contiguous()
    normalized = torch.zeros_like(values)
    core.normalize_edges(
        crow.data_ptr(),
        col.data_ptr(),
        len(crow) - 1,
        _is_double(values),
        values.data_ptr(),
        _NORMALIZE[normalization],
        normalized.data_ptr(),
        torch.get_num_threads(),
    )
    return normalized


def normalize_edges_backward(
    grad_normalized: Tensor, crow: Tensor, col: Tensor, values: Tensor, normalization: str
) -> Tensor:
    values, grad_normalized = values.contiguous(), grad_normalized.contiguous()
    grad_values = torch.zeros_like(values)
    core.normalize_edges_backward(
        crow.data_ptr(),
        col.data_ptr(),
        len(crow) - 1,
        _is_double(values),
        values.data_ptr(),
        _NORMALIZE[normalization],
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
) -> tuple[Tensor, int, Tensor, Tensor, Tensor]:
    """F [n, C], iterations, residual [C], reachable [n], the tol used [] (csrc/gloss.h)."""
    values, fixed, boundary, prior = (t.contiguous() for t in (values, fixed, boundary, prior))
    result = torch.empty_like(boundary)
    residual = torch.empty(boundary.shape[1], dtype=torch.float64)
    reachable = torch.empty(len(fixed), dtype=torch.bool)
    used_tol = torch.empty((), dtype=torch.float64)
    iterations = core.propagate(
        crow.data_ptr(),
        col.data_ptr(),
        len(fixed),
        _is_double(values),
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
    alpha: float | None,
    prior_strength: float,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, int, Tensor]:
    """dL/dvalues [nnz], iterations, residual [C]."""
    values, fixed, prior, result, grad_result = (t.contiguous() for t in (values, fixed, prior, result, grad_result))
    grad_values = torch.zeros_like(values)
    residual = torch.empty(result.shape[1], dtype=torch.float64)
    iterations = core.propagate_backward(
        crow.data_ptr(),
        col.data_ptr(),
        len(fixed),
        _is_double(values),
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
    return grad_values, iterations, residual
