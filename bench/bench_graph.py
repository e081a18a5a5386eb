"""Stage 2, graph: from neighbours and cosines to the symmetric weighted CSR graph, ours beside SciPy and torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from data import documents
from harness import SIZES, Case, Key, Method, under_pytest
from harness import plan as plan_of
from torch import Tensor

import gloss_kernels

K, SIGMA = 15, 0.3


class Problem(NamedTuple):
    x: Tensor
    neighbors: gloss_kernels.TopK
    source: str


@lru_cache(maxsize=2)
def problem(n: int) -> Problem:
    x, _, source = documents(n)
    return Problem(x, gloss_kernels.cosine_topk(x, k=K), source)


# ------------------------------------------------------------------------------------------- methods
def ours(p: Problem) -> Callable[[], Any]:
    return lambda: gloss_kernels.similarity_graph(p.x, sigma=SIGMA, neighbors=p.neighbors).num_edges


def ours_gradient(p: Problem) -> Callable[[], Any]:
    values = p.neighbors.values.detach().clone().requires_grad_()
    neighbors = gloss_kernels.TopK(values, p.neighbors.indices)

    def run() -> int:
        graph = gloss_kernels.similarity_graph(p.x, sigma=SIGMA, neighbors=neighbors)
        torch.autograd.grad(graph.values.sum(), values)
        return graph.num_edges

    return run


def scipy_add(p: Problem) -> Callable[[], Any]:
    from scipy.sparse import csr_array

    n = len(p.x)

    def run() -> int:
        weights = torch.exp((p.neighbors.values - 1) / SIGMA**2).numpy()
        starts = torch.arange(0, n * K + 1, K).numpy()
        w = csr_array((weights.ravel(), p.neighbors.indices.numpy().ravel(), starts), shape=(n, n))
        return int((w + w.T).tocsr().nnz)

    return run


def torch_coalesce(p: Problem) -> Callable[[], Any]:
    n = len(p.x)

    def run() -> int:
        weights = torch.exp((p.neighbors.values - 1) / SIGMA**2).flatten()
        i, j = torch.arange(n).repeat_interleave(K), p.neighbors.indices.flatten()
        index = torch.stack([torch.cat([i, j]), torch.cat([j, i])])
        a = torch.sparse_coo_tensor(index, torch.cat([weights, weights]), (n, n), check_invariants=False)
        return a.coalesce().to_sparse_csr().values().numel()

    return run


def reference(p: Problem) -> Callable[[], Any]:
    neighbors = p.neighbors
    return lambda: gloss_kernels.similarity_graph(p.x, sigma=SIGMA, neighbors=neighbors, backend="reference").num_edges


GROUPS = {
    "sum": {
        "gloss": Method(ours, ours=True),
        "gloss forward + backward": Method(ours_gradient, ours=True, compared=False),
        "scipy W + W.T": Method(scipy_add),
        "torch coalesce": Method(torch_coalesce),
        "dense reference": Method(reference, largest=4096),
    }
}


def plan(sizes: Sequence[int]) -> list[Key]:
    return plan_of("graph", GROUPS, sizes)


def case(key: Key) -> Case:
    p = problem(key.n)
    method = GROUPS[key.group][key.method]
    facts = {"d": p.x.shape[1], "k": K, "source": p.source}
    return Case(key, method, method.make(p), facts, None, lambda edges: {"edges": edges}, traffic)


def traffic(facts: dict[str, Any]) -> float:
    """Bytes that any method moves: cosines and indices in (per directed edge, half of "sum" or more), CSR out."""
    return float(facts["edges"]) * (4 + 8 + 4 + 8)


@pytest.mark.parametrize("key", plan(SIZES), ids=str)
def test_graph(benchmark: Any, key: Key) -> None:
    under_pytest(benchmark, key, case)
