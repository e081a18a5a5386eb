"""Every pair: the whole search for float64, for few rows and for large k."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .._launch import INTERPRETED, cdiv, jit, launch
from .pack import Rows

SCORE_BYTES = 256 << 20


@jit(run_time=("begin", "n", "m"))
def scores_kernel(query_ptr, query_norm_ptr, corpus_ptr, corpus_norm_ptr, scores_ptr, begin, n, m, d, query_stride,
                  corpus_stride, EXCLUDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """scores [n - begin, m]: cosines, summed in float64 one column of d at a time. -2: a corpus row that is not finite;
    -3: the row itself."""
    across = (m + COLUMNS - 1) // COLUMNS  # tiles; all of them along x: either extent may pass 65,535
    row = begin + tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    other = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    of_row = tl.load(query_norm_ptr + row, row < n, 0.0)
    of_other = tl.load(corpus_norm_ptr + other, other < m, 0.0)
    x_at = query_ptr + row.to(tl.int64) * query_stride
    y_at = corpus_ptr + other.to(tl.int64) * corpus_stride
    use_row, use_other = (row < n) & (of_row == of_row), (other < m) & (of_other == of_other)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for c in range(0, d):
        x = tl.load(x_at + c, use_row, 0.0).to(tl.float64) * of_row
        y = tl.load(y_at + c, use_other, 0.0).to(tl.float64) * of_other
        total += x[:, None] * y[None, :]
    total = tl.where((of_row == of_row)[:, None], total, 0.0)
    total = tl.where((of_other == of_other)[None, :], total, -2.0) + 0.0
    if EXCLUDE:
        total = tl.where(row[:, None] == other[None, :], -3.0, total)
    to = (row - begin).to(tl.int64)[:, None] * m + other[None, :]
    tl.store(scores_ptr + to, total.to(scores_ptr.dtype.element_ty), (row < n)[:, None] & (other < m)[None, :])


def exact_search(queries: Rows, corpus: Rows, exclude_self: bool, values: Tensor, indices: Tensor) -> None:
    """The k best of all corpus rows for every query. A stable sort puts equal values in the order of their indices."""
    (x, query_norms), (y, corpus_norms) = queries, corpus
    (n, k), m = values.shape, len(y)
    chunk = max(1, min(n, SCORE_BYTES // (m * values.element_size() * 3)))  # scores, and what the sort makes of them
    shape = (256, 256) if INTERPRETED else (32, 64)
    for begin in range(0, n, chunk):
        end = min(n, begin + chunk)
        scores = values.new_empty((end - begin, m))
        launch(
            scores_kernel, cdiv(m, shape[1]) * cdiv(end - begin, shape[0]), x, x, query_norms, y, corpus_norms, scores,
            begin, end, m, x.shape[1], x.stride(0), y.stride(0), EXCLUDE=exclude_self, ROWS=shape[0], COLUMNS=shape[1],
        )  # fmt: skip
        best, order = scores.sort(dim=1, descending=True, stable=True)
        best, order = best[:, :k], order[:, :k]
        bad = (best < -1.5) | torch.isnan(query_norms[begin:end])[:, None]
        values[begin:end] = torch.where(bad, torch.nan, best)
        indices[begin:end] = order
