"""Stage 1, topk: the k most similar documents of each, by cosine, without ever holding n x n numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _backends, _checks, _ops
from ._math import compute_dtype


class TopK(NamedTuple):
    """Result of :func:`cosine_topk`: ``values`` float [n, k] and ``indices`` int64 [n, k]."""

    values: Tensor
    indices: Tensor


TIE = 2e-6  # cosines nearer to each other than this may come in either order


def cosine_topk(
    queries: Tensor,
    corpus: Tensor | None = None,
    k: int = 15,
    *,
    exclude_self: bool | None = None,
    backend: str = "auto",
    hint: Tensor | None = None,
) -> TopK:
    """The k largest cosine similarities of every query row with the corpus rows, with gradient.

    Equivalent torch (which holds n x m numbers)::

        c = F.normalize(queries) @ F.normalize(corpus).T   # the diagonal at -inf if exclude_self
        values, indices = c.topk(k)

    Args:
        queries: [n, d] float64, float32, float16 or bfloat16; any row stride. Need not be normalised. A zero row has
            cosine 0 with everything and gradient 0; gradient 0 has, too, a row shorter than 1e-32 (float64: 1e-280).
        corpus: [m, d], the rows to search. None searches ``queries`` itself (half the work).
        k: neighbours per row, 1 to m (m - 1 if exclude_self).
        exclude_self: leave out corpus row i for query i, by index (duplicates stay). Default: True iff corpus is None.
        backend: "auto", "cpu", "cuda", "triton" or "reference".
        hint: int64 [n, any], indices of probably near rows (an earlier graph), -1 for none. It makes the search
            faster and never changes the result.

    The neighbours are exact: in float64, each selected cosine is at least each unselected one minus 2e-6.

    Shapes: queries [n, d], corpus [m, d] -> values [n, k], indices [n, k].

    Returns:
        TopK(values, indices), both [n, k], sorted by (value descending, index ascending). values are float32 (float64
        for float64 input) and differentiable: with g = dL/dvalues, dL/du_i += sum_r g_ir u_j and dL/du_j += g_ir u_i,
        then dL/dx = (I - u u^T) dL/du / |x|.

    Raises:
        TypeError, ValueError: naming the argument; a row that contains NaN or Inf is named by its index. Of rows on a
            GPU only with GLOSS_KERNELS_CHECK=1: else such a row has NaN for values.
        RuntimeError: a backend that was named and cannot run here; a second derivative, or one in forward mode or by
            torch.func (backend="reference" has all of them).

    Source: filter in 16 bit, compact, refine; docs/architecture.md, section 3.

    Example:
        >>> import torch
        >>> from gloss_kernels import cosine_topk
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> cosine_topk(x, k=1).indices.flatten().tolist()  # of each row the nearest other one
        [1, 0, 1]
        >>> cosine_topk(torch.tensor([[0.0, 2.0]]), x, k=2).indices.tolist()  # of a query, among the rows of x
        [[2, 1]]
    """
    _checks.matrix("queries", queries)
    if isinstance(corpus, int):
        raise TypeError(
            f"corpus must be a torch.Tensor or None, got {corpus}: give the number of neighbours as k={corpus}"
        )
    if corpus is not None:
        _checks.matrix("corpus", corpus, dim=queries.shape[1])
        _checks.same_device("corpus", corpus, queries)
        if corpus.dtype != queries.dtype:
            raise TypeError(f"corpus must be {queries.dtype} as queries, got {corpus.dtype}")
    if exclude_self is None:
        exclude_self = corpus is None
    rows = (queries if corpus is None else corpus).shape[0]
    if exclude_self and queries.shape[0] > rows:
        raise ValueError(
            f"exclude_self must be False where there are more queries than corpus rows, got {queries.shape[0]} queries "
            f"for {rows} rows"
        )
    candidates = rows - int(exclude_self)
    _checks.whole_number("k", k, 1)
    if k > candidates and queries.shape[0] > 0:
        note = ", itself left out" if exclude_self else ""
        raise ValueError(f"k must be at most {candidates} (corpus of {rows} rows{note}), got {k}")
    if hint is not None:
        columns = hint.shape[-1] if isinstance(hint, Tensor) and hint.ndim == 2 else "any"
        _checks.tensor("hint", hint, (queries.shape[0], columns), torch.int64)
        _checks.same_device("hint", hint, queries)
    chosen = _backends.resolve(backend, queries.device)
    if queries.shape[0] == 0:
        values = queries.new_empty((0, k), dtype=compute_dtype(queries))
        return TopK(values, values.new_empty((0, k), dtype=torch.int64))
    return TopK(*_ops.topk.cosine_topk(queries, corpus, k, exclude_self, hint, chosen))
