"""The harmonic system on a GPU: conjugate gradients with the multilevel preconditioner, by torch operations.

What takes the time is a kernel of the backend: y = A x on a level (class FlowKernels). The rest passes over panels
[rows, C] of all classes, one step and one beta a class. The host waits for the device once an iteration, to see whether
any class goes on; so this cannot be captured in a CUDA graph. csrc/propagate/multilevel.h is the same in C++.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .hierarchy import Graph, Hierarchy, Level, build_hierarchy, segment_sums, starts
from .protocol import Edges, Solution, System

FINEST_ADJOINT = 1e-13  # tol, relative to each row: float64 rounds to 1e-16, times what the sums of a row add
ROUNDS = 6  # times that the true residual replaces that of the recurrence, which drifts


class FlowKernels(Protocol):
    def flow(self, level: Level, x: Tensor, right: Tensor | None) -> Tensor:
        """A x, (A x)_i = e_i x_i + sum_j W_ij (x_i - x_j), or right - A x; all [rows, C] in the dtype of the level."""

    def flow_gradient(self, edges: Edges, ends: Ends) -> Tensor:
        """dL/dvalues, float64 [nnz or longer]: of entry (i, j), both rows reachable, i != j,
        -(Lam_i - Lam_j) . (F_i - F_j) / 2 - (pull_i + pull_j) / 2; 0 elsewhere. A difference of a class counts where it
        is larger than lam_noise, or f_noise, times the larger of the two numbers."""


class Ends(NamedTuple):
    """What the gradient of an edge takes from its rows."""

    lam: Tensor  # float64 [n, C], the adjoint solution; 0 outside the rows that are solved for
    f: Tensor  # float64 [n, C]
    pull: Tensor  # float64 [n]: eps Lam_i . (F_i - prior)
    reachable: Tensor  # bool [n]
    lam_noise: float
    f_noise: float


class Hidden(NamedTuple):
    """The rows that are solved for. Those of the hierarchy stand in its order."""

    node: Tensor  # int64 [rows]: row of the hierarchy -> node
    hierarchy: Hierarchy
    border: Level  # on all nodes: the edges from the rows to fixed nodes
    degree: Tensor  # float64 [n]

    @property
    def dtype(self) -> torch.dtype:
        return self.border.weight.dtype


def propagate(kernels: FlowKernels, system: System, boundary: Tensor, has_initial: bool, tol: float) -> Solution:
    edges, fixed, eps = system.edges, system.fixed, system.prior_strength
    reachable = reachable_rows(edges, fixed)
    hidden = hidden_rows(edges, fixed, reachable, eps, tol)
    node, dtype, prior = hidden.node, hidden.dtype, system.prior.double()
    labels = torch.where(fixed[:, None], boundary, 0)
    # The rows have x = 0 and no excess here, so that what flows in is -b.
    right = -kernels.flow(hidden.border, labels.to(dtype).contiguous(), None)[node]
    if eps > 0:
        pull = eps * hidden.hierarchy.scale * hidden.degree[node]
        right += (pull[:, None] * prior).to(dtype)
    mean = labels.double().sum(0) / fixed.sum().clamp(min=1)
    start = boundary[node].to(dtype) if has_initial else mean.to(dtype).expand_as(right).clone()
    x, residual, iterations = Solver(kernels, hidden.hierarchy, tol, system.max_iter).solve(right, start, False)

    f = x.double()
    if bool((mean.sum() - 1).abs() <= 1e-6) and (eps == 0 or bool((prior.sum() - 1).abs() <= 1e-6)):
        # As of the exact solution. What a row lacks is shared as the labels are: each class lacks its own part.
        f = (f + (1 - f.sum(1, keepdim=True)) * mean).clamp(min=0)
        f = f / f.sum(1, keepdim=True)
    result = torch.where(reachable[:, None], boundary, system.prior)
    result[node] = f.to(result.dtype)
    count = torch.tensor(iterations, dtype=torch.int64, device=result.device)
    return Solution(result, count, residual, reachable, residual.new_tensor(tol))


def propagate_backward(
    kernels: FlowKernels, system: System, result: Tensor, reachable: Tensor, used_tol: Tensor, grad_result: Tensor
) -> tuple[Tensor, Tensor]:
    """The adjoint is solved with columns of size 1: Lam reaches 1e70 inside tight groups far from the labels."""
    edges, tol = Edges(*(t.contiguous() for t in system.edges)), max(float(used_tol), FINEST_ADJOINT)
    hidden = hidden_rows(edges, system.fixed, reachable, system.prior_strength, tol)
    right = grad_result[hidden.node].double()
    size = right.abs().amax(0) if len(right) else right.new_zeros(right.shape[1])
    right = (right / torch.where(size > 0, size, 1.0)).to(hidden.dtype)
    solver = Solver(kernels, hidden.hierarchy, tol, system.max_iter)
    x, residual, _ = solver.solve(right, torch.zeros_like(right), True)
    f = result.double()
    lam = torch.zeros_like(f, memory_format=torch.contiguous_format)
    lam[hidden.node] = x.double() * (size * hidden.hierarchy.scale)
    pull = system.prior_strength * (lam * (f - system.prior.double())).sum(1)
    eps = torch.finfo(hidden.dtype).eps
    # F was solved for in the same dtype, whatever it is stored in; 64 ulp of Lam is what its solve leaves of noise.
    f_noise = 4 * max(eps, torch.finfo(result.dtype).eps)
    ends = Ends(lam, f.contiguous(), pull, reachable, 64 * eps, f_noise)
    return kernels.flow_gradient(edges, ends).to(edges.values.dtype), residual


class Solver:
    def __init__(self, kernels: FlowKernels, hierarchy: Hierarchy, tol: float, max_iter: int) -> None:
        self.flow, self.hierarchy, self.tol, self.max_iter = kernels.flow, hierarchy, tol, max_iter

    def solve(self, b: Tensor, x: Tensor, relative: bool) -> tuple[Tensor, Tensor, int]:
        """x with A x = b from a start, in place; the residual of each column, float64 [C]; iterations.

        A column is done when the correction that a cycle would make to any of its numbers is at most tol: number by
        number, so that rows of small weights count as much as others. ``relative``: at most tol times the largest
        number of its row (or b / diagonal), as rows may differ by 1e70; the energy norm, of which the largest rows have
        everything, would be content with any values in the others. This size is the residual.
        """
        top, iterations = self.hierarchy.levels[0], 0
        size = b.new_zeros(b.shape[1], dtype=torch.float64)
        if not len(b):
            return x, size, 0
        wanted = (b != 0).any(0)
        x *= wanted
        least = (b.abs() * top.damped).amax(1) if relative else None
        for attempt in range(ROUNDS + 1):
            r = self.flow(top, x, b)
            z = self.cycle(0, r)
            along = dots(r, z)
            size = largest(z, x, least) * wanted
            active = wanted & (along > 0)
            if attempt == ROUNDS or iterations >= self.max_iter or not bool((active & (size > self.tol)).any()):
                break
            p = z
            while iterations < self.max_iter:
                q = self.flow(top, p, None)
                curvature = dots(p, q)
                active &= curvature > 0
                step = torch.where(active, along / torch.where(active, curvature, 1.0), 0.0)
                x.addcmul_(step.to(x.dtype), p)
                r.addcmul_(step.to(r.dtype), q, value=-1)
                iterations += 1
                z = self.cycle(0, r)
                before, along = along, dots(r, z)
                beta = torch.where(active, along / torch.where(active, before, 1.0), 0.0)
                # A column that is done goes on with the others: what many lack of a row's sum is then far below tol.
                active &= along > 0
                if not bool((active & (largest(z, x, least) > self.tol)).any()):
                    break
                p = torch.addcmul(z, beta.to(p.dtype), p)
        return x, size, iterations

    def cycle(self, depth: int, r: Tensor) -> Tensor:
        """About A^-1 r by a V-cycle: a damped Jacobi step from 0, the next level's correction, a Jacobi step."""
        levels, inverse = self.hierarchy.levels, self.hierarchy.inverse
        level = levels[depth]
        if depth + 1 == len(levels) and inverse is not None:
            return (inverse @ r.double()).to(r.dtype)
        z = level.damped * r
        grouped = len(level.group)
        if grouped:
            below = segment_sums(self.flow(level, z, r)[:grouped], level.first)
            z[:grouped] += self.cycle(depth + 1, below)[level.group]
        return torch.addcmul(z, level.damped, self.flow(level, z, r))


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Of the columns, float64 [C]."""
    return (a.double() * b).sum(0)


def largest(z: Tensor, x: Tensor, least: Tensor | None) -> Tensor:
    """Of the columns of |z|, float64 [C]; with the least size of a row, relative to the largest |x| of the row."""
    if least is None:
        return z.abs().amax(0).double()
    size = torch.maximum(x.abs().amax(1), least)[:, None]
    return torch.where(size > 0, z.abs() / torch.where(size > 0, size, 1.0), 0.0).amax(0).double()


def hidden_rows(edges: Edges, fixed: Tensor, reachable: Tensor, eps: float, tol: float) -> Hidden:
    n, nnz = len(fixed), int(edges.crow[-1])
    col, values = edges.col[:nnz], edges.values[:nnz].double()
    row = rows_of(edges.crow, nnz)
    solved = reachable & ~fixed
    counts = (values > 0) & solved[row] & (row != col)
    row, col, values = row[counts], col[counts], values[counts]
    degree = segment_sums(values, starts(row, n))
    to_fixed = fixed[col]
    outward = starts(row[to_fixed], n)
    excess = segment_sums(values[to_fixed], outward) + eps * degree

    rows = solved.nonzero().squeeze(1)
    number = torch.cumsum(solved, 0) - 1
    once = ~to_fixed & (row < col)
    graph = Graph(number[row[once]], number[col[once]], values[once], excess[rows])
    hierarchy = build_hierarchy(graph, tol)
    top, none = hierarchy.levels[0], excess.new_zeros(0)
    border = Level(
        outward, col[to_fixed].int(), (hierarchy.scale * values[to_fixed]).to(top.weight.dtype),
        top.excess.new_zeros(n), none, outward[:1], none,
    )  # fmt: skip
    return Hidden(rows[hierarchy.order], hierarchy, border, degree)


def rows_of(crow: Tensor, nnz: int) -> Tensor:
    rows = torch.arange(len(crow) - 1, dtype=torch.int64, device=crow.device)
    return rows.repeat_interleave(crow.diff(), output_size=nnz)


def reachable_rows(edges: Edges, fixed: Tensor) -> Tensor:
    """bool [n]: whether a path of positive weights leads to a fixed row.

    Components by the lowest number of a row in them: a row takes the lowest of its neighbours, and jumps to what that
    row has found, so that the passes grow with the logarithm of a path's length.
    """
    nnz = int(edges.crow[-1])
    positive = edges.values[:nnz] > 0
    row, col = rows_of(edges.crow, nnz)[positive], edges.col[:nnz][positive]
    root = torch.arange(len(fixed), dtype=torch.int64, device=fixed.device)
    while len(row):
        lowest = root.scatter_reduce(0, row, root[col], "amin")
        found = root.scatter_reduce(0, root, lowest, "amin")  # the root itself joins what one of its rows has met
        found = torch.minimum(found, lowest)
        found = found[found]
        if torch.equal(found, root):
            break
        root = found
    has_label = torch.zeros_like(fixed)
    has_label[root[fixed]] = True
    return has_label[root]
