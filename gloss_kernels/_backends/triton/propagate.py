"""Stage propagate in Triton, forward: which rows are solved for, their system, and what is made of the solution."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .. import protocol
from ._launch import INTERPRETED, cdiv, jit, launch
from .solver import System, column_tile, row_tile, solve

EDGES = 4
REACH_ROWS = 256 if INTERPRETED else 64


class Hidden(NamedTuple):
    """The rows that are solved for, scaled to unit diagonal: (I - W) z = b, F = scale z."""

    system: System
    degree: Tensor  # float64 [n]: of the entries that count
    scale: Tensor  # float64 [n]; 0 for rows that are not solved for


@jit(run_time=("n",))
def reach_kernel(crow_ptr, col_ptr, values_ptr, reached_ptr, grown_ptr, n, ROWS: tl.constexpr, EDGES: tl.constexpr):
    """A row with a reached neighbour is reached; grown: some row was new. In place, so that one pass may go far."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    reached = tl.load(reached_ptr + row, row < n, 1).to(tl.int32)
    begin = tl.load(crow_ptr + row, row < n, 0)
    count = tl.where(reached > 0, 0, tl.load(crow_ptr + row + 1, row < n, 0) - begin)
    found = tl.zeros([ROWS], tl.int32)
    for first in range(0, tl.max(count), EDGES):
        edge = first + tl.arange(0, EDGES)
        use = edge[None, :] < count[:, None]
        entry = begin[:, None] + edge[None, :]
        use &= tl.load(values_ptr + entry, use, 0.0) > 0
        other = tl.load(reached_ptr + tl.load(col_ptr + entry, use, 0), use, 0)
        found = tl.maximum(found, tl.max(other.to(tl.int32), 1))
    tl.store(reached_ptr + row, found.to(tl.int8), found > 0)
    if tl.max(found) > 0:
        tl.store(grown_ptr, 1)


def find_reachable(crow: Tensor, col: Tensor, values: Tensor, fixed: Tensor) -> Tensor:
    """Rows with a path of positive weights to a fixed one. The host asks after some passes whether any row was new."""
    n = len(fixed)
    reached = fixed.to(torch.int8)
    passes = 1
    while True:
        grown = torch.zeros(1, dtype=torch.int32, device=fixed.device)
        for _ in range(passes):
            grown.zero_()
            launch(
                reach_kernel, cdiv(n, REACH_ROWS), values, crow, col, values, reached, grown, n, ROWS=REACH_ROWS,
                EDGES=EDGES,
            )  # fmt: skip
        if not bool(grown):
            return reached.bool()
        passes = 1 if INTERPRETED else min(2 * passes, 16)


@jit(run_time=("n",))
def degree_kernel(crow_ptr, col_ptr, values_ptr, counts_ptr, degree_ptr, n, ROWS: tl.constexpr, EDGES: tl.constexpr):
    """degree_i = sum of the positive weights to rows that count, in float64."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(crow_ptr + row, row < n, 0)
    count = tl.load(crow_ptr + row + 1, row < n, 0) - begin
    total = tl.zeros([ROWS], tl.float64)
    for first in range(0, tl.max(count), EDGES):
        edge = first + tl.arange(0, EDGES)
        use = edge[None, :] < count[:, None]
        entry = begin[:, None] + edge[None, :]
        value = tl.load(values_ptr + entry, use, 0.0).to(tl.float64)
        use &= tl.load(counts_ptr + tl.load(col_ptr + entry, use, 0), use, 0) > 0
        total += tl.sum(tl.where(use & (value > 0), value, 0.0), 1)
    tl.store(degree_ptr + row, total, row < n)


@jit(run_time=("n",))
def weights_kernel(crow_ptr, col_ptr, values_ptr, scale_ptr, weights_ptr, n, ROWS: tl.constexpr,
                   EDGES: tl.constexpr):  # fmt: skip
    """weights_e = scale_i value_e scale_j, 0 where a row is not solved for."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(crow_ptr + row, row < n, 0)
    count = tl.load(crow_ptr + row + 1, row < n, 0) - begin
    scale = tl.load(scale_ptr + row, row < n, 0.0)
    for first in range(0, tl.max(count), EDGES):
        edge = first + tl.arange(0, EDGES)
        use = edge[None, :] < count[:, None]
        entry = begin[:, None] + edge[None, :]
        other = tl.load(scale_ptr + tl.load(col_ptr + entry, use, 0), use, 0.0)
        value = tl.load(values_ptr + entry, use, 0.0).to(tl.float64)
        weight = tl.where(value > 0, scale[:, None] * value * other, 0.0)
        tl.store(weights_ptr + entry, weight.to(weights_ptr.dtype.element_ty), use)


def hidden_system(
    crow: Tensor, col: Tensor, values: Tensor, fixed: Tensor, reachable: Tensor, alpha: float | None, eps: float
) -> Hidden:
    n = len(fixed)
    solved = reachable if alpha is not None else reachable & ~fixed
    counts = (solved | fixed).to(torch.int8)
    degree, weights = values.new_empty(n, dtype=torch.float64), torch.empty_like(values)
    options = {"ROWS": REACH_ROWS, "EDGES": EDGES}
    launch(degree_kernel, cdiv(n, REACH_ROWS), values, crow, col, values, counts, degree, n, **options)
    if alpha is not None:
        scale = solved.double()
    else:
        scale = torch.where(solved, (torch.where(solved, degree, 1.0) * (1 + eps)).rsqrt(), 0.0)
    scaled = scale if alpha is None else scale * alpha**0.5
    launch(weights_kernel, cdiv(n, REACH_ROWS), values, crow, col, values, scaled, weights, n, **options)
    return Hidden(System(crow, col, weights, solved.nonzero().squeeze(1)), degree, scale)


@jit(run_time=("rows", "classes"))
def border_kernel(crow_ptr, col_ptr, values_ptr, fixed_ptr, boundary_ptr, scale_ptr, pull_ptr, prior_ptr, row_ptr, b_ptr,
                  rows, classes, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """b_i = scale_i sum of value_e boundary_j over the fixed neighbours j + pull_i prior."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < rows
    row = tl.load(row_ptr + at, inside, 0)
    begin = tl.load(crow_ptr + row, inside, 0)
    count = tl.load(crow_ptr + row + 1, inside, 0) - begin
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for edge in range(0, tl.max(count)):
        use = inside & (edge < count)
        other = tl.load(col_ptr + begin + edge, use, 0)
        use &= tl.load(fixed_ptr + other, use, 0) > 0
        value = tl.load(values_ptr + begin + edge, use, 0.0).to(tl.float64)
        use &= value > 0
        mask = use[:, None] & (column < classes)[None, :]
        y = tl.load(boundary_ptr + other[:, None] * classes + column[None, :], mask, 0.0)
        total += tl.where(use, value, 0.0)[:, None] * y.to(tl.float64)
    total *= tl.load(scale_ptr + row, inside, 0.0)[:, None]
    pull = tl.load(pull_ptr + row, inside, 0.0)
    prior = tl.load(prior_ptr + column, column < classes, 0.0).to(tl.float64)
    total += pull[:, None] * prior[None, :]
    to = b_ptr + row[:, None] * classes + column[None, :]
    tl.store(to, total.to(b_ptr.dtype.element_ty), inside[:, None] & (column < classes)[None, :])


def propagate(problem: protocol.System, boundary: Tensor, has_initial: bool, tol: float) -> protocol.Solution:
    edges, alpha, prior_strength, max_iter = problem.edges, problem.alpha, problem.prior_strength, problem.max_iter
    crow, col, values, fixed, boundary, prior = (
        t.contiguous() for t in (edges.crow, edges.col, edges.values, problem.fixed, boundary, problem.prior)
    )
    n, classes = boundary.shape
    reachable = find_reachable(crow, col, values, fixed) if n else fixed.clone()
    hidden = hidden_system(crow, col, values, fixed, reachable, alpha, prior_strength)
    rows = hidden.system.rows
    outside = torch.zeros_like(prior) if alpha is not None else prior
    result = torch.where(reachable[:, None], boundary, outside)
    right = right_side(crow, col, values, fixed, boundary, hidden, prior, alpha, prior_strength)
    start = None
    if has_initial:
        start = unscaled(boundary if alpha is None else boundary * ~fixed[:, None], hidden.scale)

    def solved(start: Tensor | None, tol: float, max_iter: int) -> tuple[Tensor, int]:
        z, residual, iterations = solve(hidden.system, right, start, tol, max_iter)
        result[rows] = (hidden.scale[rows, None] * z[rows].double()).to(result.dtype)
        return residual, iterations

    residual, iterations = solved(start, tol, max_iter)
    mean = (boundary.double() * fixed[:, None]).sum(0) / fixed.sum().clamp(min=1)
    if alpha is None and prior_strength == 0 and len(rows) and abs(float(mean.sum()) - 1) <= 1e-6:
        # Rows of the exact solution sum to 1. Documents that hang on the others by a small weight need a finer tol.
        allowed, finest = max(10 * tol, 0.01), 8 * torch.finfo(values.dtype).eps
        lacks = 1 - result[rows].double().sum(1)
        while float(lacks.abs().max()) > allowed and tol > finest and iterations < max_iter:
            tol = max(tol * 1e-2, finest)
            residual, more = solved(unscaled(result, hidden.scale), tol, max_iter - iterations)
            iterations += more
            lacks = 1 - result[rows].double().sum(1)
        residual = torch.where(lacks.abs().max() > allowed, residual.clamp(min=lacks.abs().max()), residual)
        # What a row still lacks goes to the classes in the proportion they have among the fixed rows.
        result[rows] += (lacks[:, None] * mean).to(result.dtype)
    count = torch.tensor(iterations, dtype=torch.int64, device=values.device)
    return protocol.Solution(result, count, residual, reachable, residual.new_tensor(tol))


def right_side(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    fixed: Tensor,
    boundary: Tensor,
    hidden: Hidden,
    prior: Tensor,
    alpha: float | None,
    eps: float,
) -> Tensor:
    """b [n, C], 0 in the rows that are not solved for."""
    if alpha is not None:
        return torch.where(fixed[:, None], (1 - alpha) * boundary.double(), 0.0).to(values.dtype)
    right, rows, classes = torch.zeros_like(boundary), hidden.system.rows, boundary.shape[1]
    pull = eps * hidden.degree * hidden.scale
    columns = column_tile(classes)
    block = row_tile(columns)
    launch(
        border_kernel, (cdiv(len(rows), block), cdiv(classes, columns)), values, crow, col, values,
        fixed.to(torch.int8), boundary, hidden.scale, pull, prior, rows, right, len(rows), classes, ROWS=block,
        COLUMNS=columns,
    )  # fmt: skip
    return right


def unscaled(f: Tensor, scale: Tensor) -> Tensor:
    """z of F = scale z; 0 where a row is not solved for."""
    known = scale[:, None] > 0
    return torch.where(known, f.double() / torch.where(known, scale[:, None], 1.0), 0.0).to(f.dtype)
