"""Gradient of label propagation in Triton: one solve with the same system, one pass over the entries.

csrc/propagate/backward.cpp derives the formulas. With Lam from the adjoint solve and h_i = eps Lam_i . (F_i - prior), an
undirected weight's entries each get -(Lam_i - Lam_j) . (F_i - F_j) / 2 - (h_i + h_j) / 2; label spreading
alpha (Lam_i . F_j + Lam_j . F_i) / 2. Both orders of i and j give the same bits.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..._math import finest_tol
from ..protocol import System
from ._launch import INTERPRETED, cdiv, jit, launch
from .propagate import hidden_system
from .solver import column_tile, solve

ROWS = 128 if INTERPRETED else 4
EDGES = 4


@jit(run_time=("n", "classes"))
def entries_kernel(crow_ptr, col_ptr, lam_ptr, f_ptr, h_ptr, solved_ptr, reachable_ptr, grad_ptr, alpha, n, classes,
                   SPREADING: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Bytes: two rows of C numbers an entry, from L2 where they fit, and the entries."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(crow_ptr + row, row < n, 0)
    count = tl.load(crow_ptr + row + 1, row < n, 0) - begin
    solved_i = tl.load(solved_ptr + row, row < n, 0) > 0
    known_i = tl.load(reachable_ptr + row, row < n, 0) > 0
    h_i = tl.load(h_ptr + row, row < n, 0.0)
    own = row.to(tl.int64)[:, None] * classes
    for first in range(0, tl.max(count), EDGES):
        edge = first + tl.arange(0, EDGES)
        use = edge[None, :] < count[:, None]
        entry = begin[:, None] + edge[None, :]
        other = tl.load(col_ptr + entry, use, 0)
        counts = use & known_i[:, None] & (tl.load(reachable_ptr + other, use, 0) > 0)
        counts &= solved_i[:, None] | (tl.load(solved_ptr + other, use, 0) > 0)
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
            if SPREADING:
                dot += tl.sum(lam_i * f_j + lam_j * f_i, 2)
            else:
                dot += tl.sum((lam_i - lam_j) * (f_i - f_j), 2)
        if SPREADING:
            grad = 0.5 * alpha * dot
        else:
            grad = -0.5 * (dot + (h_i[:, None] + tl.load(h_ptr + other, use, 0.0)))
        tl.store(grad_ptr + entry, tl.where(counts, grad, 0.0).to(grad_ptr.dtype.element_ty), use)


def propagate_backward(
    problem: System, result: Tensor, reachable: Tensor, used_tol: Tensor, grad_result: Tensor
) -> tuple[Tensor, Tensor]:
    edges, alpha, prior_strength, max_iter = problem.edges, problem.alpha, problem.prior_strength, problem.max_iter
    crow, col, values, fixed, result = (
        t.contiguous() for t in (edges.crow, edges.col, edges.values, problem.fixed, result)
    )
    prior = problem.prior
    n, classes = result.shape
    hidden = hidden_system(crow, col, values, fixed, reachable, alpha, prior_strength)
    scale = hidden.scale[:, None]
    tol = max(float(used_tol), finest_tol(values))
    z, residual, _ = solve(hidden.system, (scale * grad_result.double()).to(values.dtype), None, tol, max_iter)
    lam = (scale * z.double()).to(values.dtype)
    h = prior_strength * (lam.double() * (result.double() - prior.double())).sum(1)
    grad_values = torch.empty_like(values)
    launch(
        entries_kernel, cdiv(n, ROWS), values, crow, col, lam, result, h, (hidden.scale > 0).to(torch.int8),
        reachable.to(torch.int8), grad_values, 0.0 if alpha is None else alpha, n, classes, SPREADING=alpha is not None,
        ROWS=ROWS, EDGES=EDGES, COLUMNS=min(column_tile(classes), 32),
    )  # fmt: skip
    return grad_values, residual
