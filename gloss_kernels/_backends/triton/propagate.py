"""Stage propagate in Triton, forward: the harmonic solution by the multilevel solver (flow.py), label spreading by
conjugate gradients (solver.py), whose system is well conditioned."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import multilevel, protocol
from . import flow
from .solver import System, solve


def propagate(problem: protocol.System, boundary: Tensor, has_initial: bool, tol: float) -> protocol.Solution:
    if problem.alpha is None:
        return multilevel.propagate(flow, problem, boundary, has_initial, tol)
    fixed = problem.fixed
    reachable = multilevel.reachable_rows(problem.edges, fixed)
    rows = reachable.nonzero().squeeze(1)
    right = torch.where(fixed[:, None], (1 - problem.alpha) * boundary.double(), 0.0).to(boundary.dtype)
    start = boundary * (reachable & ~fixed)[:, None] if has_initial else None
    z, residual, iterations = solve(
        spreading_system(problem.edges, problem.alpha, rows, boundary.dtype), right, start, tol, problem.max_iter
    )
    result = torch.zeros_like(boundary)
    result[rows] = z[rows]
    count = torch.tensor(iterations, dtype=torch.int64, device=result.device)
    return protocol.Solution(result, count, residual, reachable, residual.new_tensor(tol))


def spreading_system(edges: protocol.Edges, alpha: float, rows: Tensor, dtype: torch.dtype) -> System:
    """I - alpha M on the reachable rows, whose neighbours are reachable too."""
    weights = (alpha * edges.values.double()).to(dtype).contiguous()
    return System(edges.crow.contiguous(), edges.col.contiguous(), weights, rows)
