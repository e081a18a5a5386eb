"""The harmonic system in Triton: the two kernels of the multilevel solver (_backends/multilevel.py: FlowKernels)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..hierarchy import Level
from ..multilevel import Ends
from ..protocol import Edges
from ._launch import INTERPRETED, cdiv, jit, launch
from .solver import EDGES, column_tile, row_tile

GRADIENT_ROWS, GRADIENT_EDGES, GRADIENT_COLUMNS = 128 if INTERPRETED else 4, 4, 32


@jit(run_time=("rows", "columns"))
def flow_kernel(crow_ptr, col_ptr, weight_ptr, excess_ptr, x_ptr, right_ptr, out_ptr, rows, columns,
                REMAINDER: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """out = A x, (A x)_i = e_i x_i + sum_j W_ij (x_i - x_j). REMAINDER: right - A x.

    Bytes, v = rows x columns x sizeof: x and out 2 v (3 v with a right side), 8 or 12 an entry, and a gathered row an
    entry, mostly from the second-level cache where rows stand in the order of their groups.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.load(crow_ptr + row, row < rows, 0)
    count = tl.load(crow_ptr + row + 1, row < rows, 0) - begin
    own = row.to(tl.int64)[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    x = tl.load(x_ptr + own, mask, 0.0)
    sums = tl.load(excess_ptr + row, row < rows, 0.0)[:, None] * x
    for first in range(0, tl.max(count), EDGES):
        edge = first + tl.arange(0, EDGES)
        use = edge[None, :] < count[:, None]
        weight = tl.load(weight_ptr + begin[:, None] + edge[None, :], use, 0.0)
        other = tl.load(col_ptr + begin[:, None] + edge[None, :], use, 0).to(tl.int64)
        near = other[:, :, None] * columns + column[None, None, :]
        y = tl.load(x_ptr + near, use[:, :, None] & (column < columns)[None, None, :], 0.0)
        sums += tl.sum(weight[:, :, None] * (x[:, None, :] - y), 1)
    if REMAINDER:
        sums = tl.load(right_ptr + own, mask, 0.0) - sums
    tl.store(out_ptr + own, sums, mask)


@triton.jit
def difference(a, b, noise):
    """a - b, 0 where that is the noise of what they were computed with."""
    d = a - b
    return tl.where(tl.abs(d) > noise * tl.maximum(tl.abs(a), tl.abs(b)), d, 0.0)


@jit(run_time=("n", "columns"))
def flow_gradient_kernel(crow_ptr, col_ptr, lam_ptr, f_ptr, pull_ptr, reachable_ptr, noise_ptr, grad_ptr, n, columns,
                         ROWS: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Bytes: two rows of columns numbers an entry, from L2 where they fit. Both entries of an edge get the same bits."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(crow_ptr + row, row < n, 0)
    count = tl.load(crow_ptr + row + 1, row < n, 0) - begin
    known = tl.load(reachable_ptr + row, row < n, 0) > 0
    pull = tl.load(pull_ptr + row, row < n, 0.0)
    lam_noise, f_noise = tl.load(noise_ptr), tl.load(noise_ptr + 1)  # in float64: an argument would be float32
    own = row.to(tl.int64)[:, None] * columns
    for first in range(0, tl.max(count), EDGES):
        edge = first + tl.arange(0, EDGES)
        use = edge[None, :] < count[:, None]
        entry = begin[:, None] + edge[None, :]
        other = tl.load(col_ptr + entry, use, 0)
        counts = use & known[:, None] & (tl.load(reachable_ptr + other, use, 0) > 0) & (other != row[:, None])
        dot = tl.zeros([ROWS, EDGES], tl.float64)
        for start in range(0, columns, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            mask = (row < n)[:, None] & (column < columns)[None, :]
            both = counts[:, :, None] & (column < columns)[None, None, :]
            at = other[:, :, None] * columns + column[None, None, :]
            lam_i = tl.load(lam_ptr + own + column[None, :], mask, 0.0)[:, None, :]
            f_i = tl.load(f_ptr + own + column[None, :], mask, 0.0)[:, None, :]
            lam = difference(lam_i, tl.load(lam_ptr + at, both, 0.0), lam_noise)
            f = difference(f_i, tl.load(f_ptr + at, both, 0.0), f_noise)
            dot += tl.sum(tl.where(both, lam * f, 0.0), 2)
        grad = -0.5 * (dot + (pull[:, None] + tl.load(pull_ptr + other, use, 0.0)))
        tl.store(grad_ptr + entry, tl.where(counts, grad, 0.0), use)


def flow(level: Level, x: Tensor, right: Tensor | None) -> Tensor:
    out, (rows, columns) = torch.empty_like(x), x.shape
    tile = column_tile(columns)
    block = row_tile(tile)
    launch(
        flow_kernel, (cdiv(rows, block), cdiv(columns, tile)), x, level.crow, level.col, level.weight, level.excess, x,
        x if right is None else right, out, rows, columns, REMAINDER=right is not None, ROWS=block, EDGES=EDGES,
        COLUMNS=tile,
    )  # fmt: skip
    return out


def flow_gradient(edges: Edges, ends: Ends) -> Tensor:
    n, columns = ends.f.shape
    grad_values = torch.zeros_like(edges.values, dtype=torch.float64, memory_format=torch.contiguous_format)
    noise = torch.tensor([ends.lam_noise, ends.f_noise], dtype=torch.float64, device=ends.f.device)
    launch(
        flow_gradient_kernel, cdiv(n, GRADIENT_ROWS), ends.f, edges.crow, edges.col, ends.lam, ends.f, ends.pull,
        ends.reachable.to(torch.int8), noise, grad_values, n, columns, ROWS=GRADIENT_ROWS, EDGES=GRADIENT_EDGES,
        COLUMNS=min(column_tile(columns), GRADIENT_COLUMNS),
    )  # fmt: skip
    return grad_values
