"""Stage 3, propagate: labels over the k-nearest-neighbour graph, ours beside SciPy, scikit-learn, torch and PyG.

Harmonic solution: every method to the relative residual TOL (norm weighted by D^-1, the worst class), measured
afterwards in float64. Label spreading: the error is the largest difference from the exact probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import propagate_peers as peers
import pytest
import torch
from data import cluster_labels, documents, hide_labels
from harness import SIZES, Case, Key, Method, under_pytest
from harness import plan as plan_of
from propagate_peers import ALPHA, SPREADING_TOL, TOL, K, Problem

import gloss_kernels

CLASSES, SIGMA = 100, 0.3


@lru_cache(maxsize=4)
def problem(n: int, labeled_share: float) -> Problem:
    x, _, source = documents(n)
    truth = cluster_labels(x, CLASSES)
    return Problem(x, _graph(n), hide_labels(truth, labeled_share), truth, CLASSES, source)


@lru_cache(maxsize=2)
def _graph(n: int) -> gloss_kernels.SimilarityGraph:
    return gloss_kernels.similarity_graph(documents(n).x, K, sigma=SIGMA)


# ------------------------------------------------------------------------------------------- methods
def ours(p: Problem) -> Callable[[], Any]:
    return lambda: gloss_kernels.propagate_labels(p.graph, p.labels, p.classes, tol=TOL)


def ours_gradient(p: Problem) -> Callable[[], Any]:
    """The gradient of the mean -log p of the hidden documents' classes: what the loss asks for."""
    values = p.graph.values.detach().clone().requires_grad_()
    graph = p.graph._replace(values=values)
    hidden, truth = p.labels < 0, p.truth[:, None]

    def run() -> gloss_kernels.Propagation:
        found = gloss_kernels.propagate_labels(graph, p.labels, p.classes, tol=TOL)
        p_true = found.probabilities.gather(1, truth)[hidden].clamp(min=0)
        torch.autograd.grad(-torch.log(0.99 * p_true + 0.01 / p.classes).mean(), values)
        return found

    return run


def ours_spreading(p: Problem) -> Callable[[], Any]:
    return lambda: gloss_kernels.propagate_labels(p.graph, p.labels, p.classes, alpha=ALPHA, tol=SPREADING_TOL)


def ours_from_embeddings(p: Problem) -> Callable[[], Any]:
    def run() -> gloss_kernels.Propagation:
        graph = gloss_kernels.similarity_graph(p.x, K, sigma=SIGMA)
        return gloss_kernels.propagate_labels(graph, p.labels, p.classes, alpha=ALPHA, tol=SPREADING_TOL)

    return run


def reference(p: Problem) -> Callable[[], Any]:
    return lambda: gloss_kernels.propagate_labels(p.graph, p.labels, p.classes, backend="reference")


HARMONIC = {
    "gloss": Method(ours, ours=True),
    "gloss forward + backward": Method(ours_gradient, ours=True, compared=False),
    "scipy cg": Method(peers.scipy_cg),
    "torch fixed point": Method(peers.torch_fixed_point),
    "dense reference": Method(reference, largest=4096),
}
GROUPS = {
    "harmonic, 70 % labelled": HARMONIC,
    "harmonic, 10 % labelled": HARMONIC,
    "spreading": {
        "gloss": Method(ours_spreading, ours=True),
        "sklearn LabelSpreading": Method(peers.sklearn_spreading),
        "PyG LabelPropagation": Method(peers.pyg_spreading),
    },
    "spreading from embeddings": {
        "gloss": Method(ours_from_embeddings, ours=True),
        "sklearn LabelSpreading(kernel='knn')": Method(peers.sklearn_fit),
    },
}


def plan(sizes: Sequence[int]) -> list[Key]:
    return plan_of("propagate", GROUPS, sizes)


def case(key: Key) -> Case:
    p = problem(key.n, 0.7 if "70 %" in key.group else 0.1)
    method = GROUPS[key.group][key.method]
    nnz = p.graph.num_edges
    facts = {"d": p.x.shape[1], "k": K, "classes": p.classes, "edges": nnz, "source": p.source}

    def check(found: Any) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if isinstance(found, gloss_kernels.Propagation):
            found, facts["iterations"] = found.probabilities.detach(), int(found.iterations)
        if key.group.startswith("harmonic"):
            return facts | {"residual": peers.residual(p, found)}
        if key.group == "spreading":
            return facts | {"error": peers.spreading_error(p, found)}
        return facts

    return Case(key, method, method.make(p), facts, None, check, lambda facts: traffic(key.n, facts))


def traffic(n: int, facts: dict[str, Any]) -> float | None:
    """Bytes of the conjugate gradients if each step moved the graph, x, r and p once and no class were done early."""
    if not facts.get("iterations"):
        return None
    step = facts["edges"] * (4 + 8) + 6 * 4 * n * facts["classes"]
    return float(step * facts["iterations"])


@pytest.mark.parametrize("key", plan(SIZES), ids=str)
def test_propagate(benchmark: Any, key: Key) -> None:
    under_pytest(benchmark, key, case)
