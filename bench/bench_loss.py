"""Stage 4, loss: one G-Loss step of a mini-batch, forward and backward, ours beside the dense references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from data import documents, hide_labels
from harness import SIZES, Case, Key, Method, under_pytest
from harness import plan as plan_of
from torch import Tensor

import gloss_kernels

K, SIGMA = 15, 0.5


class Problem(NamedTuple):
    x: Tensor  # float32 [n, d], a leaf with gradient
    y: Tensor
    hidden: Tensor  # bool [n]: 30 % of the documents
    classes: int
    source: str


@lru_cache(maxsize=2)
def problem(n: int) -> Problem:
    x, y, source = documents(n)
    return Problem(x.requires_grad_(), y, hide_labels(y, 0.7) < 0, int(y.max()) + 1, source)


# ------------------------------------------------------------------------------------------- methods
def gloss(n_neighbors: int | None, backend: str = "auto") -> Callable[[Problem], Callable[[], float]]:
    def make(p: Problem) -> Callable[[], float]:
        loss = gloss_kernels.GLoss(p.classes, sigma=SIGMA, n_neighbors=n_neighbors, backend=backend)
        return step(p, lambda: loss(p.x, p.y, p.hidden))

    return make


def plain_torch(p: Problem) -> Callable[[], float]:
    """The equivalent torch of g_loss's docstring: dense, float32, autograd through torch.linalg.solve."""

    def loss() -> Tensor:
        u = torch.nn.functional.normalize(p.x)
        a = torch.exp((u @ u.T - 1) / SIGMA**2) * (1 - torch.eye(len(u)))
        hide, keep = p.hidden.nonzero().squeeze(1), (~p.hidden).nonzero().squeeze(1)
        right = a[hide][:, keep] @ torch.nn.functional.one_hot(p.y[keep], p.classes).float()
        f = torch.linalg.solve(torch.diag(a.sum(1)[hide]) - a[hide][:, hide], right)
        return -torch.log(0.99 * f.gather(1, p.y[hide, None]) + 0.01 / p.classes).mean()

    return step(p, loss)


def step(p: Problem, loss: Callable[[], Tensor]) -> Callable[[], float]:
    def run() -> float:
        value = loss()
        torch.autograd.grad(value, p.x)
        return float(value.detach())

    return run


GROUPS = {
    "forward + backward": {
        "gloss dense": Method(gloss(None), ours=True),
        "gloss sparse": Method(gloss(K), ours=True),
        "dense reference": Method(gloss(None, "reference"), largest=4096),
        "plain torch": Method(plain_torch, largest=4096),
    }
}


def plan(sizes: Sequence[int]) -> list[Key]:
    """Above 4,096 documents only the sparse path, the others hold n x n numbers."""
    return [k for k in plan_of("loss", GROUPS, sizes) if k.n <= 4096 or k.method == "gloss sparse"]


def case(key: Key) -> Case:
    p = problem(key.n)
    method = GROUPS[key.group][key.method]
    sparse = key.method == "gloss sparse"
    facts = {"d": p.x.shape[1], "k": K if sparse else None, "classes": p.classes, "source": p.source}
    return Case(key, method, method.make(p), facts, None, lambda loss: {"loss": loss})


@pytest.mark.parametrize("key", plan(SIZES), ids=str)
def test_loss(benchmark: Any, key: Key) -> None:
    under_pytest(benchmark, key, case)
