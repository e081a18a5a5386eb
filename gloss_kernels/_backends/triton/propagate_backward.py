"""Gradient of label propagation in Triton: one solve with the same system, one pass over the entries.

csrc/propagate/backward.cpp derives the formulas. Of the harmonic solution: multilevel.py and flow.py. Of label spreading:
with Lam from the adjoint solve an undirected weight's entries each get alpha (Lam_i . F_j + Lam_j . F_i) / 2. Both orders
of i and j give the same bits.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..._math import finest_tol
from .. import multilevel
from ..protocol import System
from . import flow
from ._launch import INTERPRETED, cdiv, jit, launch
from .propagate import spreading_system
from .solver import column_tile, solve

ROWS = 128 if INTERPRETED else 4
EDGES = 4


@jit(run_time=("n", "classes"))
def entries_kernel(crow_ptr, col_ptr, lam_ptr, f_ptr, reachable_ptr, grad_ptr, alpha, n, classes, ROWS: tl.constexpr,
                   EDGES: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Bytes: two rows of C numbers an entry, from L2 where they fit, and the entries."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(crow_ptr + row, row < n, 0)
    count = tl.load(crow_ptr + row + 1, row < n, 0) - begin
    known = tl.load(reachable_ptr + row, row < n, 0) > 0
    own = row.to(tl.int64)[:, None] * classes
    for first in range(0, tl.max(count), EDGES):
        edge = first + tl.arange(0, EDGES)
        use = edge[None, :] < count[:, None]
        entry = begin[:, None] + edge[None, :]
        other = tl.load(col_ptr + entry, use, 0)
        counts = use & known[:, None] & (tl.load(reachable_ptr + other, use, 0) > 0)
        dot = tl.zeros([ROWS, EDGES], tl.float64)
        for start in range(0, classes, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            mask = (row < n)[:, None] & (column < classes)[None, :]
            lam_i = tl.load(lam_ptr + own + column[None, :], mask, 0.0).to(tl.float64)[:, None, :]
            f_i = tl.load(f_ptr + own + column[None, :], mask, 0.0).to(tl.float64)[:, None, :]
            at = other[:, :, None] * classes + column[None, None, :]
            both = counts[:, :, None] & (column < classes)[None, None, :]
            lam_j = tl.load(lam_ptr + at, both, 0.0).to(tl.float64)
            f_j = tl.load(f_ptr + at, both, 0.0).to(tl.float64)
            dot += tl.sum(lam_i * f_j + lam_j * f_i, 2)
        grad = 0.5 * alpha * dot
        tl.store(grad_ptr + entry, tl.where(counts, grad, 0.0).to(grad_ptr.dtype.element_ty), use)


def propagate_backward(
    problem: System, result: Tensor, reachable: Tensor, used_tol: Tensor, grad_result: Tensor
) -> tuple[Tensor, Tensor]:
    edges, alpha = problem.edges, problem.alpha
    if alpha is None:
        return multilevel.propagate_backward(flow, problem, result, reachable, used_tol, grad_result)
    n, classes = result.shape
    rows = reachable.nonzero().squeeze(1)
    system = spreading_system(edges, alpha, rows, result.dtype)
    tol = max(float(used_tol), finest_tol(result))
    right = torch.where(reachable[:, None], grad_result, 0.0).contiguous()
    lam, residual, _ = solve(system, right, None, tol, problem.max_iter)
    grad_values = torch.zeros_like(edges.values, memory_format=torch.contiguous_format)
    launch(
        entries_kernel, cdiv(n, ROWS), result, system.crow, system.col, lam, result.contiguous(),
        reachable.to(torch.int8), grad_values, alpha, n, classes, ROWS=ROWS, EDGES=EDGES,
        COLUMNS=min(column_tile(classes), 32),
    )  # fmt: skip
    return grad_values, residual
