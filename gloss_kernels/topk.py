"""Stage 1, topk: the k most similar documents of each, by cosine, without ever holding n x n numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _dispatch, _native, _validate, reference


class TopK(NamedTuple):
    """Result of :func:`cosine_topk`: ``values`` float [n, k] and ``indices`` int64 [n, k]."""

    values: Tensor
    indices: Tensor


def cosine_topk(
    queries: Tensor,
    corpus: Tensor | None = None,
    k: int = 15,
    *,
    exclude_self: bool | None = None,
    exact: bool = True,
    backend: str = "auto",
    hint: Tensor | None = None,
) -> TopK:
    """The k largest cosine similarities of every query row with the corpus rows, with gradient.

    Equivalent torch (which holds n x m numbers)::

        c = F.normalize(queries) @ F.normalize(corpus).T   # the diagonal at -inf if exclude_self
        values, indices = c.topk(k)

    Args:
        queries: [n, d] float64, float32, float16 or bfloat16; any row stride. Need not be normalised. A zero row has
            cosine 0 with everything and gradient 0.
        corpus: [m, d], the rows to search. None searches ``queries`` itself (half the work).
        k: neighbours a row, 1 to m (m - 1 if exclude_self).
        exclude_self: leave out corpus row i for query i, by index (duplicates stay). Default: True iff corpus is None.
        exact: True gives the exact neighbours: in float64, each selected cosine is at least each unselected one minus
            2e-6. False is reserved for approximate search and raises for now.
        backend: "auto", "cpu", "cuda", "triton" or "reference".
        hint: int64 [n, any], indices of probably near rows (an earlier graph), -1 for none. It makes the search
            faster and never changes the result.

    Returns:
        TopK(values, indices), both [n, k], sorted by (value descending, index ascending). values are float32 (float64
        for float64 input) and differentiable: with g = dL/dvalues, dL/du_i += sum_r g_ir u_j and dL/du_j += g_ir u_i,
        then dL/dx = (I - u u^T) dL/du / |x|.

    Raises:
        TypeError, ValueError: naming the argument; a row that holds NaN or Inf is named by its index.
    """
    _validate.matrix("queries", queries)
    if corpus is not None:
        _validate.matrix("corpus", corpus, dim=queries.shape[1])
        _validate.same_device("corpus", corpus, queries)
        if corpus.dtype != queries.dtype:
            raise TypeError(f"corpus: got {corpus.dtype}, wants {queries.dtype} as queries")
    if exclude_self is None:
        exclude_self = corpus is None
    rows = len(queries if corpus is None else corpus)
    if exclude_self and len(queries) > rows:
        raise ValueError(f"exclude_self: query i leaves out corpus row i, got {len(queries)} queries for {rows} rows")
    candidates = rows - int(exclude_self)
    _validate.whole_number("k", k, 1)
    if k > candidates and len(queries) > 0:
        note = ", itself left out" if exclude_self else ""
        raise ValueError(f"k: got {k}, but a row has only {candidates} candidates (corpus of {rows} rows{note})")
    if not exact:
        raise ValueError("exact: got False; approximate search is not there yet")
    if hint is not None:
        columns = hint.shape[-1] if isinstance(hint, Tensor) and hint.ndim == 2 else "any"
        _validate.tensor("hint", hint, (len(queries), columns), torch.int64)
        _validate.same_device("hint", hint, queries)
    chosen = _dispatch.resolve(backend, queries.device)
    if len(queries) == 0:
        values = queries.new_empty((0, k), dtype=_native.compute_dtype(queries))
        return TopK(values, values.new_empty((0, k), dtype=torch.int64))
    if chosen == "reference":
        check_finite("queries", queries)
        if corpus is not None:
            check_finite("corpus", corpus)
        values, indices = reference.cosine_topk(queries, corpus, k, exclude_self)
        return TopK(values.to(_native.compute_dtype(queries)), indices)
    return TopK(*cosine_topk_op(queries, corpus, k, exclude_self, hint, chosen))


def check_finite(name: str, x: Tensor) -> None:
    bad = ~torch.isfinite(x).all(dim=1)
    if bool(bad.any()):
        raise ValueError(f"{name}: row {int(bad.nonzero()[0])} holds NaN or Inf")


# ------------------------------------------------------------------------------------------- operators
@torch.library.custom_op("gloss_kernels::cosine_topk", mutates_args=())
def cosine_topk_op(
    queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool, hint: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    return _dispatch.kernels(backend).cosine_topk(queries.detach(), _detached(corpus), k, exclude_self, hint)


@cosine_topk_op.register_fake
def _(
    queries: Tensor, corpus: Tensor | None, k: int, exclude_self: bool, hint: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    values = queries.new_empty((queries.shape[0], k), dtype=_native.compute_dtype(queries))
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
    kernels, need = _dispatch.kernels(backend), (need_queries, need_corpus)
    grads = kernels.cosine_topk_backward(queries, corpus, indices, grad_values, need)
    return grads[0].to(queries.dtype), grads[1].to(queries.dtype)


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


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, corpus, *_, ctx.backend = inputs
    ctx.save_for_backward(queries, corpus, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_values: Tensor, _grad_indices: Tensor) -> tuple[Tensor | None, ...]:
    queries, corpus, indices = ctx.saved_tensors
    need_queries, need_corpus = ctx.needs_input_grad[0], corpus is not None and ctx.needs_input_grad[1]
    grad_queries, grad_corpus = cosine_topk_backward_op(
        grad_values, queries, corpus, indices, need_queries, need_corpus, ctx.backend
    )
    return (grad_queries if need_queries else None), (grad_corpus if need_corpus else None), *(None,) * 4


cosine_topk_op.register_autograd(_backward, setup_context=_setup)


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()
