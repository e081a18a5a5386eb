"""The graph and the propagation: ours, and conjugate gradients with torch's sparse product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import gloss_kernels as gk
from gpubench.rows import Context, Row
from gpubench.timing import Run, documents, fill

K, SIGMA, TOL = 15, 0.3, 1e-4


class Problem(NamedTuple):
    neighbors: gk.TopK
    graph: gk.SimilarityGraph
    labels: Tensor


def problem(context: Context, n: int, classes: int, labeled: float, backend: str) -> Problem:
    """Labels at random: no harder and no easier to solve for than true ones. ``backend`` makes the graph."""
    device = torch.device(context.device)
    found = gk.cosine_topk(documents(n, 64, device), k=K, backend=backend)
    graph = gk.similarity_graph(torch.empty(n, 1, device=device), sigma=SIGMA, neighbors=found, backend=backend)
    generator = torch.Generator(device).manual_seed(1)
    labels = torch.randint(classes, (n,), generator=generator, device=device)
    labels[torch.rand(n, generator=generator, device=device) >= labeled] = -1
    return Problem(gk.TopK(found.values.detach(), found.indices), graph, labels)


def bound(graph: gk.SimilarityGraph, classes: int) -> int:
    """Bytes of the graph once, of the boundary and of the result once: below that no solver gets."""
    return graph.num_edges * 12 + 2 * graph.num_nodes * classes * 4


def job(n: int, classes: int, labeled: float) -> str:
    return f"propagate {n:,}, C = {classes}, {labeled:.0%} labelled"


def ours(context: Context, n: int, classes: int, labeled: float, backend: str) -> Iterator[Row]:
    neighbors, graph, labels = problem(context, n, classes, labeled, backend)
    device, x = graph.values.device, torch.empty(n, 1, device=graph.values.device)
    moved = bound(graph, classes)

    def facts(found: gk.Propagation) -> dict[str, Any]:
        return {"iterations": int(found.iterations), "residual": float(found.residual)}

    def forward() -> gk.Propagation:
        return gk.propagate_labels(graph, labels, classes, tol=TOL, backend=backend)

    values = graph.values.detach().clone().requires_grad_()

    def both() -> gk.Propagation:
        live = graph._replace(values=values)
        found = gk.propagate_labels(live, labels, classes, tol=TOL, backend=backend)
        torch.autograd.grad(found.probabilities.square().sum(), values)
        return found

    row = Row(job(n, classes, labeled), backend, bytes=moved)
    yield fill(row, lambda: forward, device, facts, context.rounds)
    row = Row(job(n, classes, labeled) + ", forward + backward", backend, bytes=2 * moved)
    yield fill(row, lambda: both, device, facts, context.rounds)
    build = lambda: gk.similarity_graph(x, sigma=SIGMA, neighbors=neighbors, backend=backend)  # noqa: E731
    row = Row(f"graph {n:,}, k = {K}", backend, bytes=n * K * 12 + graph.num_edges * 12)  # neighbours read, CSR written
    yield fill(row, lambda: build, device, lambda found: {"edges": found.num_edges}, context.rounds)


def peers(context: Context, n: int, classes: int, labeled: float) -> Iterator[Row]:
    """The graph by whichever backend of ours gives one; the rows are of the solver alone."""
    _, graph, labels = problem(context, n, classes, labeled, "cuda" if cuda_runs() else "triton")
    row = Row(job(n, classes, labeled), "torch sparse cg", bytes=bound(graph, classes))
    yield fill(row, lambda: torch_cg(graph, labels, classes, TOL), graph.values.device, rounds=context.rounds)


def cuda_runs() -> bool:
    return gk.available_backends()["cuda"].available


def torch_cg(graph: gk.SimilarityGraph, labels: Tensor, classes: int, tol: float) -> Run:
    """Diagonal-preconditioned conjugate gradients, all columns at once, with torch's sparse matrix product."""
    a = graph.to_sparse_csr()
    degree = a @ torch.ones(len(labels), 1, device=labels.device)
    hidden = (labels < 0)[:, None].float()
    y = F.one_hot(labels.clamp(min=0), classes).float() * (1 - hidden)

    def apply(x: Tensor) -> Tensor:
        return hidden * (degree * x - a @ x)

    def run() -> Tensor:
        b = hidden * (a @ y)
        x, r = torch.zeros_like(b), b
        z = r / degree.clamp(min=1e-30)
        p, rz = z, (r * z).sum(0)
        target = tol**2 * rz
        for iteration in range(500):
            q = apply(p)
            step = torch.where(rz > target, rz / (p * q).sum(0).clamp(min=1e-30), 0.0)
            x, r = x + step * p, r - step * q
            z = r / degree.clamp(min=1e-30)
            new = (r * z).sum(0)
            p, rz = z + (new / rz.clamp(min=1e-30)) * p, new
            if iteration % 8 == 7 and bool((rz <= target).all()):
                break
        return x + y

    return run
