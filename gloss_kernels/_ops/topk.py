"""Operators of stage topk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks, _derivatives
from .._backends.protocol import Search, SearchGradient
from .._math import compute_dtype


def cosine_topk(
    queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool, hint: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    if _backends.is_torch(backend):
        return _backends.get(backend).cosine_topk(Search(queries, corpus, k, exclude_self, hint))
    values, indices = differentiable_topk(queries, corpus, k, exclude_self, hint, backend)
    return values, indices


def check_matrices(queries: Tensor, corpus: Tensor | None) -> None:
    _checks.matrix("queries", queries)
    if corpus is not None:
        _checks.operands(queries, corpus=(corpus, (*corpus.shape[:1], queries.shape[1]), queries.dtype))


@torch.library.custom_op("gloss_kernels::cosine_topk", mutates_args=())
def cosine_topk_op(
    queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool, hint: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    check_matrices(queries, corpus)
    if hint is not None:
        _checks.operands(queries, hint=(hint, (queries.shape[0], *hint.shape[1:2]), torch.int64))
    corpus = None if corpus is None else corpus.detach()
    return _backends.kernels(backend).cosine_topk(Search(queries.detach(), corpus, k, exclude_self, hint))


@cosine_topk_op.register_fake
def _(
    queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool, hint: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    values = queries.new_empty((queries.shape[0], k), dtype=compute_dtype(queries))
    return values, values.new_empty(values.shape, dtype=torch.int64)


@torch.library.custom_op("gloss_kernels::cosine_topk_backward", mutates_args=())
def cosine_topk_backward_op(
    grad_values: Tensor,
    queries: Tensor,
    corpus: Tensor | None,
    indices: Tensor,
    need_queries: bool,
    need_corpus: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_matrices(queries, corpus)
    shape = (queries.shape[0], *grad_values.shape[1:2])
    _checks.operands(
        queries, grad_values=(grad_values, shape, grad_values.dtype), indices=(indices, shape, torch.int64)
    )
    gradient = SearchGradient(queries, corpus, indices, grad_values, need_queries, need_corpus)
    grad_queries, grad_corpus = _backends.kernels(backend).cosine_topk_backward(gradient)
    return grad_queries.to(queries.dtype), grad_corpus.to(queries.dtype)


@cosine_topk_backward_op.register_fake
def _(
    grad_values: Tensor,
    queries: Tensor,
    corpus: Tensor | None,
    indices: Tensor,
    need_queries: bool,
    need_corpus: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        queries.new_empty(queries.shape if need_queries else (0,)),
        queries.new_empty(corpus.shape if corpus is not None and need_corpus else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
    queries, corpus, *_, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    return queries, corpus, output[1]


def _backward(ctx: Any, kept: Any, grad_values: Tensor, _grad_indices: Tensor) -> tuple[Tensor | None, ...]:
    queries, corpus, indices = kept
    need_queries, need_corpus = ctx.needs_input_grad[0], corpus is not None and ctx.needs_input_grad[1]
    grad_queries, grad_corpus = cosine_topk_backward_op(
        grad_values, queries, corpus, indices, need_queries, need_corpus, ctx.backend
    )
    return (grad_queries if need_queries else None), (grad_corpus if need_corpus else None), *(None,) * 4


differentiable_topk = _derivatives.differentiable(cosine_topk_op, "cosine_topk", setup=_setup, backward=_backward)
