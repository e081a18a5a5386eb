"""Gradient of the cosines.

dL/du of a query row gathers its neighbours; of a corpus row, the queries that chose it, found by a stable sort of the
indices, so that sums run in a fixed order. Then dL/dx = (dL/du - (dL/du . u) u) / |x|. Bytes: 2 n k rows of the input,
mostly from L2, and the output three times.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._library import rows as contiguous_rows
from ...._math import compute_dtype, shortest_with_gradient
from ...protocol import SearchGradient
from .._launch import INTERPRETED, cdiv, jit, launch, power_of_two
from .pack import Rows, with_norms


@triton.jit
def add_rows(total, x_ptr, norm_ptr, row, weight, use, column, d, stride):
    """total + weight * unit row. row, weight, use [R]; column [C]; total [R, C] float64."""
    weight *= tl.load(norm_ptr + row, use, 0.0)
    x = tl.load(x_ptr + row[:, None] * stride + column[None, :], use[:, None] & (column < d)[None, :], 0.0)
    return total + weight[:, None] * x.to(tl.float64)


@jit(run_time=("n", "m"))
def gather_kernel(x_ptr, norm_ptr, chosen_ptr, grad_values_ptr, grad_ptr, chooser_ptr, chooser_norm_ptr, start_ptr,
                  places_ptr, n, m, k, d, stride, chooser_stride, CHOSEN: tl.constexpr, CHOOSERS: tl.constexpr,
                  ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """grad [n, d] <- dL/du. CHOSEN: of the rows that a row chose (in x [m, d]; NaN where it names none of them); CHOOSERS:
    of the rows that chose it."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    if CHOSEN:
        for r in range(0, k):
            at = row * k + r
            other = tl.load(chosen_ptr + at, inside, 0)
            known = inside & (other >= 0) & (other < m)
            weight = tl.load(grad_values_ptr + at, known, 0.0).to(tl.float64)
            total = add_rows(total, x_ptr, norm_ptr, other, weight, known, column, d, stride)
            total = tl.where((known == inside)[:, None], total, float("nan"))
    if CHOOSERS:
        begin = tl.load(start_ptr + row, inside, 0)
        count = tl.load(start_ptr + row + 1, inside, 0) - begin
        for r in range(0, tl.max(count)):
            use = inside & (r < count)
            place = tl.load(places_ptr + begin + r, use, 0)
            weight = tl.load(grad_values_ptr + place, use, 0.0).to(tl.float64)
            total = add_rows(total, chooser_ptr, chooser_norm_ptr, place // k, weight, use, column, d, chooser_stride)
    to = grad_ptr + row[:, None] * d + column[None, :]
    tl.store(to, total.to(grad_ptr.dtype.element_ty), inside[:, None] & (column < d)[None, :])


@jit(run_time=("n",))
def project_kernel(x_ptr, norm_ptr, grad_ptr, n, d, stride, LARGEST: tl.constexpr, ROWS: tl.constexpr,
                   COLUMNS: tl.constexpr):  # fmt: skip
    """grad <- (grad - (grad . u) u) / |x|, in place; 0 where 1 / |x| is 0 or above LARGEST."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    norm = tl.load(norm_ptr + row, row < n, 0.0)
    x_at = x_ptr + row.to(tl.int64) * stride
    grad_at = grad_ptr + row.to(tl.int64) * d
    along = tl.zeros([ROWS], tl.float64)
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        use = (row < n)[:, None] & (column < d)[None, :]
        x = tl.load(x_at[:, None] + column[None, :], use, 0.0).to(tl.float64)
        grad = tl.load(grad_at[:, None] + column[None, :], use, 0.0).to(tl.float64)
        along += tl.sum(grad * (x * norm[:, None]), 1)
    for first in range(0, d, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        use = (row < n)[:, None] & (column < d)[None, :]
        x = tl.load(x_at[:, None] + column[None, :], use, 0.0).to(tl.float64)
        grad = tl.load(grad_at[:, None] + column[None, :], use, 0.0).to(tl.float64)
        grad = (grad - along[:, None] * (x * norm[:, None])) * norm[:, None]
        grad = tl.where(((norm > 0) & (norm <= LARGEST))[:, None], grad, 0.0)
        tl.store(grad_at[:, None] + column[None, :], grad.to(grad_ptr.dtype.element_ty), use)


def cosine_topk_backward(problem: SearchGradient) -> tuple[Tensor, Tensor]:
    corpus, dtype = problem.corpus, compute_dtype(problem.queries)
    indices, grad_values = problem.indices.contiguous(), problem.grad_values.to(dtype).contiguous()
    rows = with_norms(contiguous_rows(problem.queries))
    others = rows if corpus is None else with_norms(contiguous_rows(corpus))
    grad_queries = grad_corpus = grad_values.new_empty(0)
    if problem.need_queries:
        grad_queries = gradient(rows, others, rows, indices, grad_values, True, corpus is None)
    if corpus is not None and problem.need_corpus:
        grad_corpus = gradient(others, others, rows, indices, grad_values, False, True)
    return grad_queries, grad_corpus


def gradient(
    own: Rows,
    chosen: Rows,
    choosers: Rows,
    indices: Tensor,
    grad_values: Tensor,
    from_chosen: bool,
    from_choosers: bool,
) -> Tensor:
    """Of the rows ``own``: from the rows of ``chosen`` that they chose, from those of ``choosers`` that chose them."""
    (n, d), k = own.data.shape, indices.shape[1]
    grad = grad_values.new_empty((n, d))
    start = places = indices
    if from_choosers:
        ordered, places = indices.flatten().sort(stable=True)
        start = torch.searchsorted(ordered, torch.arange(n + 1, dtype=torch.int64, device=indices.device))
    columns = min(power_of_two(max(d, 16)), 2048 if INTERPRETED else 256)
    rows = min(1024, (1 << 18) // columns) if INTERPRETED else max(1, 512 // columns)
    launch(
        gather_kernel, (cdiv(n, rows), cdiv(d, columns)), grad, chosen.data, chosen.inverse_norms, indices, grad_values,
        grad, choosers.data, choosers.inverse_norms, start, places, n, len(chosen.data), k, d, chosen.data.stride(0),
        choosers.data.stride(0), CHOSEN=from_chosen, CHOOSERS=from_choosers, ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    launch(
        project_kernel, cdiv(n, rows), grad, own.data, own.inverse_norms, grad, n, d, own.data.stride(0),
        LARGEST=1 / shortest_with_gradient(grad.dtype), ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    return grad
